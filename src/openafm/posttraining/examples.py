"""Examples, preferences and rollouts as JSONL, and the batches made of them: what all post-training stages read."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openafm.training.batches import Batch
from openafm.training.losses import IGNORED

Row = dict[str, Any]
"""One JSON line: an example {"id", "task", "messages", "answer", "check", "origin", "lineage"}, or one made from it."""


def write_json(path: Path, value: Any) -> None:
    """Write one indented JSON value."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def question(example: Mapping[str, Any]) -> str:
    """The whole conversation up to the answer as text: what makes two examples the same problem."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in example["messages"])


def share(seed: int | str, text: str) -> float:
    """Map a text to [0, 1), always alike for the same seed: splits and subsets that do not depend on the order."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:7], "big") / 2**56


def checked(examples: Iterable[Row], count: int, seed: int | str) -> list[Row]:
    """At most `count` of the examples that a program can check, a seeded subset spread evenly over the tasks."""
    by_task: dict[str, list[Row]] = {}
    for example in sorted(examples, key=lambda e: (share(seed, question(e)), e["id"])):
        if example.get("check"):
            by_task.setdefault(example["task"], []).append(example)
    turns = [(turn, task, e) for task in sorted(by_task) for turn, e in enumerate(by_task[task])]
    return [example for _, _, example in sorted(turns, key=lambda t: t[:2])[:count]]


def answer_row(prompt: Sequence[int], answer: Sequence[int], suffix: str = "") -> dict[str, list[int]]:
    """Inputs and next-token targets of one answered prompt; the prompt has no target."""
    return {
        f"inputs{suffix}": [*prompt, *answer][:-1],
        f"targets{suffix}": [IGNORED] * (len(prompt) - 1) + list(answer),
    }


class RowBatches:
    """Rows of token lists and numbers as batches: lists padded on the right to the longest, numbers stacked.

    Every epoch shuffles the rows anew, from `seed` alone. Integers become int64 tensors and floats float32; lists of
    lists must be of one shape.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], *, rows_per_batch: int, steps: int, seed: int):
        if not rows:
            raise ValueError("there is nothing to train on: no row is left; give this step more prompts or samples")
        self.rows, self.size, self.steps = rows, min(rows_per_batch, len(rows)), steps
        epochs = -(-steps * self.size // len(rows))
        orders = [np.random.default_rng([seed, epoch]).permutation(len(rows)) for epoch in range(epochs)]
        self.order = np.concatenate(orders)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        return collate([self.rows[i] for i in self.order[step * self.size : (step + 1) * self.size]])


def collate(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack rows into tensors with one leading dimension.

    All `inputs*`, `targets*` and `values*` get the length of the longest: `targets*` are padded with IGNORED, the
    others with 0.
    """
    batch: Batch = {}
    longest = max((len(row[name]) for row in rows for name in row if name.startswith("inputs")), default=0)
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name.startswith(("inputs", "targets", "values")):
            padding = IGNORED if name.startswith("targets") else 0
            values = [value + [padding] * (longest - len(value)) for value in values]
        batch[name] = torch.tensor(values)
    return batch
