"""Chapters of the report on fitting the device: bits by layer, the recovery adapter, the task adapter."""

from collections.abc import Iterator
from typing import Any

from openafm.evaluation.fitting import HEADINGS, RESULT, cells
from openafm.reporting import plots
from openafm.reporting.document import Artifacts, Block, Cell, Chapter, Figure, Rows, Samples, Table, number


def bits(artifacts: Artifacts) -> Iterator[Block]:
    """Bits of each projection and what made the choice."""
    metrics = artifacts.metrics("compress")
    layers = metrics.get("layers", {})
    costs = {
        f"{short(name)}: {layer['bits']} bits": {f"kept at {layer['bits']} bits": layer["kl_at_2_bits"]}
        for name, layer in layers.items()
    }
    if costs:
        svg = plots.bars(
            costs, "KL to the whole model when this projection alone has 2 bits, nats a token", name="bits"
        )
        yield Figure("Sensitivity of each projection, and the bits it got: the least sensitive go to 2 bits.", svg)
    rows = [[name, value] for name, value in artifacts.facts("compress") if not name.startswith("layers")]
    yield Table("The package, measured on held-out text.", ["measure", "value"], rows)


def short(name: str) -> str:
    """`model.layers.0.self_attn.q_proj` as `0 q_proj`."""
    parts = name.split(".")
    return f"{parts[2]} {parts[-1]}" if len(parts) > 3 else name


def recovered(artifacts: Artifacts) -> Iterator[Block]:
    """Base, quantized and recovered, and the control on the unquantized model."""
    metrics = artifacts.metrics("recovery")
    labels = {
        "base": "unquantized",
        "base_and_adapter": "unquantized and adapter (control)",
        "quantized": "quantized",
        "quantized_and_start": "quantized, adapter before training",
        "quantized_and_adapter": "quantized and adapter",
    }
    found = metrics.get("bits_per_byte", {})
    rows = [[label, number(found[key], 4)] for key, label in labels.items() if key in found]
    yield Table(
        f"Bits per byte on {number(metrics.get('heldout_tokens'))} held-out tokens; adapter of rank "
        f"{number(metrics.get('rank'))}. The control shows what training on gains without quantization.",
        ["model", "bits/byte"], rows,
    )  # fmt: skip
    share, interval = metrics.get("regained"), metrics.get("regained_interval")
    spread = f"{100 * interval[0]:.0f}–{100 * interval[1]:.0f}" if interval else ""
    regained = Cell(f"{100 * share:.0f}%", spread) if share is not None else Cell("–", "quantization lost nothing")
    yield Table(
        "How far the adapter brings the quantized model back. Regained share: (q - (q + adapter)) / (q - (base + "
        "adapter)) in log-loss, with a 95% bootstrap interval over windows. KL to the unquantized model, nats a token.",
        ["measure", "value"],
        [
            ["regained share", regained],
            ["KL, quantized", number(metrics.get("kl_quantized"), 4)],
            ["KL, quantized and adapter", number(metrics.get("kl_adapted"), 4)],
        ],
    )  # fmt: skip
    for step, base in (("table", "the base"), ("table_offgrid", "a base off the 4-bit grid")):
        yield from _compared(artifacts.json(step, RESULT), base)


def _compared(result: dict[str, Any] | None, base: str) -> Iterator[Block]:
    """What the recipe device measures: base, packages, recovered and control, a table a domain."""
    for domain in (result or {}).get("domains", []):
        unseen = ", never trained or calibrated on" if domain["unseen"] else ""
        caption = (
            f"{domain['name'].capitalize()}{unseen}, {base}: {number(domain['tokens'])} held-out tokens, "
            f"{domain['windows']} windows, 95% intervals over windows. "
            "Bits a weight over projections, and over all that ships."
        )
        rows: Rows = [[row["name"], *cells(row, domain["name"])] for row in (result or {})["rows"]]
        yield Table(caption, ["model", *(heading.replace("\n", " ").strip() for heading in HEADINGS)], rows)


def summariser(artifacts: Artifacts) -> Iterator[Block]:
    """The task adapter that starts from the recovery adapter."""
    metrics = artifacts.metrics("summariser")
    labels = {"adapter": "summarisation adapter", "parent": "recovery adapter", "lead_1": "first sentence of the text"}
    rows: Rows = [
        [label, Cell(number(100 * metrics[f"rouge_{key}"], 1), _span(metrics.get(f"rouge_{key}_interval")))]
        for key, label in labels.items()
        if f"rouge_{key}" in metrics
    ]
    caption = (
        f"ROUGE-L (F1, %) against the human summary on {number(metrics.get('rouge_n'))} test examples, with 95% "
        "bootstrap intervals; no source of the test is in training."
    )
    yield Table(caption, ["who writes", "ROUGE-L"], rows)
    answers = artifacts.lines("summariser", "answers.jsonl")[:3]
    if answers:
        names = (("reference", "human"), ("parent", "recovery adapter"), ("adapter", "summarisation adapter"))
        items = [(str(a.get("id")), [(label, str(a.get(key, ""))) for key, label in names]) for a in answers]
        yield Samples("The first test examples, greedy.", items)


def _span(interval: list[float] | None) -> str:
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}" if interval else ""


CHAPTERS = (
    Chapter("Bits by layer", ("compress",), bits),
    Chapter("Quantized against recovered", ("recovery",), recovered),
    Chapter("Summarisation adapter", ("summariser",), summariser),
)
