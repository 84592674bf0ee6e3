"""The shape of a model: every number that decides its tensors."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from openafm.stage import Config

Size = Annotated[int, Field(gt=0, lt=2**31)]
MOST_LAYERS = 1_024
"""A stranger's config.json must not have us build modules for hours."""


class ModelConfig(Config):
    """A dense decoder with AFM's choices (arXiv 2407.21075, section 2)."""

    vocab_size: Size
    d_model: Size
    n_layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)]
    n_heads: Size
    n_kv_heads: Size
    head_dim: Size
    d_ff: Size
    rope_base: float = 500_000.0
    norm_eps: float = 1e-5
    qk_norm: bool = True
    """RMSNorm on each head's query and key, before RoPE: exports load as Qwen3. Off for Llama-family imports."""
    max_length: Size = 4096
    """Longest sequence trained on, in tokens."""

    @model_validator(mode="after")
    def _grouped(self) -> "ModelConfig":
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        return self

    @property
    def embedding_parameters(self) -> int:
        """Number of weights in the one matrix shared by input and output."""
        return self.vocab_size * self.d_model

    @property
    def projection_parameters(self) -> int:
        """Number of weights in the linear layers of all blocks."""
        attention = self.d_model * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        return self.n_layers * (attention + 3 * self.d_model * self.d_ff)

    @property
    def norm_parameters(self) -> int:
        """Number of RMSNorm gains."""
        heads = 2 * self.head_dim if self.qk_norm else 0
        return self.n_layers * (2 * self.d_model + heads) + self.d_model

    @property
    def parameters(self) -> int:
        """Number of weights in all."""
        return self.embedding_parameters + self.projection_parameters + self.norm_parameters


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in `folder`. Raises ValueError where the folder holds none."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: {folder} is not a model folder; run the step that makes it")
    return ModelConfig.model_validate_json(path.read_bytes())
