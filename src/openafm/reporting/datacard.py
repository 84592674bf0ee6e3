"""The dataset card: what a run's token shards are made of, for whoever trains on them or is asked about them.

`openafm data card RUN` writes it as Markdown from the run's artifacts: sources with licences and terms, counts,
filters, languages, personal data, decontamination, mixtures, and what is known to fall short.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from openafm.data import documents
from openafm.data.audit import last_table
from openafm.data.clean import DROPPED_KINDS, REDACTED_KINDS
from openafm.reporting import markdown
from openafm.reporting.corpus import FILTERS, filters_of, funnel_of, planted_counts, precision_counts
from openafm.reporting.document import Artifacts, last, number, percent

KNOWN_LIMITS = (
    "Recall of the filters is measured on planted documents out of templates, which are easier than real dirt.",
    "Precision is measured on hits that were read by the developers' language model, one reading each; filters were "
    "mended on the same pages.",
    "Names of people are left alone unless a model for them is configured (`person_model`).",
    "The safety model knows the neighbourhood of the rules it was learned from, and nothing that they cannot see.",
    "Licences are what packages declare and files say; nobody has checked that they had the right to.",
)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[_cell(value) for value in row] for row in rows]
    return list(markdown.table(headings, cells)) if cells else ["none"]


def _cell(value: str) -> str:
    """Text from documents and packages, made harmless for Markdown and HTML."""
    plain = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain.replace("|", "\\|").replace("`", "'").replace("[", "\\[")


def _sources(artifacts: Artifacts) -> Iterator[str]:
    for step in artifacts.of("fetch"):
        ledger = artifacts.json(step, "licences.json") or {}
        names = ("package", "version", "flow", "licence", "terms", "stages")
        rows = sorted({tuple(str(entry.get(name, "")) for name in names) for entry in ledger.get("sources", ())})
        yield from _table(("package", "version", "flow", "licence", "terms", "may be read in"), rows)
        missing = ledger.get("missing", {}) | ledger.get("tiers_missing", {})
        if missing:
            yield f"\nNot to be had on that machine: {_cell(', '.join(sorted(missing)))}."


def _counts(artifacts: Artifacts) -> Iterator[str]:
    entries = funnel_of(artifacts)
    splits = artifacts.metrics(last(artifacts.of("shards"))).get("splits", {})
    rows = []
    for flow in sorted({entry["flow"] for entry in entries}):
        of = [entry for entry in entries if entry["flow"] == flow]
        kept = [entry for entry in of if not entry["stage"]]
        tokens = [splits.get(split, {}).get(flow, {}).get("tokens") for split in ("train", "heldout")]
        read, left, size = (sum(e["documents"] for e in of), sum(e["documents"] for e in kept),
                            sum(e["bytes"] for e in kept))  # fmt: skip
        rows.append([flow, number(read), number(left), percent(left / read), number(size / 1e6), *map(number, tokens)])
    yield from _table(("flow", "documents read", "kept", "share", "MB kept", "tokens to train on", "held out"), rows)


def _filters(artifacts: Artifacts) -> Iterator[str]:
    sums: dict[tuple[str, str], Counter[str]] = {}
    for entry in funnel_of(artifacts):
        if entry["stage"]:
            sums.setdefault((entry["stage"], entry["reason"]), Counter()).update(
                {"real": entry["real"], "planted": entry["planted"]}
            )
    order = filters_of(artifacts)
    ordered = sorted(sums.items(), key=lambda item: (order.index(item[0][0]), -item[1]["real"], item[0][1]))
    rows = [[stage, reason, number(n["real"]), number(n["planted"])] for (stage, reason), n in ordered]
    yield from _table(("filter", "reason", "real documents", "planted documents"), rows)


def _languages(run: Path) -> Iterator[str]:
    spoken: Counter[str] = Counter()
    written: Counter[str] = Counter()
    licences: Counter[tuple[str, str]] = Counter()
    for row in documents.rows(last_table(run)):
        if row["flow"] == "code":
            written[row["code_language"] or "unknown"] += 1
        else:
            spoken[row["language"] or "too little prose to tell"] += 1
        if not row["planted"]:
            licences[row["flow"], row["licence"] or "none declared"] += 1
    yield from _table(("language of the text", "documents"), [[name, number(n)] for name, n in spoken.most_common()])
    yield ""
    yield from _table(("programming language", "documents"), [[name, number(n)] for name, n in written.most_common()])
    yield ""
    rows = [[flow, name, number(n)] for (flow, name), n in sorted(licences.items())]
    yield from _table(("flow", "licence of the document", "kept documents"), rows)


def _personal(artifacts: Artifacts) -> Iterator[str]:
    yield (
        f"Documents with {', '.join(kind.replace('_', ' ') + 's' for kind in DROPPED_KINDS)} are dropped, and those "
        f"that hold very much personal data. Findings of {', '.join(REDACTED_KINDS)} are replaced by placeholders such "
        "as &lt;EMAIL&gt;. Precision and recall, as far as they are measured:\n"
    )
    planted = [[f"{step}: {kind}", number(there), percent(caught / there), "", ""]
               for step, kind, there, caught, _ in planted_counts(artifacts)]  # fmt: skip
    real = []
    for step, reason, counts in precision_counts(artifacts):
        read = counts["true"] + counts["false"]
        right = percent(counts["true"] / read) if read else "not read"
        real.append([f"{step}: {reason}", "", "", number(counts["hits"]), right])
    headings = ("filter and kind", "planted", "recall on planted", "hits in real documents", "right, of those read")
    yield from _table(headings, planted + real)


def _decontamination(artifacts: Artifacts) -> Iterator[str]:
    for step in artifacts.of("decontaminate"):
        metrics = artifacts.metrics(step)
        yield f"Rule: {_cell(metrics.get('rule', ''))}.\n"
        dropped = metrics.get("dropped", {})
        rows = [
            [name, *(number(counts.get(key)) for key in ("items", "ngrams", "too_short")),
             number(dropped.get(f"benchmark.{name}", 0))]
            for name, counts in (metrics.get("benchmarks") or {}).items()
        ]  # fmt: skip
        yield from _table(("benchmark", "items", "n-grams", "items too short", "documents dropped"), rows)


def _mixtures(artifacts: Artifacts) -> Iterator[str]:
    rows = []
    for step in artifacts.of("pretrain"):
        config: dict[str, Any] = artifacts.manifest(step).get("config", {})
        weights = ", ".join(f"{name} {weight:g}" for name, weight in config.get("mixture", {}).items())
        read = artifacts.metrics(step).get("epochs", {})
        cap = config.get("max_epochs")
        rows.append([step, weights, number(config.get("tokens")), ", ".join(f"{k} {v:g}" for k, v in read.items()),
                     "none" if cap is None else str(cap)])  # fmt: skip
    yield from _table(("stage", "weights", "tokens", "epochs read", "cap on epochs"), rows)


def _synthetic(artifacts: Artifacts) -> Iterator[str]:
    rows = [
        [step, part, number(counts.get("kept", 0)), ", ".join(f"{k} {v}" for k, v in counts.items() if k != "kept")]
        for step in artifacts.of("screen")
        for part, counts in (artifacts.metrics(step).get("parts") or {}).items()
    ]
    yield from _table(("step", "part", "examples kept", "rejected, by reason"), rows)


def data_card(run: Path) -> str:
    """The card of a run's data as Markdown. Raises ValueError where no filter has run."""
    artifacts = Artifacts.of_run(run)
    if not artifacts.of(*FILTERS):
        raise ValueError(f"{run} has no documents yet: `openafm run nano --until shards` makes them")
    quality = [f"- {name}: {_cell(value)}" for step in artifacts.of("judge", "quality")
               for name, value in artifacts.facts(step)]  # fmt: skip
    chapters = {
        "Sources, licences and terms": _sources(artifacts),
        "Counts": _counts(artifacts),
        "Filters": _filters(artifacts),
        "Languages and licences of what is kept": _languages(run),
        "Personal data": _personal(artifacts),
        "Quality by a model": iter(quality),
        "Decontamination": _decontamination(artifacts),
        "Mixtures": _mixtures(artifacts),
        "Synthetic and human examples": _synthetic(artifacts),
        "Known limits": iter([f"- {limit}" for limit in KNOWN_LIMITS]),
    }
    lines = [
        f"# Dataset card: {_cell(run.name)}\n",
        "Counts are of this run; `openafm why URL` tells any document's fate with the evidence, `openafm data audit` "
        "shows rejects.\n",
    ]
    for title, body in chapters.items():
        lines += [f"## {title}\n", *(list(body) or ["none"]), ""]
    return "\n".join(lines)
