"""Chapters of the report on data: the funnel, what the filters catch, the tokenizer."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from openafm.evaluation.intervals import rate
from openafm.reporting import plots
from openafm.reporting.document import (
    Artifacts,
    Block,
    Cell,
    Chapter,
    Figure,
    Rows,
    Table,
    Text,
    last,
    number,
    percent,
    share_cell,
)

FILTERS = ("extract", "clean", "dedup", "quality", "decontaminate")
"""The stages that judge documents."""


def funnel_of(artifacts: Artifacts) -> list[dict[str, Any]]:
    """The funnel of the last filter that has run."""
    found = [artifacts.json(step, "funnel.json") for step in reversed(artifacts.of(*FILTERS))]
    return next((funnel for funnel in found if funnel), [])


def filters_of(artifacts: Artifacts) -> list[str]:
    """Names of the filters in the order in which they judged: each step's funnel adds its own."""
    entries = [entry for step in artifacts.of(*FILTERS) for entry in artifacts.json(step, "funnel.json") or []]
    return list(dict.fromkeys(entry["stage"] for entry in entries if entry["stage"]))


def funnel(artifacts: Artifacts) -> Iterator[Block]:
    """Documents left after each filter, and why the others went."""
    entries, filters = funnel_of(artifacts), filters_of(artifacts)
    flows = sorted({entry["flow"] for entry in entries})
    left = {flow: sum(e["bytes"] for e in entries if e["flow"] == flow) / 1e6 for flow in flows}
    bars = {"all documents": dict(left)}
    for name in filters:
        for flow in flows:
            left[flow] -= sum(e["bytes"] for e in entries if e["flow"] == flow and e["stage"] == name) / 1e6
        bars[f"after {name}"] = {flow: max(0.0, size) for flow, size in left.items()}
    caption = (
        "Text left after each filter, in megabytes, by flow, planted documents included. Filters judge in this order."
    )
    alt = "; ".join(f"{name}: {sum(sizes.values()):.1f} MB" for name, sizes in bars.items())
    yield Figure(caption, plots.bars(bars, "megabytes of text", name="funnel", alt=alt))
    yield Table(
        "Real documents of each flow. Planted ones are counted apart, below.",
        ["flow", "read", "kept", "share"],
        [_flow_row(flow, [e for e in entries if e["flow"] == flow]) for flow in flows],
    )
    yield _reasons(entries, filters)
    yield Table(
        "Real documents that each filter read and dropped, for whatever reason.",
        ["filter", "read", "dropped", "share"], _drops(entries, filters),
    )  # fmt: skip


def _flow_row(flow: str, entries: list[dict[str, Any]]) -> list[Cell | str]:
    kept = [entry for entry in entries if not entry["stage"]]
    read, left = sum(e["real"] for e in entries), sum(e["real"] for e in kept)
    return [flow, number(read), number(left), percent(left / read if read else None)]


def _reasons(entries: list[dict[str, Any]], filters: list[str]) -> Table:
    """Every reason a document went for."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry in entries:
        total = sums[(entry["stage"], entry["reason"])]
        for i, column in enumerate(("real", "planted", "bytes")):
            total[i] += entry[column]
    ordered = sorted(sums.items(), key=lambda item: (_place(item[0][0], filters), -item[1][0], item[0][1]))
    rows = [
        [name or "kept", reason if name else "", number(real), number(planted), number(size / 1e6)]
        for (name, reason), (real, planted, size) in ordered
    ]
    return Table(
        "Every document has one verdict; `openafm why URL` tells any document's. Planted documents were rendered to "
        "measure the filters.", ["filter", "reason", "real", "planted", "MB"], rows, 2,
    )  # fmt: skip


def _drops(entries: list[dict[str, Any]], filters: list[str]) -> Rows:
    judged = sum(entry["real"] for entry in entries)
    rows: Rows = []
    for name in filters:
        dropped = sum(entry["real"] for entry in entries if entry["stage"] == name)
        rows.append([name, number(judged), number(dropped), percent(dropped / judged if judged else None)])
        judged -= dropped
    return rows


def _place(name: str, filters: list[str]) -> int:
    return filters.index(name) if name in filters else len(filters)


def planted_counts(artifacts: Artifacts) -> Iterator[tuple[str, str, int, int, int | None]]:
    """Step, kind of dirt, and how many were planted, caught by the filter for it, and gone for another reason."""
    for step in artifacts.of(*FILTERS):
        metrics = artifacts.metrics(step)
        found = metrics.get("planted_recall", metrics.get("planted"))
        for kind, counts in found.items() if isinstance(found, dict) else ():
            if counts.get("planted"):
                caught = int(counts["caught" if "caught" in counts else "found"])
                yield step, kind, counts["planted"], caught, counts.get("gone")


def precision_counts(artifacts: Artifacts) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Step, reason, and how many real hits of it there were, how many of them readers found right and wrong."""
    for step in artifacts.of(*FILTERS):
        for reason, counts in (artifacts.metrics(step).get("precision_on_real") or {}).items():
            yield step, reason, counts


def recalls(artifacts: Artifacts) -> Iterator[Block]:
    """Recall on planted dirt and precision on real pages, in columns of their own."""
    hits = {(step, reason): counts for step, reason, counts in precision_counts(artifacts)}
    rows: Rows = []
    for step, kind, planted, caught, gone in planted_counts(artifacts):
        same = [key for key in hits if key[0] == step and kind.removesuffix("_copy") in re.split(r"[._]", key[1])]
        found = [hits.pop(key) for key in same]
        recall = share_cell(rate(caught, planted))
        rows.append([f"{step}: {kind}", number(planted), number(caught), number(gone), recall, *_precision(found)])
    for (step, reason), counts in hits.items():
        rows.append([f"{step}: {reason}", "–", "–", "–", "–", *_precision([counts])])
    yield Table(
        "Recall is the share of planted documents that the filter for their kind of dirt caught, with Wilson's 95% "
        "interval; some went for another reason before it saw them. Planted dirt comes from templates and is easier "
        "than the web's own. Precision is the share of the filter's hits in real documents that are right, of those "
        "that were read. The reader was a language model working for the developers, and filters were mended on the "
        "same pages: it is optimistic.",
        ["step and kind", "planted", "caught", "gone otherwise", "recall on planted, %", "hits in real documents",
         "read", "precision on real, %"],
        rows,
    )  # fmt: skip
    yield from audit(artifacts)


def _precision(found: list[dict[str, Any]]) -> list[str | Cell]:
    """Hits, hits read, and the share of right ones among these."""
    right, read = (sum(c["true"] for c in found), sum(c["true"] + c["false"] for c in found))
    shown = share_cell(rate(right, read)) if read else Cell("–")
    return [number(sum(c["hits"] for c in found)), number(read), shown]


def audit(artifacts: Artifacts) -> Iterator[Block]:
    """A real document for each reason, so that a reader can judge the filters' precision."""
    first: dict[str, dict[str, Any]] = {}
    for step in artifacts.of("clean"):
        for entry in artifacts.lines(step, "audit.jsonl"):
            first.setdefault(entry["reason"], entry)
    rows = [[reason, entry["url"], _shown(entry)] for reason, entry in sorted(first.items())]
    yield Table(
        "For a reader who judges precision: the first real document of each reason of the cleaning. `audit.jsonl` in "
        "that step's folder has them all.",
        ["reason", "document", "evidence"], rows, 3,
    )  # fmt: skip


def _shown(entry: dict[str, Any]) -> str:
    """The evidence; of redactions only the masked finding, since the text around it may hold another one."""
    found = re.search(r"\[[^\]]*\]", entry["evidence"]) if entry["reason"].startswith("redacted") else None
    return found.group() if found else str(entry["evidence"])


def quality(artifacts: Artifacts) -> Iterator[Block]:
    """The judge's agreement with itself, and the classifier's with the judge."""
    yield Text(
        "The judge is SmolLM2-135M-Instruct, which stands in for the server-side model: its yes/no logit scores a "
        "sample of pages, and a small classifier learns that. Nothing is dropped where the classifier does not "
        "foretell the judge better than chance."
    )
    for stage, what in (("judge", "The judge, and its agreement with itself in a second wording"),
                        ("quality", "The classifier distilled from it, on pages it has not seen")):  # fmt: skip
        for step in artifacts.of(stage):
            facts = [[name, value] for name, value in artifacts.facts(step)]
            yield Table(f"{what} (step {step}).", ["measure", "value"], facts)


def tokenizer(artifacts: Artifacts) -> Iterator[Block]:
    """Vocabulary and compression by flow."""
    metrics = artifacts.metrics(last(artifacts.of("tokenizer")))
    rows = [
        [flow, number(size["documents"]), number(size["characters"]), number(size["bytes_per_token"])]
        for flow, size in metrics.get("flows", {}).items()
    ]
    yield Table(
        f"SentencePiece BPE of {number(metrics.get('vocab_size'))} tokens, byte fallback, every digit its own token: "
        "the sample it was learned from, and UTF-8 bytes a token stands for (more is shorter sequences).",
        ["flow", "documents", "characters", "bytes a token"], rows,
    )  # fmt: skip


def mixture(artifacts: Artifacts) -> Iterator[Block]:
    """What each pretraining stage reads: shares of the sources, and how often it reads them."""
    read = {step: found for step in artifacts.of("pretrain") if (found := artifacts.metrics(step).get("epochs"))}
    shares: dict[str, dict[str, float]] = {}
    for step, epochs in read.items():
        weights = artifacts.manifest(step).get("config", {}).get("mixture", {})
        there = {source: weights.get(source, 0.0) for source in epochs}
        whole = sum(there.values())
        shares[step] = {source: 100 * weight / whole for source, weight in there.items()} if whole else {}
    shares = {step: found for step, found in shares.items() if found}
    sources = list(dict.fromkeys(source for found in shares.values() for source in found))
    if shares:
        ordered = {step: {s: found[s] for s in sources if s in found} for step, found in shares.items()}
        alt = "; ".join(
            f"{step}: " + ", ".join(f"{s} {v:.0f}%" for s, v in row.items()) for step, row in ordered.items()
        )
        yield Figure(
            "What each pretraining stage reads: share of its tokens by source, as the recipe weighs them; sources that "
            "this machine could not get leave their share to the others.",
            plots.bars(ordered, "share of the stage's tokens, %", name="mixture", alt=alt),
        )
    yield Table(
        "The same in numbers: share in percent, and in small print how often the stage reads that source's training "
        "text (above 1 it is read again).", ["stage", "tokens", *sources],
        [[step, number(artifacts.metrics(step).get("tokens")),
          *(Cell(f"{row[s]:.1f}", f"{read[step][s]:.3g} times") if s in row else Cell("–") for s in sources)]
         for step, row in shares.items()],
    )  # fmt: skip


CHAPTERS = (
    Chapter("Data funnel", ("extract",), funnel),
    Chapter("What the filters catch", ("clean",), recalls),
    Chapter("Quality by a model", ("quality",), quality),
    Chapter("Tokenizer", ("tokenizer",), tokenizer),
    Chapter("Mixture", ("pretrain",), mixture),
)
