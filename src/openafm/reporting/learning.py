"""Chapters of the report on training the base model: curves, pruning, distillation, long contexts."""

from collections.abc import Iterator

import numpy as np
from safetensors.numpy import load_file

from openafm.evaluation.intervals import Estimate, paired
from openafm.evaluation.table import Row
from openafm.evaluation.windows import Window, read_windows
from openafm.reporting import plots
from openafm.reporting.document import (
    Artifacts,
    Block,
    Chapter,
    Evaluated,
    Figure,
    Rows,
    Table,
    Text,
    estimate_cell,
    number,
)

PRETRAINING = ("pretrain", "learn_masks")


def curves(artifacts: Artifacts) -> Iterator[Block]:
    """Training loss of each pretraining stage, each from where the weights it starts with were left."""
    found: dict[str, plots.Line] = {}
    ends: dict[str, float] = {}
    for step in artifacts.of(*PRETRAINING, "prune"):
        start = ends.get(artifacts.input(step, "model") or "", 0.0)
        records = [r for r in artifacts.lines(step, "metrics.jsonl") if r.get("cross_entropy") is not None]
        ends[step] = start + (records[-1]["tokens"] / 1000 if records else 0.0)
        if len(records) > 1:
            losses = _smooth([r["cross_entropy"] for r in records])
            found[step] = plots.Line([start + r["tokens"] / 1000 for r in records], losses)
    if found:
        alt = "; ".join(f"{step} from {line.y[0]:.2f} to {line.y[-1]:.2f} nats" for step, line in found.items())
        axis = "tokens since the weights were drawn, thousands"
        svg = plots.lines(found, axis, "nats a token", name="curves", alt=alt, height=3.0)
        yield Figure(
            "Cross-entropy with the true next token while training, nats a token (mean of five log entries). A stage "
            "begins where the one it starts from ended. Stages differ in data and sequence length, so levels compare "
            "only between a stage and its control. A distilled stage learns the teacher's tokens, not these.", svg,
        )  # fmt: skip
    names = ("parameters", "tokens", "steps", "rope_base", "final_cross_entropy", "skipped_steps")
    rows: Rows = []
    for step in artifacts.of("pretrain"):
        metrics = artifacts.metrics(step)
        start_from = artifacts.input(step, "model") or "drawn at random"
        digits = {"rope_base": 0, "final_cross_entropy": 3}
        rows.append([step, start_from, *(number(metrics.get(name), digits.get(name, 2)) for name in names)])
    headings = ["stage", "weights from", "parameters", "tokens", "steps", "RoPE base", "last loss", "skipped steps"]
    yield Table("The pretraining stages as they ran; the last loss is on training text.", headings, rows, 2)


def _smooth(values: list[float]) -> list[float]:
    return [float(np.mean(values[max(0, i - 4) : i + 1])) for i in range(len(values))]


def pruning(artifacts: Artifacts) -> Iterator[Block]:
    """Which FFN units the masks keep, and what the cut costs."""
    for index, step in enumerate(artifacts.of("learn_masks")):
        yield _masks(artifacts, step, index)
    for step in artifacts.of("prune"):
        metrics = artifacts.metrics(step)
        losses = metrics.get("held_out_loss", {})
        yield Table(
            f"Held-out loss right after the cut, nats a token, on {number(metrics.get('held_out_tokens'))} tokens; no "
            "training follows the cut here.",
            ["weights", "loss", "more than uncut"],
            [[name, number(loss, 3), f"{loss - next(iter(losses.values())):+.3f}"] for name, loss in losses.items()],
        )
        if "logit_difference" in metrics:
            yield Text(
                f"Logits before and after the cut differ by at most {metrics['logit_difference']:.1e} of the largest: "
                "the mask is folded into the down columns before units are removed."
            )


def _masks(artifacts: Artifacts, step: str, index: int) -> Figure:
    tensors = load_file(artifacts.path(step, "masks.safetensors"))
    kept, start = tensors["masks"] > 0, tensors["importance"]
    units = kept.shape[1]
    edges = np.linspace(0, units, min(48, units) + 1).round().astype(int)
    shares = {}
    for layer in range(kept.shape[0]):
        by_rank = kept[layer][np.argsort(-start[layer], kind="stable")]
        shares[f"layer {layer}"] = [float(part.mean()) for part in np.split(by_rank, edges[1:-1])]
    keep = int(kept[0].sum())
    cut = 100 * keep / units
    moved = artifacts.metrics(step).get("moved_from_start")
    alt = f"{keep} of {units} units kept in each of {kept.shape[0]} layers"
    axis = "units by rank before learning, % (most important left)"
    svg = plots.ridges(shares, (100 * edges / units).tolist(), axis, name=f"masks-{index}", alt=alt, mark=cut)
    told = "" if moved is None else f" Learning moved {100 * moved:.1f}% of the kept units in from the right."
    return Figure(
        f"The learned pruning masks: a strip is filled as high as the share of FFN units kept ({keep} of "
        f"{units} in each layer), by rank in the score they started from (mean activation times the norm of "
        "the down column). A cut by that score alone would fill all left of the dotted line and nothing right of it."
        f"{told}",
        svg,
    )


def distilled_pairs(artifacts: Artifacts) -> list[tuple[str, str]]:
    """Distilled steps and their controls from scratch, and the stages that continue both alike, in order."""
    steps = artifacts.of("pretrain")
    size = {step: artifacts.metrics(step).get("parameters") for step in steps}
    teachers = {artifacts.input(step, "model") for step in artifacts.of("cache_teacher")}
    fresh = [step for step in steps if not artifacts.input(step, "model") and step not in teachers]
    pairs: list[tuple[str, str]] = []
    for step in (step for step in steps if artifacts.input(step, "teacher_tokens")):
        control = next((other for other in fresh if size[other] == size[step]), None)
        ours: str | None = step
        theirs = control
        while ours and theirs:
            pairs.append((ours, theirs))
            ours, theirs = _continued_alike(artifacts, ours, theirs)
    return pairs


def _continued_alike(artifacts: Artifacts, ours: str, theirs: str) -> tuple[str | None, str | None]:
    """The stages that train the two further with the same config."""
    after = [[s for s in artifacts.of("pretrain") if artifacts.input(s, "model") == one] for one in (ours, theirs)]
    config = {step: artifacts.manifest(step).get("config") for steps in after for step in steps}
    return next(((a, b) for a in after[0] for b in after[1] if config[a] == config[b]), (None, None))


def distillation(artifacts: Artifacts) -> Iterator[Block]:
    """Distilled against trained from scratch, right after and once both were continued without distillation."""
    pairs = distilled_pairs(artifacts)
    before = [artifacts.input(pair[0], "model") for pair in pairs[:1]]
    teachers = [artifacts.input(step, "model") for step in artifacts.of("cache_teacher")]
    models = [artifacts.evaluation(step) for step in (*teachers, *before, *(step for pair in pairs for step in pair))]
    found = [model for model in models if model]
    pairs = pairs if found else []
    metrics = {"top1/all": "top-1, %", "bits_per_byte/all": "bits per byte"}
    if pairs:
        yield Table(
            "Held-out text of all flows: share of next tokens that are the model's first choice, and bits per byte, "
            "with 95% intervals over windows.", ["model", *metrics.values()],
            [[m.label, *(estimate_cell(name, m.row.estimates.get(name)) for name in metrics)] for m in found],
        )  # fmt: skip
    for metric, unit in (("top1", "top-1 accuracy, points"), ("bits", "bits per byte")):
        differences = {f"{a} − {b}": e for a, b in pairs if (e := paired_difference(artifacts, a, b, metric))}
        dots = {name: plots.Dot(e.value, e.low, e.high) for name, e in differences.items()}
        if dots:
            alt = "; ".join(f"{name}: {dot.value:+.2f}" for name, dot in dots.items())
            svg = plots.points(dots, f"difference in {unit}", name=f"distil-{metric}", alt=alt, mark=0)
            n, better = next(iter(differences.values())).n, "right" if metric == "top1" else "left"
            caption = (
                f"Distilled minus from scratch, {unit}: the same {n} windows, paired, with 95% intervals; {better} of "
                "the dotted line distillation is ahead."
            )
            yield Figure(caption, svg)
    if pairs:
        yield Text(
            "Distillation trains on 0.9 of the teacher's likeliest token and 0.1 of the true one. A model that follows "
            "it puts too much probability on one token: it can be right more often, but dearer where it is wrong, and "
            "bits per byte count exactly that. The continued stage, on true tokens alone, repairs the calibration. So "
            "judge distillation by accuracy right after, and by both once continued."
        )


def paired_difference(artifacts: Artifacts, ours: str, theirs: str, metric: str) -> Estimate | None:
    """Difference of two steps' models over the windows that both evaluations read; None where they read others."""
    first, second = artifacts.evaluation(ours), artifacts.evaluation(theirs)
    return _difference(artifacts, first, second, metric) if first and second else None


def _difference(artifacts: Artifacts, first: Evaluated, second: Evaluated, metric: str) -> Estimate | None:
    ours, theirs = (read_windows(artifacts.path(model.row.step, "windows.jsonl")) for model in (first, second))
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
    for prefix, caption, x_label, y_label, chance in (
        ("loss_at/", "Loss by distance from the start of the context, with 95% intervals over windows (shaded). Beyond "
         "the length a model was trained at, loss rises unless the RoPE base was raised and the model trained on.",
         "tokens from the start of the window", "nats a token", None),
        ("needle/", "Questions whose true code is ranked first among the four in the text, by where the fact lies (0 "
         "the start of the context, 1 its end), with Wilson's 95% intervals (shaded). Dotted: chance, 25%.",
         "depth of the needle", "right, %", 25.0),
    ):  # fmt: skip
        found = {model.label: line for model in artifacts.evaluated if (line := _line(model.row, prefix))}
        if found:
            alt = "; ".join(f"{label}: {', '.join(f'{y:.1f}' for y in line.y)}" for label, line in found.items())
            svg = plots.lines(found, x_label, y_label, name=f"long-{prefix[:-1]}", alt=alt, chance=chance)
            yield Figure(caption, svg)
    rows = [
        [model.label, *name.removeprefix("needle_at/").split("/"), f"{estimate.value:.0%}", str(estimate.n)]
        for model in artifacts.evaluated
        for name, estimate in model.row.estimates.items()
        if name.startswith("needle_at/")
    ]
    if rows:
        yield Table("The same in shorter contexts.", ["model", "tokens", "depth", "right", "n"], rows)
    for step in artifacts.of("long_qa"):
        yield Table(f"The long question answering made for it (step {step}).", ["measure", "value"],
                    [[name, value] for name, value in artifacts.facts(step)])  # fmt: skip


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
    Chapter("Loss curves by stage", ("pretrain",), curves),
    Chapter("Pruning masks", ("learn_masks",), pruning),
    Chapter("Distillation", ("cache_teacher", "pretrain"), distillation),
    Chapter("Long contexts", ("pretrain", "evaluate"), long_context),
)
