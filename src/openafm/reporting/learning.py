"""Chapters of the report on training the base model: curves, pruning, distillation, long contexts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from openafm.evaluation.intervals import Estimate, paired
from openafm.evaluation.table import Row, read_row
from openafm.evaluation.windows import Window, read_windows
from openafm.reporting import plots
from openafm.reporting.document import Artifacts, Block, Chapter, Figure, Table, Text, estimate_cell, number

PRETRAINING = ("teacher", "masks", "distil", "scratch", "continued", "scratch_continued", "long")


def evaluated(artifacts: Artifacts) -> dict[str, tuple[Row, Path]]:
    """Every evaluated model by its name, with the evaluation's folder."""
    rows = {step: read_row(step, folder) for step, folder in artifacts.evaluations.items() if artifacts.has(step)}
    return {row.model: (row, artifacts.evaluations[step]) for step, row in rows.items()}


def curves(artifacts: Artifacts) -> Iterator[Block]:
    """Training loss of each pretraining stage."""
    found = {}
    for step in PRETRAINING:
        records = [r for r in artifacts.lines(step, "metrics.jsonl") if r.get("cross_entropy") is not None]
        if len(records) > 1:
            values = [r["cross_entropy"] for r in records]
            found[step] = plots.Line([r["tokens"] / 1000 for r in records], _smooth(values))
    if found:
        svg = plots.lines(found, "tokens of the stage, thousands", "nats a token", name="curves", height=3.2)
        yield Figure(
            "Cross-entropy with the true next token while training, by stage (mean of five log entries). Stages "
            "differ in data and sequence length, so levels compare only between a stage and its control.", svg,
        )  # fmt: skip
    steps = [step for step in PRETRAINING if artifacts.metrics(step)]
    rows = [
        [
            step,
            number(artifacts.metrics(step).get("parameters")),
            number(artifacts.metrics(step).get("tokens")),
            number(artifacts.metrics(step).get("steps")),
            number(artifacts.metrics(step).get("rope_base"), 0),
            number(artifacts.metrics(step).get("skipped_steps")),
        ]
        for step in steps
    ]
    headings = ["stage", "parameters", "tokens", "steps", "RoPE base", "skipped steps"]
    yield Table("The pretraining stages as they ran.", headings, rows)


def _smooth(values: list[float]) -> list[float]:
    return [float(np.mean(values[max(0, i - 4) : i + 1])) for i in range(len(values))]


def pruning(artifacts: Artifacts) -> Iterator[Block]:
    """Which FFN units the masks keep, and what the cut costs."""
    tensors = load_file(artifacts.folders["masks"] / "masks.safetensors")
    kept, start = tensors["masks"] > 0, tensors["importance"]
    found = {}
    for layer in range(kept.shape[0]):
        by_rank = kept[layer][np.argsort(-start[layer], kind="stable")]
        bins = np.array_split(by_rank, min(24, len(by_rank)))
        centres = (np.arange(len(bins)) + 0.5) / len(bins) * 100
        found[f"layer {layer}"] = plots.Line(centres.tolist(), [100 * float(part.mean()) for part in bins])
    keep = int(kept[0].sum())
    svg = plots.lines(found, "rank before learning, %: the most important units are left", "kept, %", name="masks")
    yield Figure(
        f"FFN units kept by the learned masks ({keep} of {kept.shape[1]} in each layer), by their rank in the score "
        "they started from (mean activation times the norm of the down column). A cut by that score alone would keep "
        f"all units left of {100 * keep / kept.shape[1]:.0f}% and none right of it.", svg,
    )  # fmt: skip
    metrics = artifacts.metrics("prune")
    if losses := metrics.get("held_out_loss"):
        tokens = number(metrics.get("held_out_tokens"))
        rows = [[name, number(loss, 3)] for name, loss in losses.items()]
        caption = (
            f"Held-out loss right after the cut, nats a token, on {tokens} tokens; no training follows the cut here."
        )
        yield Table(caption, ["weights", "loss"], rows)
        yield Text(
            f"Logits before and after the cut differ by at most {metrics['logit_difference']:.1e} of the largest one: "
            "the mask is folded into the down columns before units are removed."
        )


def distillation(artifacts: Artifacts) -> Iterator[Block]:
    """Distilled against trained from scratch, right after and once both were continued without distillation."""
    models = evaluated(artifacts)
    names = [n for n in ("teacher", "prune", "distil", "scratch", "continued", "scratch_continued") if n in models]
    metrics = ["top1/all", "bits_per_byte/all", "task/all"]
    shown = [m for m in metrics if any(m in models[n][0].estimates for n in names)]
    titles = {"top1/all": "top-1 %", "bits_per_byte/all": "bits/byte", "task/all": "tasks %"}
    rows = [[n, *(estimate_cell(m, models[n][0].estimates.get(m)) for m in shown)] for n in names]
    yield Table(
        "Held-out text of all flows: share of next tokens that are the model's first choice, and bits per byte, with "
        "95% intervals over windows.", ["model", *(titles[m] for m in shown)], rows,
    )  # fmt: skip
    pairs = [("distil", "scratch", "right after"), ("continued", "scratch_continued", "after the continued stage")]
    there = [pair for pair in pairs if pair[0] in models and pair[1] in models]
    for metric, unit in (("top1", "points of top-1 accuracy"), ("bits", "bits per byte")):
        found = {when: _difference(models[a][1], models[b][1], metric) for a, b, when in there}
        values = {when: (e.value, e.low, e.high) for when, e in found.items() if e}
        if values:
            svg = plots.points(values, f"distilled minus from scratch, {unit}", name=f"distil-{metric}", mark=0)
            n = next(e.n for e in found.values() if e)
            yield Figure(f"Difference on the same {n} windows, paired, with its 95% interval.", svg)
    yield Text(
        "Distillation trains on 0.9 of the teacher's likeliest token and 0.1 of the true one. A model that follows it "
        "puts too much probability on one token: it is right more often, but dearer where it is wrong, and bits per "
        "byte count exactly that. So bits per byte can get worse while accuracy gets better; the continued stage, "
        "trained on true tokens alone, repairs the calibration. Judge distillation by accuracy."
    )


def _difference(first: Path, second: Path, metric: str) -> Estimate | None:
    """Paired difference over the windows that both evaluations read."""
    ours, theirs = (read_windows(folder / "windows.jsonl") for folder in (first, second))
    if [(w.flow, w.tokens, w.bytes) for w in ours] != [(w.flow, w.tokens, w.bytes) for w in theirs]:
        return None
    if metric == "top1":
        found = paired([100.0 * w.correct for w in ours], [100.0 * w.correct for w in theirs], [w.tokens for w in ours])
    else:
        found = paired(_bits(ours), _bits(theirs), [w.bytes for w in ours])
    return found if found.n > 1 else None


def _bits(windows: list[Window]) -> list[float]:
    return [window.nats / float(np.log(2)) for window in windows]


def long_context(artifacts: Artifacts) -> Iterator[Block]:
    """Loss by position and needle retrieval, before and after lengthening."""
    rows = [row for row, _ in evaluated(artifacts).values()]
    for prefix, caption, x_label, y_label, chance in (
        ("loss_at/", "Loss by distance from the start of the context, with 95% intervals over windows. Beyond the "
         "length a model was trained at, loss rises unless the RoPE base was raised and the model trained on.",
         "tokens from the start of the window", "nats a token", None),
        ("needle/", "Share of questions whose true code is ranked first among the four in the text (chance: 25%), by "
         "where the fact lies (0 the start of the context, 1 its end), with Wilson's 95% intervals.",
         "depth of the needle", "right, %", 25.0),
    ):  # fmt: skip
        found = {row.model: line for row in rows if (line := _line(row, prefix))}
        if found:
            yield Figure(caption, plots.lines(found, x_label, y_label, name=f"long-{prefix[:-1]}", chance=chance))


def _line(row: Row, prefix: str) -> plots.Line | None:
    scale = 100 if prefix == "needle/" else 1
    points = [(name.removeprefix(prefix), e) for name, e in row.estimates.items() if name.startswith(prefix)]
    if len(points) < 2:
        return None
    x = [float(at.split("-")[-1]) for at, _ in points]
    spans = [(e.low, e.high) for _, e in points if e.low is not None and e.high is not None]
    low, high = zip(*spans, strict=True) if len(spans) == len(points) else ((), ())
    return plots.Line(x, [e.value * scale for _, e in points], [v * scale for v in low], [v * scale for v in high])


CHAPTERS = (
    Chapter("Loss curves", ("teacher",), curves),
    Chapter("Pruning", ("masks", "prune"), pruning),
    Chapter("Distillation", ("distil", "scratch"), distillation),
    Chapter("Long contexts", ("long",), long_context),
)
