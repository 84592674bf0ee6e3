"""The model card: what the run's last model is, was made of, does and does not do (Mitchell et al., arXiv 1810.03993).

It is read from artifacts alone, as a chapter of the report.
"""

from collections.abc import Iterator

from openafm.reporting.corpus import funnel_of
from openafm.reporting.document import Artifacts, Block, Chapter, Points, Rows, Table, last, number, percent
from openafm.reporting.findings import disappointments

SHAPE = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "max_length")
MADE = ("import_model", "pretrain", "prune", "sft", "sft_best", "committee", "compress", "recovery", "task_adapter")
"""Stages whose artifact is a model or a package."""


def model_card(artifacts: Artifacts) -> Iterator[Block]:
    """The card of the last model that was made."""
    model = last(artifacts.of(*MADE))
    if model is None:
        return
    yield Table("The model card.", ["what", "value"], [*_made(artifacts, model), *_measured(artifacts)], 2)
    yield Points(
        "Use",
        [
            "Made to study how such models are made and fitted to a device, and to be adapted to a task of one's own "
            "together with a measurement of that task.",
            "Not for advice, decisions about people, or facts without a check: nobody has tested it for that.",
        ],
    )
    yield Points("Limits", disappointments(artifacts) or ["No rule of the report speaks: see the chapters."])


def _made(artifacts: Artifacts, model: str) -> Rows:
    """What it is and what it was made of."""
    rows: Rows = [["model", f"artifact `{model}` (stage {artifacts.manifest(model).get('stage')})".replace("`", "")]]
    shaped = next(
        (step for step in reversed(artifacts.of(*MADE)) if (artifacts.folders[step] / "config.json").is_file()), None
    )
    if shaped:
        config = artifacts.json(shaped, "config.json")
        told = ", ".join(f"{name.replace('_', ' ')} {config[name]:,}" for name in SHAPE if name in config)
        rows.append(["architecture", f"dense decoder, RMSNorm, SwiGLU, grouped queries, RoPE: {told} (from {shaped})"])
    package = artifacts.metrics(last(artifacts.of("compress")))
    if "projection_bits_per_weight" in package:
        bits = number(package["projection_bits_per_weight"]), number(package.get("package_bits_per_weight"))
        rows.append(["weights", f"{bits[0]} bits a projection weight, {bits[1]} over the package"])
    if entries := funnel_of(artifacts):
        flows = {e["flow"]: 0 for e in entries}
        for entry in entries:
            flows[entry["flow"]] += entry["real"] if not entry["stage"] else 0
        told = ", ".join(f"{flow} {number(count)}" for flow, count in sorted(flows.items()))
        rows.append(["training documents", f"{told}; sources and licences: openafm data card"])
    tokens = sum(artifacts.metrics(step).get("tokens", 0) for step in artifacts.of("pretrain"))
    if tokens:
        rows.append(
            ["pretraining", f"{number(tokens)} tokens in {len(artifacts.of('pretrain'))} stages, controls included"]
        )
    if step := last(artifacts.of("sft_mixture")):
        train = artifacts.metrics(step).get("train") or (artifacts.json(step, "mixture.json") or {}).get("train", {})
        if "examples" in train:
            rows.append(
                ["fine-tuning", f"{number(train['examples'])} examples, {percent(train.get('human_share'))} by people"]
            )
    for step in artifacts.of("task_adapter"):
        rows.append(["task adapter", str(artifacts.metrics(step).get("headline") or step)])
    if artifacts.run:
        rows.append(["seed", str(artifacts.run.get("seed", "–"))])
    return rows


def _measured(artifacts: Artifacts) -> Rows:
    """What the last evaluation found."""
    if not artifacts.evaluated:
        return [["evaluation", "none has run: nothing is known of what it can do"]]
    last_one = artifacts.evaluated[-1]
    rows: Rows = []
    for metric, name, scale, unit in (
        ("bits_per_byte/all", "bits per byte", 1, ""),
        ("top1/all", "next token right", 100, "%"),
        ("task/all", "held-out problems right", 100, "%"),
    ):
        if found := last_one.row.estimates.get(metric):
            spread = (
                ""
                if found.low is None or found.high is None
                else f" [{scale * found.low:.2f}, {scale * found.high:.2f}]"
            )
            rows.append([name, f"{scale * found.value:.2f}{unit}{spread}, n = {found.n} ({last_one.label})"])
    return rows


CHAPTERS = (Chapter("Model card", (), model_card),)
