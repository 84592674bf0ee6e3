"""Batches as pure functions of the step, so that a resumed run sees the very same ones.

`batches[step]` is a dict of tensors with equal first dimension; `len(batches)` is the number of steps.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from openafm.tokenizer import Tokenizer
from openafm.training.losses import IGNORED

Batch = dict[str, Tensor]


class Batches(Protocol):
    """What the training loop reads."""

    def __len__(self) -> int:
        """Number of optimizer steps."""
        ...

    def __getitem__(self, step: int) -> Batch:
        """The batch of this step."""
        ...


class Source:
    """One source's token shard, memory-mapped, cut into windows of `length` + 1 tokens in a seeded order per epoch.

    A large source has several files; no window goes across two of them.
    """

    def __init__(self, folders: Sequence[Path], split: str, name: str, length: int, seed: int):
        found = [folder for folder in folders if (folder / split / f"{name}.bin").exists()]
        if not found:
            known = sorted(path.stem for folder in folders for path in (folder / split).glob("*.bin"))
            places = " and ".join(str(folder / split) for folder in folders)
            raise ValueError(f"no {name}.bin in {places}, which hold these sources: {', '.join(known) or 'none'}")
        first = found[0] / split / f"{name}.bin"
        more = (first.with_name(f"{name}.{number}.bin") for number in itertools.count(1))
        self.paths = [first, *itertools.takewhile(Path.exists, more)]
        dtype = json.loads((found[0] / "index.json").read_text())["dtype"]
        self.files = [np.memmap(path, dtype=dtype, mode="r") for path in self.paths]
        self.length, self.seed, self.name, self.dtype = length, seed, name, self.files[0].dtype
        ends = np.cumsum([0] + [(len(tokens) - 1) // length for tokens in self.files])
        self.first_windows, self.windows = ends[:-1], int(ends[-1])
        self._ends: dict[int, np.ndarray] = {}
        if self.windows < 1:
            raise ValueError(f"{first} has {len(self.files[0])} tokens, fewer than one window of {length + 1}")

    def window(self, number: int) -> np.ndarray:
        """The `number`-th window ever drawn from this source: `(length + 1,)` token ids."""
        file, start = self._place(number)
        return self.files[file][start : start + self.length + 1].astype(np.int64)

    def documents(self, number: int) -> np.ndarray:
        """Which document each token of a window is of: `(length,)`, counted from 0 in the window."""
        file, start = self._place(number)
        if file not in self._ends:
            self._ends[file] = np.load(self._offsets(file), mmap_mode="r")
        ends = self._ends[file]
        found = np.searchsorted(ends, np.arange(start, start + self.length), side="right")
        numbers: np.ndarray = found - found[0]
        return numbers

    def _place(self, number: int) -> tuple[int, int]:
        epoch, position = divmod(number, self.windows)
        window = int(self._order(epoch)[position])
        file = int(np.searchsorted(self.first_windows, window, side="right")) - 1
        return file, (window - int(self.first_windows[file])) * self.length

    def _offsets(self, file: int) -> Path:
        path = self.paths[file].with_name(f"{self.paths[file].stem}.offsets.npy")
        if not path.exists():
            raise ValueError(f"{path} is missing: where documents end is not known; make the shards again")
        return path

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            rng = np.random.default_rng([self.seed, epoch, *self.name.encode()])
            self._epoch, self._permutation = epoch, rng.permutation(self.windows)
        return self._permutation


class TokenBatches:
    """Windows drawn from a mixture of named sources: `inputs` and `targets`, `(batch, sequence_length)` each.

    `mixture` maps sources to weights. Step by step, each source supplies its share of the windows drawn so far (largest
    deficit first), so the mixture holds at every point of a run. `tokens` is rounded down to whole batches. A source is
    looked for in the folders of `shards` in turn. Raises ValueError where it is in none, unless the shards name it as
    `absent`, for this machine could not get any: then the others share its weight in proportion. So they do once a
    source has been read `max_epochs` times (one number, or by source); ValueError where all have before `tokens` is
    reached. With `documents`, a batch also says which document of its row each token is of: `documents`, as `inputs`.
    """

    def __init__(
        self,
        shards: Path | Sequence[Path],
        mixture: Mapping[str, float],
        *,
        sequence_length: int,
        batch_tokens: int,
        tokens: int,
        seed: int,
        split: str = "train",
        max_epochs: float | Mapping[str, float] | None = None,
        documents: bool = False,
    ):
        self.rows = max(1, batch_tokens // sequence_length)
        self.steps = max(1, tokens // (self.rows * sequence_length))
        self.with_documents = documents
        wanted = {name: weight for name, weight in mixture.items() if weight > 0}
        folders = [shards] if isinstance(shards, Path) else list(shards)
        self.absent = sorted(wanted.keys() & _absent(folders))
        present = sorted(wanted.keys() - set(self.absent))
        if not present:
            raise ValueError(
                f"the shards hold none of this mixture's sources: {', '.join(sorted(wanted)) or 'none given'}"
            )
        self.sources = [Source(folders, split, name, sequence_length, seed) for name in present]
        weights = np.array([wanted[source.name] for source in self.sources])
        limits = _limits(self.sources, max_epochs)
        if limits.sum() < self.steps * self.rows:
            raise ValueError(
                f"max_epochs allows {int(limits.sum()) * sequence_length:,} tokens of {', '.join(present)}, fewer than "
                f"the {self.steps * self.rows * sequence_length:,} asked for: lower tokens, raise max_epochs, or bring "
                "more text"
            )
        self.draws = _interleave(weights / weights.sum(), self.steps * self.rows, limits)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rows = self.draws[step * self.rows : (step + 1) * self.rows]
        windows = torch.from_numpy(np.stack([self.sources[source].window(number) for source, number in rows]))
        batch = {"inputs": windows[:, :-1].contiguous(), "targets": windows[:, 1:].contiguous()}
        if self.with_documents:
            found = [self.sources[source].documents(number) for source, number in rows]
            batch["documents"] = torch.from_numpy(np.stack(found))
        return batch

    @property
    def epochs(self) -> dict[str, float]:
        """How often the run reads each source."""
        counts = np.bincount(self.draws[:, 0], minlength=len(self.sources))
        return {s.name: round(float(n) / s.windows, 3) for s, n in zip(self.sources, counts, strict=True)}


def _absent(folders: Sequence[Path]) -> set[str]:
    """Sources that the shards name as not to be had on this machine, and that no other folder holds."""
    indexes = [json.loads((folder / "index.json").read_text()) for folder in folders]
    held = {name for index in indexes for names in index["splits"].values() for name in names}
    return {name for index in indexes for name in index.get("absent", [])} - held


def _limits(sources: Sequence[Source], max_epochs: float | Mapping[str, float] | None) -> np.ndarray:
    """`(sources,)` windows that may be drawn from each; infinite where there is no cap."""
    caps = max_epochs if isinstance(max_epochs, Mapping) else {source.name: max_epochs for source in sources}
    capped = [caps.get(source.name) for source in sources]
    return np.array(
        [np.inf if cap is None else np.floor(cap * s.windows) for s, cap in zip(sources, capped, strict=True)]
    )


def _interleave(shares: np.ndarray, count: int, limits: np.ndarray | None = None) -> np.ndarray:
    """`(count, 2)` pairs of source and the source's running number, each source as close to its share as can be.

    A source that has reached its limit leaves its share to the others in proportion.
    """
    drawn = np.zeros(len(shares), dtype=np.int64)
    draws = np.empty((count, 2), dtype=np.int64)
    limits = np.full(len(shares), np.inf) if limits is None else limits
    done = 0  # draws of sources that are not at their limit
    for i in range(count):
        behind = shares * (done + 1) - drawn
        source = int(np.argmax(np.where(drawn < limits, behind, -np.inf)))
        draws[i] = source, drawn[source]
        drawn[source] += 1
        done += 1
        if drawn[source] >= limits[source]:
            left = np.where(drawn < limits, shares, 0.0)
            shares = left / left.sum() if left.any() else shares
            done = int(drawn[drawn < limits].sum())
    return draws


class ExampleBatches:
    """Chat examples packed into rows: `inputs` and `targets`, `(batch, sequence_length)`; prompts have no target.

    `examples` are pairs of prompt and answer token ids (the answer ends with its stop token). Each epoch shuffles them
    anew and fills row after row in that order; an example longer than a row raises ValueError (filter those out and
    count them). Attention is causal over the whole row, so an example sees those packed before it, unless `separate`:
    then `documents` numbers the examples of a row (its padding too), and the model looks at one alone.
    """

    def __init__(
        self,
        examples: Sequence[tuple[list[int], list[int]]],
        *,
        sequence_length: int,
        batch_tokens: int,
        tokens: int,
        seed: int,
        pad_id: int,
        separate: bool = False,
    ):
        longest = max((len(prompt) + len(answer) for prompt, answer in examples), default=0)
        if not examples or longest > sequence_length + 1:
            raise ValueError(f"need examples of at most {sequence_length + 1} tokens; the longest has {longest}")
        self.examples, self.length, self.pad_id, self.seed = examples, sequence_length, pad_id, seed
        self.separate = separate
        self.rows = max(1, batch_tokens // sequence_length)
        self.steps = max(1, tokens // (self.rows * sequence_length))
        self.packed: list[list[int]] = []
        epoch = 0
        while len(self.packed) < self.steps * self.rows:
            self.packed.extend(self._pack(epoch))
            epoch += 1

    def _pack(self, epoch: int) -> Iterator[list[int]]:
        """Rows of example numbers."""
        row: list[int] = []
        room = self.length + 1
        for number in np.random.default_rng([self.seed, epoch]).permutation(len(self.examples)).tolist():
            size = sum(map(len, self.examples[number]))
            if size > room:
                yield row
                row, room = [], self.length + 1
            row.append(number)
            room -= size
        yield row

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        inputs = torch.full((self.rows, self.length + 1), self.pad_id)
        targets = torch.full((self.rows, self.length + 1), IGNORED)
        documents = torch.zeros((self.rows, self.length), dtype=torch.int64)
        for r, row in enumerate(self.packed[step * self.rows : (step + 1) * self.rows]):
            at = 0
            for number in row:
                prompt, answer = self.examples[number]
                end = at + len(prompt) + len(answer)
                inputs[r, at:end] = torch.tensor(prompt + answer)
                targets[r, at + len(prompt) : end] = torch.tensor(answer)
                documents[r, end:] += 1
                at = end
        batch = {"inputs": inputs[:, :-1].contiguous(), "targets": targets[:, 1:].contiguous()}
        return batch | {"documents": documents} if self.separate else batch


def tokenize_examples(
    examples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, longest: int
) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Prompt and answer ids of chat examples, and how many were left out for being longer than `longest` tokens."""
    pairs = [
        (tokenizer.render_chat(e["messages"]), [*tokenizer.encode(e["answer"]), tokenizer.end_of_turn_id])
        for e in examples
    ]
    fitting = [pair for pair in pairs if len(pair[0]) + len(pair[1]) <= longest]
    return fitting, len(pairs) - len(fitting)
