"""Does the best learning rate stay as the width grows? muParam (simple) against the standard parametrisation.

    openafm bench lr-transfer --shards runs/nano/shards
    openafm bench lr-transfer --widths 64,128,256,512 --tokens 2000000 --out runs/lr-transfer

Each width trains once a learning rate and parametrisation, by RMSProp with momentum and the core stage's schedule, on
the same windows; both start from the same weights, so that only the rates differ: muParam multiplies those of linear
weights by base_width / width, the standard leaves them whole. The loss is the mean over the last tenth. Every finished
run is a line of OUT/runs.jsonl: the same command goes on after a kill, and other widths or rates join those that are
there. Writes OUT/lr-transfer.svg and prints, last, one line of JSON with the best rate of each width (--json).
Compare arXiv 2309.14322, section 3.2.2, and arXiv 2407.21075, where the best rate was 0.01 to 0.02 at every width.
"""

import json
import tempfile
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.table import Table

from harness import machine, options
from openafm import jsonl
from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.stage import Context, Hardware
from openafm.training.batches import TokenBatches
from openafm.training.loop import train
from openafm.training.losses import chunked_next_token
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import cosine

matplotlib.use("Agg")
from matplotlib import pyplot as plt

KINDS = ("muParam (simple)", "standard")
Run = dict[str, float | str]


def main() -> None:
    o = options(
        __doc__, shards="runs/nano/shards", out="runs/lr-transfer", widths="64,128,256",
        lrs="0.00125,0.0025,0.005,0.01,0.02,0.04", tokens=300_000, batch_tokens=2048, length=256, layers=4,
        base_width=64, threads=2, precision="bfloat16",
    )  # fmt: skip
    torch.set_num_threads(o.threads)
    path = Path(o.out) / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = list(jsonl.read(path)) if path.exists() else []
    widths, lrs = [int(width) for width in o.widths.split(",")], [float(lr) for lr in o.lrs.split(",")]
    for width in widths:
        for lr in lrs:
            for kind in KINDS:
                setting = {
                    "kind": kind, "width": width, "lr": lr, "tokens": o.tokens, "layers": o.layers,
                    "batch_tokens": o.batch_tokens, "length": o.length, "base_width": o.base_width,
                }  # fmt: skip
                if any(setting.items() <= run.items() for run in done):
                    continue
                run = setting | {"loss": final_loss(setting, Path(o.shards), Hardware(precision=o.precision))}
                print(json.dumps(run), flush=True)
                with path.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                done.append(run)
    runs = [run for run in done if run["tokens"] == o.tokens and run["width"] in widths]
    told = {kind: {width: best(runs, kind, width) for width in widths} for kind in KINDS}
    plot(runs, widths, Path(o.out) / "lr-transfer.svg")
    table(told, widths)
    if o.json:
        print(json.dumps({"name": "lr-transfer", "unit": "best lr", "best": told, "machine": machine()}))


def final_loss(setting: Run, shards: Path, hardware: Hardware) -> float | None:
    """Mean loss over the last tenth of a training run; None where it broke off."""
    width, tokens = int(setting["width"]), int(setting["tokens"])
    vocabulary = json.loads((shards / "index.json").read_text())["vocab_size"]
    heads = max(2, width // 32)
    config = ModelConfig(
        vocab_size=vocabulary, d_model=width, n_layers=int(setting["layers"]), n_heads=heads, n_kv_heads=heads // 2,
        head_dim=width // heads, d_ff=3 * width, rope_base=500.0,
    )  # fmt: skip
    model = initialise(Transformer(config), 0)
    base = int(setting["base_width"]) if setting["kind"] == KINDS[0] else width
    optimizer = RMSPropMomentum(parameter_groups(model, base), float(setting["lr"]), 3.16e-4)
    batches = TokenBatches(
        shards, {"web": 0.75, "code": 0.25}, sequence_length=int(setting["length"]),
        batch_tokens=int(setting["batch_tokens"]), tokens=tokens, seed=0,
    )  # fmt: skip

    def loss(network, batch):
        output = network.model.embed_tokens.weight
        return chunked_next_token(network.hidden(batch["inputs"]), output, batch["targets"], 1e-6)

    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch), Path(scratch), hardware=hardware)
        try:
            curve = train(model, batches, loss, optimizer, cosine(tokens, tokens // 10, 0.005), context)
        except ValueError:
            return None
    last = [record["cross_entropy"] for record in curve[-(len(curve) // 10) - 1 :]]
    return round(sum(last) / len(last), 4)


def best(runs: list[Run], kind: str, width: int) -> dict[str, float]:
    """The rate with the lowest loss, and what the others lose to it: the optimum is flat."""
    found = {run["lr"]: run["loss"] for run in runs if (run["kind"], run["width"]) == (kind, width) and run["loss"]}
    lr = min(found, key=lambda rate: found[rate])
    return {"lr": lr, "loss": found[lr]}


def table(told: dict[str, dict[int, dict[str, float]]], widths: list[int]) -> None:
    shown = Table(title="best learning rate (final loss)")
    shown.add_column("parametrisation")
    for width in widths:
        shown.add_column(f"width {width}", justify="right")
    for kind, row in told.items():
        shown.add_row(kind, *(f"{row[width]['lr']:g} ({row[width]['loss']:.3f})" for width in widths))
    Console(width=110).print(shown)


def plot(runs: list[Run], widths: list[int], path: Path) -> None:
    """A panel a parametrisation: final loss against learning rate, a line a width."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, kind in zip(panels, KINDS, strict=True):
        for width in widths:
            points = sorted(
                (run["lr"], run["loss"]) for run in runs if (run["kind"], run["width"]) == (kind, width) and run["loss"]
            )
            panel.plot(*zip(*points, strict=True), marker="o", label=f"width {width}")
        panel.set(xscale="log", title=kind, xlabel="learning rate")
    panels[0].set_ylabel("final loss, nats")
    panels[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
