"""Step `summary_data`: the same texts with people's summaries and with a model's, and held-out ones of other packages.

Texts are mails (people's subjects are their summaries) and package descriptions (their synopses). The split is by
source package, so that siblings built from one source are on one side; texts that nearly repeat a held-out one leave
the training side.
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from openafm import jsonl
from openafm.data.dedup import near_duplicates
from openafm.engine.package import find_package
from openafm.sampling.opening import open_sampler
from openafm.sampling.sampler import TorchSampler
from openafm.scoring import checks
from openafm.stage import Config, Context, Metrics
from openafm.synthesis.human import summarised
from openafm.synthesis.ready.filters import entailment, form_reason, invention_reason
from openafm.synthesis.ready.layouts import Mail, cut
from openafm.synthesis.ready.tasks import Summaries
from openafm.synthesis.summaries import with_initials
from openafm.synthesis.tasks import Example
from openafm.synthesis.writer import Writer, line

KINDS = ("mails", "synopses")
NEAR = 0.6
"""Jaccard similarity of word 5-grams from which on a training text repeats a held-out one."""


class SummaryDataConfig(Config):
    """How many texts of each kind, and which."""

    train: int = 150
    """Most training texts of each kind."""
    heldout: int = 40
    """Most held-out texts of each kind."""
    heldout_share: float = 0.25
    """Share of the source packages that are held out."""
    per_source: int = 60
    """Most texts of one source package."""
    min_text_words: int = 25
    max_text_words: int = 60
    """Texts are cut after so many words."""
    min_words: int = 3
    max_words: int = 16
    """Longest summary in words."""
    supported: float = 0.6
    """Share of a summary's words that its text must have, people's and the model's alike."""
    written: int = 1
    """Summaries that the writer proposes for a training text; the one that its text supports best is kept."""
    engine: Literal["torch", "native"] = "native"
    """What decodes the writer."""


def summary_data(config: SummaryDataConfig, context: Context, *, sources: Path, writer: Path) -> Metrics:
    """Write `human/` and `written/`, each with examples.jsonl and heldout.jsonl, and `rejected.jsonl` of the writer.

    `writer` is a model folder: it writes, and judges whether its texts say what was written.
    """
    torch.set_num_threads(context.hardware.threads)
    if find_package(writer):
        raise ValueError(f"{writer} is a package, which cannot score what it wrote: give the writer as a model folder")
    train, heldout, passed_over = _people(config, context, sources)
    for part in ("human", "written"):
        (context.out / part).mkdir()
        jsonl.write(context.out / part / "heldout.jsonl", heldout)
    jsonl.write(context.out / "human" / "examples.jsonl", train)
    kept, rejected, tokens = _written(config, context, writer, train)
    jsonl.write(context.out / "written" / "examples.jsonl", kept)
    jsonl.write(context.out / "rejected.jsonl", rejected)
    reasons = [row["reason"] for row in rejected]
    counts = {"human": len(train), "written": len(kept), "heldout": len(heldout)}
    return {
        "headline": ", ".join(f"{count} {name}" for name, count in counts.items()),
        **counts,
        "sources": {
            name: len({row["source"] for row in rows}) for name, rows in (("train", train), ("heldout", heldout))
        },
        "passed_over": passed_over,
        "writer": {"tokens": tokens, "proposed": config.written * len(train), "kept": len(kept)},
        "rejected": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }


def _people(
    config: SummaryDataConfig, context: Context, sources: Path
) -> tuple[list[Example], list[Example], dict[str, int]]:
    """Training and held-out examples as people summed them up, and how many were passed over, by reason."""
    built_from = {row["id"]: row["source"] for row in jsonl.read(sources / "human" / "packages.jsonl")}
    train: list[Example] = []
    heldout: list[Example] = []
    passed: dict[str, int] = {}
    for kind in KINDS:
        parts: dict[bool, list[Example]] = {False: [], True: []}
        rows = summarised(sources, kind)
        random.Random(f"{context.seed}/{kind}").shuffle(rows)
        taken: dict[str, int] = {}
        for row in rows:
            package = row["source"] if kind == "mails" else row["id"].partition("/")[2]
            source = built_from.get(package, package)
            example = _example({**row, "text": cut(row["text"], config.max_text_words)}, kind, source)
            reason = _reason(config, example)
            if reason is None and taken.get(source, 0) >= config.per_source:
                reason = "enough_of_source"
            if reason is None:
                taken[source] = taken.get(source, 0) + 1
                parts[_held_out(source, config.heldout_share, context.seed)].append(example)
            else:
                passed[reason] = passed.get(reason, 0) + 1
        held = _unlike(parts[True])[: config.heldout]
        near = _near(held, parts[False])
        passed["near_heldout"] = passed.get("near_heldout", 0) + len(near)
        train += [row for i, row in enumerate(parts[False]) if i not in near][: config.train]
        heldout += held
    return train, heldout, dict(sorted(passed.items()))


def _held_out(source: str, share: float, seed: int) -> bool:
    """Whether a source package is held out: by the digest of its name, the same in every run of a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/summary/{source}".encode()).digest()[:4], "big") < share * 2**32


def _example(row: dict[str, Any], kind: str, source: str) -> Example:
    if kind == "mails":
        task = Summaries(mails=(Mail.model_validate({"from": row["from"], "date": row["date"], "body": row["text"]}),))
    else:
        task = Summaries(text=row["text"])
    answer = " ".join(row["summary"].split())
    return {
        "id": row["id"],
        "task": "summaries",
        "kind": kind,
        "source": source,
        "messages": [{"role": "user", "content": task.prompt()}],
        "answer": answer,
        "check": task.check(answer),
        "origin": "human",
        "lineage": f"{kind}/{source}/{row['id']}",
    }


def _reason(config: SummaryDataConfig, example: Example) -> str | None:
    """Why a person's summary is passed over, or None."""
    source, answer = example["check"]["source"], example["answer"]
    if len(source.split()) < config.min_text_words:
        return "text_too_short"
    reason = form_reason(source, answer, config.max_words, config.min_words)
    if reason is None and checks.faithful(with_initials(source, answer), answer) < config.supported:
        return "not_from_the_text"
    return reason


def _unlike(examples: Sequence[Example]) -> list[Example]:
    """The examples without those that nearly repeat another."""
    repeated = {
        i for group in near_duplicates([e["check"]["source"] for e in examples], NEAR) for i in sorted(group)[1:]
    }
    return [example for i, example in enumerate(examples) if i not in repeated]


def _near(heldout: Sequence[Example], train: Sequence[Example]) -> set[int]:
    """Numbers of training examples that nearly repeat a held-out one, or have its summary."""
    summaries = {example["answer"].casefold() for example in heldout}
    texts = [example["check"]["source"] for example in [*heldout, *train]]
    groups = [group for group in near_duplicates(texts, NEAR) if min(group) < len(heldout)]
    near = {i - len(heldout) for group in groups for i in group if i >= len(heldout)}
    return near | {i for i, example in enumerate(train) if example["answer"].casefold() in summaries}


def _written(
    config: SummaryDataConfig, context: Context, folder: Path, train: Sequence[Example]
) -> tuple[list[Example], list[Example], int]:
    """The writer's summaries of the training texts, the best of each that passes; those rejected; tokens written."""
    dtype = torch.bfloat16 if context.hardware.precision == "bfloat16" else torch.float32
    writer = Writer(open_sampler(str(folder), engine=config.engine, dtype=dtype), context, folder.name)
    texts = [example["messages"][0]["content"].removeprefix(Summaries.instruction) for example in train]
    made = writer.write("ready_summary", [{"text": text} for text in texts], n=config.written, max_tokens=32)
    passing: list[Example] = []
    rejected: list[Example] = []
    for example, answers in zip(train, made, strict=True):
        for number, answer in enumerate(dict.fromkeys(map(line, answers))):
            new = {**example, "id": f"written-{number}-{example['id']}", "answer": answer, "origin": "synthetic"}
            new["lineage"] = f"writer-summary/{example['lineage']}"
            source = example["check"]["source"]
            reason, evidence = _reason(config, new), ""
            if reason is None:
                reason, evidence = invention_reason(source, answer)
            if reason is None:
                passing.append(new)
            else:
                rejected.append({**new, "reason": reason, "evidence": evidence})
    if not passing:
        return [], rejected, writer.tokens
    judge = TorchSampler.load(folder, dtype)
    context.report("entailment", 0, None)
    pool = [example["check"]["source"] for example in train]
    sources, answers = [e["check"]["source"] for e in passing], [e["answer"] for e in passing]
    best: dict[str, Example] = {}
    judged = zip(entailment(judge, sources, answers, pool), passing, strict=True)
    for margin, example in sorted(judged, key=lambda pair: -pair[0]):
        told = {**example, "entailment": round(margin, 4)}
        if margin > 0 and example["lineage"] not in best:
            best[example["lineage"]] = told
        else:
            reason = "another_is_better" if margin > 0 else "not_entailed"
            rejected.append({**told, "reason": reason, "evidence": f"{margin:.2f}"})
    return sorted(best.values(), key=lambda example: str(example["lineage"])), rejected, writer.tokens
