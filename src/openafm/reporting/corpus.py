"""Chapters of the report on data: the funnel, what the filters catch, the tokenizer."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from openafm.evaluation.intervals import rate
from openafm.reporting import plots
from openafm.reporting.document import Artifacts, Block, Cell, Chapter, Figure, Rows, Table, Text, number, percent

DATA_STEPS = ("extract", "clean", "dedup", "quality", "decontaminate")


def funnel_of(artifacts: Artifacts) -> list[dict[str, Any]]:
    """The funnel of the last data step that has run."""
    found = [artifacts.json(step, "funnel.json") for step in reversed(DATA_STEPS) if artifacts.has(step)]
    return next((funnel for funnel in found if funnel), [])


def stages_of(artifacts: Artifacts) -> list[str]:
    """Names of the filters in the order in which they judged: each step's funnel adds its own."""
    stages: list[str] = []
    for step in DATA_STEPS:
        if artifacts.has(step):
            for entry in artifacts.json(step, "funnel.json") or []:
                if entry["stage"] and entry["stage"] not in stages:
                    stages.append(entry["stage"])
    return stages


def funnel(artifacts: Artifacts) -> Iterator[Block]:
    """Documents left after each filter, and why the others went."""
    entries, stages = funnel_of(artifacts), stages_of(artifacts)
    flows = sorted({entry["flow"] for entry in entries})
    left = {flow: sum(e["bytes"] for e in entries if e["flow"] == flow) / 1e6 for flow in flows}
    bars = {"all documents": dict(left)}
    for stage in stages:
        for flow in flows:
            left[flow] -= sum(e["bytes"] for e in entries if e["flow"] == flow and e["stage"] == stage) / 1e6
        bars[f"after {stage}"] = {flow: max(0.0, size) for flow, size in left.items()}
    caption = "Text that is left after each filter, by flow, planted documents included. Filters judge in this order."
    yield Figure(caption, plots.bars(bars, "megabytes of text", name="funnel"))
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry in entries:
        total = sums[(entry["stage"], entry["reason"])]
        for i, column in enumerate(("real", "planted", "bytes")):
            total[i] += entry[column]
    ordered = sorted(sums.items(), key=lambda item: (_place(item[0][0], stages), -item[1][0], item[0][1]))
    rows = [
        [stage or "kept", reason if stage else "", number(real), number(planted), number(size / 1e6)]
        for (stage, reason), (real, planted, size) in ordered
    ]
    yield Table(
        "Every document has one verdict. `openafm why URL` tells any document's. Planted documents were rendered to "
        "measure the filters and are counted apart.", ["filter", "reason", "real", "planted", "MB"], rows, 2,
    )  # fmt: skip


def _place(stage: str, stages: list[str]) -> int:
    return stages.index(stage) if stage in stages else len(stages)


def recalls(artifacts: Artifacts) -> Iterator[Block]:
    """What part of the planted dirt each step caught, beside what the same filters did to real documents."""
    rows: Rows = []
    for step in DATA_STEPS:
        metrics = artifacts.metrics(step)
        found = metrics.get("planted_recall", metrics.get("planted"))
        for kind, counts in found.items() if isinstance(found, dict) else ():
            if counts.get("planted"):
                caught = int(counts["caught" if "caught" in counts else "found"])
                share = rate(caught, counts["planted"])
                interval = f"{100 * (share.low or 0):.0f}–{100 * (share.high or 0):.0f}"
                recall = Cell(f"{100 * share.value:.1f}", interval)
                hits = _real_hits(artifacts, step, kind)
                gone = number(counts.get("gone"))
                rows.append([f"{step}: {kind}", number(counts["planted"]), number(caught), gone, recall, number(hits)])
    yield Table(
        "Planted documents: those that the filter for their kind of dirt caught, those gone for another reason, and "
        "recall with Wilson's 95% intervals. They come from templates, easier than the web's own dirt. Real documents: "
        "how many the same filter dropped or redacted.",
        ["step and kind", "planted", "caught", "gone otherwise", "recall %", "real documents hit"],
        rows,
    )
    yield from audit(artifacts)
    yield from precision(artifacts)


def _real_hits(artifacts: Artifacts, step: str, kind: str) -> int:
    """Real documents that the filter for this kind dropped or redacted."""
    kind = kind.removesuffix("_copy")
    if hits := artifacts.metrics(step).get("real_hits"):
        return sum(n for reason, n in hits.items() if kind in reason.split("."))
    entries = artifacts.json(step, "funnel.json") or []
    return sum(entry["real"] for entry in entries if entry["stage"] == step and kind in entry["reason"].split("."))


def audit(artifacts: Artifacts) -> Iterator[Block]:
    """A real document for each reason, so that a reader can judge the filters' precision."""
    first: dict[str, dict[str, Any]] = {}
    for entry in artifacts.lines("clean", "audit.jsonl"):
        first.setdefault(entry["reason"], entry)
    rows = [[reason, entry["url"], _shown(entry)] for reason, entry in sorted(first.items())]
    yield Table(
        "Precision on real pages takes a reader: nobody has labelled them. The first real document of each reason of "
        "step clean; `clean/audit.jsonl` in the run's folder has up to 20 of each.",
        ["reason", "document", "evidence"], rows, 3,
    )  # fmt: skip


def _shown(entry: dict[str, Any]) -> str:
    """The evidence; of redactions only the masked finding, since the text around it may hold another one."""
    found = re.search(r"\[[^\]]*\]", entry["evidence"]) if entry["reason"].startswith("redacted") else None
    return found.group() if found else str(entry["evidence"])


def precision(artifacts: Artifacts) -> Iterator[Block]:
    """What share of the real documents each filter dropped."""
    entries, stages = funnel_of(artifacts), stages_of(artifacts)
    judged = sum(entry["real"] for entry in entries)
    rows = []
    for stage in stages:
        dropped = sum(entry["real"] for entry in entries if entry["stage"] == stage)
        rows.append([stage, number(judged), number(dropped), percent(dropped / judged if judged else None)])
        judged -= dropped
    caption = "Real documents that each step read and dropped, for whatever reason."
    yield Table(caption, ["step", "real documents read", "dropped", "share"], rows)


def quality(artifacts: Artifacts) -> Iterator[Block]:
    """The judge's agreement with itself, and the classifier's with the judge."""
    for step, what in (("judge", "The judge"), ("quality", "The classifier distilled from it")):
        if facts := artifacts.facts(step):
            yield Table(f"{what} (step {step}).", ["measure", "value"], [[name, value] for name, value in facts])
    yield Text(
        "The judge is SmolLM2-135M-Instruct: its yes/no logit scores a sample, and a small classifier learns that."
    )


def tokenizer(artifacts: Artifacts) -> Iterator[Block]:
    """Vocabulary and compression by flow."""
    metrics = artifacts.metrics("tokenizer")
    rows = [
        [flow, number(size["documents"]), number(size["characters"]), number(size["bytes_per_token"])]
        for flow, size in metrics.get("flows", {}).items()
    ]
    yield Table(
        f"SentencePiece BPE of {number(metrics.get('vocab_size'))} tokens, byte fallback, every digit its own token: "
        "the sample it was learned from, and UTF-8 bytes a token stands for (more is shorter sequences).",
        ["flow", "documents", "characters", "bytes a token"], rows,
    )  # fmt: skip


CHAPTERS = (
    Chapter("Data funnel", ("extract",), funnel),
    Chapter("What the filters catch", ("extract",), recalls),
    Chapter("Quality by a model", ("quality",), quality),
    Chapter("Tokenizer", ("tokenizer",), tokenizer),
)
