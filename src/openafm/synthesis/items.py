"""What every synthesis step does with the items it made: keep or reject with a reason, drop copies, write, count."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openafm import jsonl
from openafm.data.dedup import near_duplicates
from openafm.stage import Context, Metrics
from openafm.synthesis.tasks import Example

MAKERS = ("math_data", "tool_data", "code_data", "human_data", "summaries")
"""The stages that make examples."""
NEAR = 0.8
"""Jaccard similarity of word 5-grams from which on two prompts are near copies."""


@dataclass
class Collected:
    """Items of one step: the kept ones, and the rejected with their reasons."""

    kept: list[Example] = field(default_factory=list)
    rejected: list[Example] = field(default_factory=list)

    def keep(self, examples: Iterable[Example]) -> None:
        """Keep examples that were verified."""
        self.kept.extend(examples)

    def judge(self, example: Example, reason: str | None, evidence: str = "") -> None:
        """Keep an example, or reject it when there is a reason; `evidence` is short human text."""
        if reason is None:
            self.kept.append(example)
        else:
            self.rejected.append({**example, "reason": reason, "evidence": evidence[:200]})


def prompt_of(example: Example) -> str:
    """The user's last turn."""
    prompt: str = example["messages"][-1]["content"]
    return prompt


def conversation_of(example: Example) -> str:
    """All that stands before the answer."""
    return "\n".join(message["content"] for message in example["messages"])


def finish(
    context: Context, collected: Collected, writer: dict[str, Any], elsewhere: Sequence[Example] = ()
) -> Metrics:
    """Drop copies, write `examples.jsonl` and `rejected.jsonl`, return yields a source and reasons.

    Items that were kept `elsewhere`, in a file of their own, count in the yields."""
    result, first = Collected([], list(collected.rejected)), _copies(collected.kept)
    for index, row in enumerate(collected.kept):
        result.judge(row, "copy" if index in first else None, first.get(index, ""))
    jsonl.write(context.out / "examples.jsonl", result.kept)
    jsonl.write(context.out / "rejected.jsonl", result.rejected)
    return {
        "examples": len(result.kept),
        "rejected": len(result.rejected),
        **_counts(result, elsewhere),
        "writer": writer,
    }


def _copies(rows: list[Example]) -> dict[int, str]:
    """Map each repeated item to the id of its first: exact prompts for all, near copies among what a model wrote.

    Near copies are told by words alone, in which the rule-made `7 + 2` and `7 - 2` would be one.
    """
    seen: dict[str, int] = {}
    copies = {i: first for i, row in enumerate(rows) if (first := seen.setdefault(conversation_of(row), i)) != i}
    written = [i for i, row in enumerate(rows) if _source(row).startswith("writer") and i not in copies]
    for group in near_duplicates([prompt_of(rows[i]) for i in written], NEAR):
        copies |= {written[i]: written[min(group)] for i in group if i != min(group)}
    return {copy: rows[first]["id"] for copy, first in copies.items()}


def _counts(result: Collected, elsewhere: Sequence[Example]) -> Metrics:
    """Yield of each source (the first word of the lineage), reasons, tasks and origins."""
    kept, rejected = Counter(map(_source, [*result.kept, *elsewhere])), Counter(map(_source, result.rejected))
    yields = {
        source: {"made": kept[source] + rejected[source], "kept": kept[source]} for source in sorted(kept | rejected)
    }
    return {
        "yield": yields,
        "reasons": _sorted(Counter(row["reason"] for row in result.rejected)),
        "tasks": _sorted(Counter(row["task"] for row in result.kept)),
        "origins": {"human": 0, "synthetic": 0} | _sorted(Counter(row["origin"] for row in result.kept)),
    }


def _source(example: Example) -> str:
    lineage: str = example["lineage"]
    return lineage.split("/")[0]


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
