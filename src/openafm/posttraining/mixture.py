"""The SFT mixture: human and synthetic examples filtered, deduplicated, decontaminated, split and weighed.

AFM report (arXiv 2407.21075), section 4.1 and 4.2.1: quality filters, deduplication, mixture weights by ablation. Step
`sft_mixture`; `sft_arms` then trains its arms for a short while and picks one.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from openafm import jsonl
from openafm.data.decontaminate import NgramIndex, add_item
from openafm.data.dedup import near_duplicates
from openafm.posttraining.examples import Row, question, share, write_json
from openafm.scoring import checks
from openafm.stage import Config, Context, Metrics


class MixtureConfig(Config):
    """What becomes of the parts' examples."""

    arms: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Mixture arms: name -> part -> weight, its share of the arm's examples. Empty: one arm `all`, as things are."""
    arm_examples: int = 0
    """Examples of an arm; 0 takes as many as there are in training. Small parts are repeated, large ones cut."""
    validation_percent: float = 4.0
    """Share of the problems on which choices are made (arms, checkpoints, committee)."""
    heldout_percent: float = 4.0
    """Share of the problems on which results are reported."""
    longest_answer: int = 2000
    """Longest answer, in characters."""
    near_copy: float = 0.8
    """Jaccard similarity of word 5-grams from which two unchecked examples are the same."""
    common_ngram: int = 1000
    """Number of examples from which a benchmark's n-gram is a common phrase (AFM's threshold)."""

    @field_validator("arms")
    @classmethod
    def _weights(cls, arms: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, weights in arms.items():
            if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
                raise ValueError(f"arm {name}: weights must not be negative, and their sum must be above 0")
        return arms


def sft_mixture(config: MixtureConfig, context: Context, *, parts: dict[str, Path], sources: Path) -> Metrics:
    """Write `train.jsonl`, `validation.jsonl`, `heldout.jsonl`, `train_ARM.jsonl` and `rejected.jsonl`."""
    rows = [{**row, "part": part} for part, folder in parts.items() for row in jsonl.read(folder / "examples.jsonl")]
    judged, metrics = judge(rows, config, benchmarks(sources))
    kept = [row for row, reason in zip(rows, judged, strict=True) if not reason]
    jsonl.write(
        context.out / "rejected.jsonl",
        ({**row, "reason": reason} for row, reason in zip(rows, judged, strict=True) if reason),
    )
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "heldout": []}
    for row in kept:
        splits[split_of(row, config, context.seed)].append(row)
    for name, members in splits.items():
        random.Random(f"{context.seed}/{name}").shuffle(members)
        jsonl.write(context.out / f"{name}.jsonl", members)
        metrics[name] = shares(members)
    arms = config.arms or {"all": dict(Counter(row["part"] for row in splits["train"]))}
    metrics["arms"] = {}
    for name, weights in arms.items():
        mixed = mix(splits["train"], weights, config.arm_examples or len(splits["train"]), f"{context.seed}/{name}")
        jsonl.write(context.out / f"train_{name}.jsonl", mixed)
        metrics["arms"][name] = shares(mixed)
    write_json(context.out / "mixture.json", metrics)
    counts = [metrics[name]["examples"] for name in ("train", "validation", "heldout")]
    told = "{:,} examples to train on, {:,} to choose by, {:,} held out".format(*counts)
    return {"headline": f"{told}; {metrics['train']['human_share']:.1%} by people", **metrics}


def judge(rows: Sequence[Row], config: MixtureConfig, index: NgramIndex) -> tuple[list[str], dict[str, Any]]:
    """Return each row's reason to be left out ("" if none), and counts of reasons by part."""
    reasons = [fault(row, config) for row in rows]
    for stage in (_exact_copies, _near_copies, _contaminated):
        left = [i for i, reason in enumerate(reasons) if not reason]
        for place in stage([rows[i] for i in left], config, index):
            reasons[left[place]] = stage.__name__.strip("_")
    counts: dict[str, dict[str, int]] = {}
    for row, reason in zip(rows, reasons, strict=True):
        part = counts.setdefault(row["part"], {})
        part[reason or "kept"] = part.get(reason or "kept", 0) + 1
    return reasons, {"parts": {part: dict(sorted(found.items())) for part, found in counts.items()}}


def fault(row: Row, config: MixtureConfig) -> str:
    """The first quality rule an example breaks, or ""."""
    answer, messages = row["answer"], row["messages"]
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        return "no_question"
    if not answer.strip():
        return "no_answer"
    if len(answer) > config.longest_answer:
        return "long_answer"
    if "\ufffd" in answer or "\x00" in answer:
        return "broken_text"
    words = answer.split()
    # Sampled text that got stuck: fewer than one word in four is new. Short answers may well repeat themselves.
    if len(words) >= 20 and len(set(words)) < len(words) / 4:
        return "repetition"
    # People's summaries are no worse for words that the source does not have.
    if row["origin"] == "synthetic" and row.get("check") and not checks.passes(row, answer):
        return "wrong_answer"
    return ""


def _exact_copies(rows: Sequence[Row], config: MixtureConfig, index: NgramIndex) -> list[int]:
    """Places of examples whose question, but for case and spacing, has been asked before."""
    seen: set[str] = set()
    copies = []
    for place, row in enumerate(rows):
        asked = " ".join(question(row).casefold().split())
        if asked in seen:
            copies.append(place)
        seen.add(asked)
    return copies


def _near_copies(rows: Sequence[Row], config: MixtureConfig, index: NgramIndex) -> list[int]:
    """Places of all but the first of near copies; checked problems may differ in one number, so they are left alone."""
    unchecked = [place for place, row in enumerate(rows) if not row.get("check")]
    texts = [f"{question(rows[place])}\n{rows[place]['answer']}" for place in unchecked]
    groups = near_duplicates(texts, config.near_copy) if texts else []
    return sorted(unchecked[i] for group in groups for i in sorted(group)[1:])


def _contaminated(rows: Sequence[Row], config: MixtureConfig, index: NgramIndex) -> list[int]:
    """Places of examples that hold a benchmark item's n-gram, common phrases excepted."""
    found = index.find([f"{question(row)}\n{row['answer']}" for row in rows])
    collisions = Counter(number for numbers in found for number in numbers)
    return [
        place
        for place, numbers in enumerate(found)
        if any(collisions[number] < config.common_ngram for number in numbers)
    ]


def benchmarks(sources: Path) -> NgramIndex:
    """Index every item of every benchmark that was fetched."""
    index = NgramIndex()
    for path in sorted((sources / "benchmarks").glob("*.jsonl")):
        for row in jsonl.read(path):
            add_item(index, path.stem, row)
    return index


def problem(row: Row) -> str:
    """What an example asks, wording aside: the key in a synthetic example's `lineage` HOW/TASK/KEY, else its question.

    So the rewordings of a problem, and the tasks made of it, share a split.
    """
    parts = row.get("lineage", "").split("/", 2)
    return parts[2] if row["origin"] == "synthetic" and len(parts) == 3 else question(row)


def split_of(row: Row, config: MixtureConfig, seed: int) -> str:
    """The split of an example, by a hash of its problem."""
    place = 100 * share(seed, problem(row))
    if place < config.heldout_percent:
        return "heldout"
    return "validation" if place < config.heldout_percent + config.validation_percent else "train"


def mix(rows: Sequence[Row], weights: Mapping[str, float], count: int, seed: str) -> list[Row]:
    """About `count` examples with the parts' shares by weight: whole passes over a part, then a seeded rest of it."""
    total = sum(weights.values())
    mixed: list[Row] = []
    for part, weight in sorted(weights.items()):
        members = [row for row in rows if row["part"] == part]
        if not members and weight > 0:
            raise ValueError(f"arm weighs the part {part!r}, which has no training examples; take it out of `arms`")
        passes, rest = divmod(round(count * weight / total), max(1, len(members)))
        mixed += members * passes + random.Random(f"{seed}/{part}").sample(members, rest)
    random.Random(seed).shuffle(mixed)
    return mixed


def shares(rows: Sequence[Row]) -> dict[str, Any]:
    """Number of examples, and how they divide between people and programs, and between the parts."""
    origins, parts = Counter(row["origin"] for row in rows), Counter(row["part"] for row in rows)
    characters = Counter(dict.fromkeys(origins, 0))
    for row in rows:
        characters[row["origin"]] += len(row["answer"])
    return {
        "examples": len(rows),
        "human_share": round(origins["human"] / max(1, len(rows)), 4),
        "synthetic_share": round(origins["synthetic"] / max(1, len(rows)), 4),
        "human_share_of_characters": round(characters["human"] / max(1, characters.total()), 4),
        "parts": {part: round(n / len(rows), 4) for part, n in sorted(parts.items())},
    }
