"""Chapters of the report on fitting the device: bits by layer, the recovery adapters, the task adapters."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from openafm.evaluation.fitting import HEADINGS, RESULT, cells
from openafm.evaluation.intervals import Estimate
from openafm.reporting import plots
from openafm.reporting.document import (
    Artifacts,
    Block,
    Cell,
    Chapter,
    Evaluated,
    Figure,
    Rows,
    Sample,
    Samples,
    Table,
    estimate_cell,
    number,
    span,
)
from openafm.reporting.learning import paired_difference

COMPUTED = ("q", "k", "v", "o", "gate", "up", "down")
VARIANTS = {
    "base": "unquantized",
    "base_and_adapter": "unquantized + adapter (control)",
    "quantized": "quantized",
    "quantized_and_start": "quantized + adapter before training",
    "quantized_and_adapter": "quantized + adapter",
}


def bits(artifacts: Artifacts) -> Iterator[Block]:
    """Bits of each projection, what made the choice, and what the package costs."""
    for index, step in enumerate(artifacts.of("compress")):
        metrics = artifacts.metrics(step)
        if layers := metrics.get("layers", {}):
            yield from _choice(step, layers, index)
        if expected := metrics.get("kl_by_bits"):
            yield _curve(step, expected, metrics, index)
        rows: Rows = [
            ["bits a projection weight", number(metrics.get("projection_bits_per_weight"))],
            ["bits a weight, whole package", number(metrics.get("package_bits_per_weight"))],
            ["package, MB", number(metrics.get("megabytes"), 3)],
            ["bits per byte, unquantized", number(metrics.get("bits_per_byte_base"), 4)],
            ["bits per byte, quantized", number(metrics.get("bits_per_byte"), 4)],
            ["change of bits per byte", _interval(_change(metrics), metrics.get("bits_per_byte_change_interval"), 4)],
            ["KL to the unquantized model, nats a token", _interval(metrics.get("kl"), metrics.get("kl_interval"), 4)],
        ]
        told = f"{number(metrics.get('heldout_tokens'))} held-out tokens"
        yield Table(f"The package of step {step}, measured on {told}, with 95% intervals over windows.",
                    ["measure", "value"], [row for row in rows if row[1] not in ("–", Cell("–"))])  # fmt: skip


def _choice(step: str, layers: dict[str, dict[str, Any]], index: int) -> Iterator[Figure]:
    """The bits of each projection, and its sensitivity."""
    cells: dict[str, dict[str, int]] = defaultdict(dict)
    costs: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for name, layer in sorted(layers.items(), key=lambda item: _place(item[0])):
        row, part = _names(name)
        cells[row][part] = layer["bits"]
        if "kl_at_2_bits" in layer:  # nothing was measured where all have 4 bits
            costs[part].append((layer["kl_at_2_bits"], layer["bits"]))
    counts = sorted(Counter(layer["bits"] for layer in layers.values()).items(), reverse=True)
    alt = ", ".join(f"{n} projections at {kind} bits" for kind, n in counts)
    yield Figure(
        f"Bits of each projection by layer (step {step}): {alt}.", plots.grid(cells, name=f"bits-{index}", alt=alt)
    )
    if not costs:
        return
    axis = "KL with this projection alone at 2 bits, nats a token"
    yield Figure(
        "Why: sensitivity of each projection, one dot a layer: KL to the whole model. "
        "The least sensitive for their size go to 2 bits.",
        plots.sprinkle(
            costs, axis, "bits", name=f"sensitivity-{index}", alt=f"sensitivity of {len(layers)} projections"
        ),
    )


def _curve(step: str, expected: list[list[float]], metrics: dict[str, Any], index: int) -> Figure:
    """What any budget would have cost, by the measured sensitivities, and what this package's did."""
    curves = {"sum of the projections' own costs": plots.Line([b for b, _ in expected], [kl for _, kl in expected])}
    if "kl" in metrics:
        curves["measured, all together"] = plots.Line([metrics["projection_bits_per_weight"]], [metrics["kl"]])
    alt = f"expected KL from {expected[0][1]:.3f} at {expected[0][0]:.2f} bits to 0 at {expected[-1][0]:.2f}"
    return Figure(
        f"Loss against bits (step {step}): the best choice of projections for 2 bits at every average. "
        "The measured point also holds what 4 bits and the embedding lose.",
        plots.lines(
            curves, "bits a projection weight", "KL to the base, nats a token", name=f"bits-curve-{index}", alt=alt
        ),
    )


def _place(name: str) -> tuple[int, int, str]:
    """By layer, then in the order in which a layer computes."""
    row, part = _names(name)
    layer = row.removeprefix("layer ")
    return int(layer) if layer.isdigit() else -1, COMPUTED.index(part) if part in COMPUTED else len(COMPUTED), part


def _names(name: str) -> tuple[str, str]:
    """`model.layers.0.self_attn.q_proj` as `layer 0` and `q`."""
    parts = name.split(".")
    layer = next((part for part in parts if part.isdigit()), None)
    return f"layer {layer}" if layer else "other", parts[-1].removesuffix("_proj")


def _change(metrics: dict[str, Any]) -> float | None:
    if "bits_per_byte" not in metrics or "bits_per_byte_base" not in metrics:
        return None
    return float(metrics["bits_per_byte"] - metrics["bits_per_byte_base"])


def _interval(value: float | None, interval: list[float] | None, digits: int = 2, scale: float = 1) -> Cell:
    low, high = interval or (None, None)
    return Cell(number(None if value is None else scale * value, digits), span(low, high, scale, digits))


def packages_of(artifacts: Artifacts) -> list[Evaluated]:
    """Every evaluated package: quantized ones and those with a recovery adapter."""
    packages = artifacts.of("compress", "recovery")
    return [model for model in artifacts.evaluated if model.model in packages]


def recovered(artifacts: Artifacts) -> Iterator[Block]:
    """Unquantized, quantized and recovered, and the control on the unquantized model."""
    yield from _beside(artifacts)
    steps = artifacts.of("recovery")
    found = {step: artifacts.metrics(step) for step in steps}
    ranks = [f"{step}, rank {metrics.get('rank', '–')}" for step, metrics in found.items()]
    rows: Rows = [
        [label, *(number(m.get("bits_per_byte", {}).get(key), 4) for m in found.values())]
        for key, label in VARIANTS.items()
        if any(key in m.get("bits_per_byte", {}) for m in found.values())
    ]
    tokens = " and ".join(dict.fromkeys(number(m.get("heldout_tokens")) for m in found.values()))
    yield Table(
        f"Bits per byte on {tokens} held-out tokens. The control shows what training on gains without quantization.",
        ["model", *ranks], rows,
    )  # fmt: skip
    measures: Rows = [
        ["KL to unquantized: quantized", *(number(m.get("kl_quantized"), 4) for m in found.values())],
        ["KL to unquantized: quantized + adapter", *(number(m.get("kl_adapted"), 4) for m in found.values())],
        ["regained share of the lost log-loss, %", *(_regained(m) for m in found.values())],
    ]
    yield Table(
        "How far the adapter brings the quantized model back. KL in nats a token. Regained share: (q − (q + adapter)) "
        "/ (q − (base + adapter)) in log-loss, with a 95% bootstrap interval over windows; it has no meaning where "
        "quantization lost nothing.", ["measure", *ranks], measures if found else [],
    )  # fmt: skip
    for step in artifacts.of("fit_table"):
        yield from _compared(artifacts.json(step, RESULT) or {}, step)


def _compared(result: dict[str, Any], step: str) -> Iterator[Block]:
    """Base, packages, recovered at each rank and control: a table a domain."""
    for domain in result.get("domains", []):
        unseen = ", never trained or calibrated on" if domain["unseen"] else ""
        caption = (
            f"{step}: {domain['name']}{unseen}, {number(domain['tokens'])} held-out tokens in {domain['windows']} "
            "windows, 95% intervals over windows. Bits a weight over projections, and over all that ships."
        )
        rows: Rows = [[row["name"], *cells(row, domain["name"])] for row in result["rows"]]
        yield Table(caption, ["model", *(heading.replace("\n", " ").strip() for heading in HEADINGS)], rows)


def _beside(artifacts: Artifacts) -> Iterator[Block]:
    """The packages and the models they were made from, and paired differences."""
    packages = packages_of(artifacts)
    made_from = {model.label: artifacts.evaluation(artifacts.input(model.model, "model")) for model in packages}
    bases = {base.label: base for base in made_from.values() if base}
    models = [*bases.values(), *packages]
    shown = {"bits_per_byte/all": "bits per byte", "top1/all": "top-1, %", "task/all": "problems right, %"}
    shown = {m: heading for m, heading in shown.items() if any(m in model.row.estimates for model in models)}
    lost: dict[str, Estimate] = {}
    for model in packages:
        base = made_from[model.label]
        if base and (gap := paired_difference(artifacts, model.model, base.model, "bits")):
            lost[model.label] = gap
    rows: Rows = []
    for model in models:
        cell = Cell(f"{lost[model.label].value:+.4f}", _ends(lost[model.label])) if model.label in lost else Cell("–")
        name = f"{model.label} (unquantized)" if model.label in bases else model.label
        rows.append([name, *(estimate_cell(m, model.row.estimates.get(m)) for m in shown), cell])
    yield Table(
        "Each package and the unquantized model on the same held-out text and problems, with 95% intervals. The last "
        "column pairs windows: what is lost against the unquantized model.",
        ["model", *shown.values(), "bits per byte lost, paired"], rows,
    )  # fmt: skip
    if lost:
        dots = {name: plots.Dot(gap.value, gap.low, gap.high) for name, gap in lost.items()}
        alt = "; ".join(f"{name}: {dot.value:+.4f}" for name, dot in dots.items())
        axis = f"bits per byte more than unquantized ({', '.join(bases)})"
        yield Figure(
            "Quantized against recovered: bits per byte more than the unquantized model on the same windows, paired, "
            "with 95% intervals. Dotted: no difference; right of it is worse.",
            plots.points(dots, axis, name="recovered", alt=alt, mark=0),
        )


def _ends(estimate: Estimate) -> str:
    return span(estimate.low, estimate.high, 1, 4)


def _regained(metrics: dict[str, Any]) -> Cell:
    if metrics.get("regained") is None:
        return Cell("–", "nothing was lost")
    return _interval(metrics["regained"], metrics.get("regained_interval"), 0, 100)


def tasks(artifacts: Artifacts) -> Iterator[Block]:
    """The task adapters that start from a recovery adapter."""
    for step in artifacts.of("task_adapter"):
        metrics = artifacts.metrics(step)
        labels = {"adapter": "task adapter", "parent": "recovery adapter", "lead_1": "first sentence of the text"}
        rows: Rows = [
            [label, _interval(metrics[f"rouge_{key}"], metrics.get(f"rouge_{key}_interval"), 1, 100)]
            for key, label in labels.items()
            if f"rouge_{key}" in metrics
        ]
        yield Table(
            f"ROUGE-L (F1, %) of {step} against the human summary on {number(metrics.get('rouge_n'))} test examples, "
            "with 95% bootstrap intervals; no source of the test is in training.", ["who writes", "ROUGE-L, %"], rows,
        )  # fmt: skip
        if "score" in metrics:
            yield Table(
                f"{metrics['score']} on the same answers, by the task's own check.", ["who writes", "score, %"],
                [[labels[k], _interval(metrics[f"score_{k}"], metrics[f"score_{k}_interval"], 1, 100)]
                 for k in ("adapter", "parent")],
            )  # fmt: skip
        names = {"reference": "human", "parent": "recovery adapter", "adapter": "task adapter"}
        items = [
            (f"Test example {i}", [Sample(label, str(a.get(key, ""))) for key, label in names.items()])
            for i, a in enumerate(artifacts.lines(step, "answers.jsonl")[:3], 1)
        ]
        if items:
            yield Samples("The first test examples, greedy.", items)


def summaries(artifacts: Artifacts) -> Iterator[Block]:
    """Who sums up the same held-out texts best, against people's summaries and in a judge's eyes."""
    for step in artifacts.of("summary_table"):
        found = artifacts.metrics(step)
        kinds = list(found["texts"])
        headings = ["who writes", "prompt", "ROUGE-L, %", *(f"of {kind}, %" for kind in kinds), "gain, %", "judge, %"]
        rows: Rows = [
            [
                row["name"],
                row["prompt"] or "",
                *(_interval(row[kind]["rouge_l"], row[kind]["rouge_l_interval"], 1, 100) for kind in ("all", *kinds)),
                _interval(row["all"].get("gain"), row["all"].get("gain_interval"), 0, 100),
                _preferred(row["judge"]),
            ]
            for row in found["rows"]
        ]
        for name, verdict in found["judge_checks"].items():
            rows.append([f"{name} (check of the judge)", "", *[""] * (2 + len(kinds)), _preferred(verdict)])
        told = " and ".join(f"{count} {kind}" for kind, count in found["texts"].items())
        yield Table(
            f"Summaries of {told} from {found['sources']} held-out source packages, with 95% bootstrap intervals. "
            "Gain: in ROUGE-L over the quantized model at its best. Judge: how often it prefers this to that one.",
            headings, rows,
        )  # fmt: skip


def _preferred(verdict: dict[str, Any] | None) -> Cell:
    return Cell("") if verdict is None else _interval(verdict["preferred"], verdict["preferred_interval"], 0, 100)


CHAPTERS = (
    Chapter("Bits per layer", ("compress",), bits),
    Chapter("Quantized against recovered", ("recovery",), recovered),
    Chapter("Task adapters", ("task_adapter",), tasks),
    Chapter("Summaries side by side", (), summaries),
)
