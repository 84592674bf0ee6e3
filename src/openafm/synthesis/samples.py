"""Synthetic examples for people to read, kept and rejected (`openafm data samples RUN`).

The same seed draws the same ones, evenly over the tasks of what was kept and the reasons of what was not.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from openafm import jsonl
from openafm.data.audit import evenly
from openafm.synthesis.items import MAKERS

SHOWN = 600
"""Characters of a turn that are shown."""


@dataclass(frozen=True)
class Sample:
    """One example: where it is from, what it says, and why it was not kept, if so."""

    step: str
    id: str
    task: str
    lineage: str
    messages: list[dict[str, Any]]
    answer: str
    reason: str
    """Empty for what was kept."""
    evidence: str

    def __str__(self) -> str:
        fate = f"rejected: {self.reason} ({_plain(self.evidence)})" if self.reason else "kept"
        turns = [f"  {m['role']}: {_plain(str(m['content']))}" for m in self.messages]
        told = [*turns, f"  -> {_plain(self.answer)}"]
        return "\n".join([f"{self.step} {self.task}: {fate}", f"  ({_plain(self.lineage)})", *told])


def _plain(text: str) -> str:
    """Without control characters, which a model may have written, and not longer than one reads."""
    shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in shown).replace("\n", "\n     ")


def samples(run: Path, count: int = 200, only: str = "", step: str = "", seed: int = 0) -> list[Sample]:
    """Draw `count` examples of a run; `only` is `kept`, `rejected` or empty for both.

    Raises ValueError, naming the steps that there are, where nothing matches.
    """
    if only not in ("", "kept", "rejected"):
        raise ValueError(f"--only {only}: use kept or rejected")
    steps = sorted(path.parent for path in run.glob("[!.]*/manifest.json") if _stage(path) in MAKERS)
    groups: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
    for folder in steps:
        for sample in _of(folder):
            fate = "rejected" if sample.reason else "kept"
            if only in ("", fate) and step in ("", sample.step):
                groups[sample.step, fate, sample.reason or sample.task].append(sample)
    if not groups:
        there = ", ".join(folder.name for folder in steps) or "none: `openafm run synthesis` makes some"
        raise ValueError(f"{run} has no such examples; steps that made any: {there}")
    chosen = evenly((found for _, found in sorted(groups.items())), count, lambda s: _place(seed, s))
    return sorted(chosen, key=lambda s: (s.step, bool(s.reason), s.reason, s.task, s.id))


def _stage(manifest: Path) -> str:
    return str(json.loads(manifest.read_text())["stage"])


def _place(seed: int, sample: Sample) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed}/samples/{sample.step}/{sample.id}/{sample.reason}".encode())


def _of(folder: Path) -> Iterator[Sample]:
    """All that a step kept, its programs too, and all it rejected."""
    for name in ("examples", "solutions", "rejected"):
        path = folder / f"{name}.jsonl"
        for row in jsonl.read(path) if path.exists() else []:
            yield Sample(
                folder.name, row["id"], row["task"], row["lineage"], row["messages"], row["answer"],
                row.get("reason", ""), row.get("evidence", ""),
            )  # fmt: skip
