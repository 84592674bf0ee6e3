"""Texts as vectors whose cosine tells how alike their meanings are: tools that are confused, problems that are copies.

`Embedder` runs a sentence encoder of the BERT family (all-MiniLM-L6-v2 and its kin) from a folder with
`model.safetensors`, `config.json` and `tokenizer.json`. Where there is none, `character_vectors` compare spellings:
they find texts that share words, not texts that mean the same.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F


class Embedder:
    """A sentence encoder: BERT (arXiv 1810.04805), the mean of its last layer's tokens, scaled to length 1."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, int], tokenizer: Tokenizer, longest: int = 256):
        self.weights = {name.removeprefix("bert."): value.float() for name, value in weights.items()}
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.epsilon = float(config.get("layer_norm_eps", 1e-12))
        self.tokenizer = tokenizer
        self.tokenizer.enable_truncation(longest)
        self.tokenizer.no_padding()

    @classmethod
    def load(cls, folder: Path) -> "Embedder":
        """Open a folder. Raises ValueError where it holds no BERT encoder."""
        config = json.loads((folder / "config.json").read_text())
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise ValueError(f"{folder} is no BERT encoder with GELU; give one such as all-MiniLM-L6-v2")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(load_file(folder / "model.safetensors"), config, tokenizer)

    @classmethod
    def find(cls, folder: Path) -> "Embedder | None":
        """Open a folder of the sources, `models/embedder`; None where they hold no encoder."""
        return cls.load(folder) if (folder / "model.safetensors").exists() else None

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch: int = 32) -> np.ndarray:
        """(texts, d_model) float32, each row of length 1."""
        encoded = [found.ids for found in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        rows = np.zeros((len(texts), self.weights["embeddings.word_embeddings.weight"].shape[1]), np.float32)
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            rows[places] = self._encode([encoded[i] for i in places]).numpy()
        return rows

    def _encode(self, rows: list[list[int]]) -> Tensor:
        """(rows, d_model): padded on the right, padding neither attended to nor averaged."""
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        shown = torch.arange(longest) < lengths[:, None]
        x = F.embedding(tokens, self.weights["embeddings.word_embeddings.weight"])
        x = x + self.weights["embeddings.position_embeddings.weight"][:longest]
        x = self._norm(x + self.weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(self.layers):
            x = self._layer(x, shown, f"encoder.layer.{layer}")
        mean = (x * shown[..., None]).sum(1) / lengths[:, None]
        return F.normalize(mean, dim=-1)

    def _layer(self, x: Tensor, shown: Tensor, name: str) -> Tensor:
        def heads(part: str) -> Tensor:
            """Queries, keys or values of `x`, `(batch, heads, sequence, width of a head)`."""
            split: Tensor = self._linear(x, f"{name}.attention.self.{part}").unflatten(-1, (self.heads, -1))
            return split.transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            heads("query"), heads("key"), heads("value"), attn_mask=shown[:, None, None, :]
        )
        mixed = self._linear(mixed.transpose(1, 2).flatten(2), f"{name}.attention.output.dense")
        x = self._norm(x + mixed, f"{name}.attention.output.LayerNorm")
        inner = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.epsilon)


def character_vectors(texts: Sequence[str], width: int = 4096) -> np.ndarray:
    """(texts, width) float32: counts of each word and of its character 3-grams, hashed, square-rooted, of length 1."""
    rows = np.zeros((len(texts), width), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.casefold().replace("_", " ").split():
            spelled = f"<{word}>"
            for gram in [word, *(spelled[i : i + 3] for i in range(len(spelled) - 2))]:
                row[zlib.crc32(gram.encode()) % width] += 1
    rows = np.sqrt(rows)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return rows


def similarities(texts: Sequence[str], others: Sequence[str], folder: Path) -> tuple[np.ndarray, str]:
    """Cosines (texts, others) and what they compare: `meaning` with the encoder in `folder`, else `spelling`."""
    if embedder := Embedder.find(folder):
        return embedder.embed(texts) @ embedder.embed(others).T, "meaning"
    return character_vectors(texts) @ character_vectors(others).T, "spelling"
