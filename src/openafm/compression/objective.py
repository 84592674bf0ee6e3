"""What the steps `recovery` and `qat` train on: pretraining text, and a loss beside the unquantized base."""

import json
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from openafm.model import Transformer
from openafm.stage import Config, Context
from openafm.training.batches import Batch, TokenBatches
from openafm.training.loop import Loss
from openafm.training.losses import LossOutput, divergence, next_token

LossKind = Literal["next_token", "kl", "both"]


class TextConfig(Config):
    """The text that trains what stands beside an unquantized base, and how."""

    loss: LossKind = "next_token"
    """True tokens, the unquantized model's distribution, or the sum of both losses."""
    mixture: dict[str, float] = {}
    """Weights over the shards' sources; empty takes all by their size."""
    tokens: int = 50_000
    """Pretraining tokens."""
    sequence_length: int = 256
    batch_tokens: int = 1024
    lr: float = 4e-3
    floor: float = 0.05
    warmup: float = 0.1
    calibration_tokens: int = 16_384
    """Training tokens whose activations say what an error in each column costs."""
    heldout_tokens: int = 16_384


def text_batches(config: TextConfig, context: Context, shards: Path) -> TokenBatches:
    """The pretraining text that the config asks for."""
    index = json.loads((shards / "index.json").read_text())["splits"]["train"]
    mixture = config.mixture or {
        name: entry["tokens"] for name, entry in index.items() if entry["tokens"] > config.sequence_length
    }
    return TokenBatches(
        shards,
        mixture,
        tokens=config.tokens,
        sequence_length=config.sequence_length,
        batch_tokens=config.batch_tokens,
        seed=context.seed,
    )


def output_loss(kind: LossKind, base: Transformer) -> Loss:
    """The loss of what is trained beside a base: true tokens, KL to the base's distribution, or their sum."""

    def loss(network: nn.Module, batch: Batch) -> LossOutput:
        """The chosen loss of a batch, in nats a token; the base is read without gradients."""
        logits = network(batch["inputs"])
        if kind == "next_token":
            return next_token(logits, batch["targets"])
        with torch.no_grad():
            reference = base(batch["inputs"])
        kl = divergence(logits, reference, batch["targets"])
        if kind == "kl":
            return kl
        true = next_token(logits, batch["targets"])
        return LossOutput(true.loss + kl.loss, true.weight, true.metrics | kl.metrics)

    return loss
