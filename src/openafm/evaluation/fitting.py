"""What fitting to the device costs, and what the recovery adapter brings back (step `table` of the recipe device).

Base, packages, each package with its recovery adapters, and the control (the same adapters on the unquantized base), on
the same held-out windows of every domain: perplexity and KL to the base with 95% intervals over windows, and beside
them bits a weight over projections and over all that such a model ships (AFM, arXiv 2407.21075, section 5.1).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from openafm.adapters.store import AdapterStore
from openafm.compression.calibration import read_windows
from openafm.compression.package import sizes
from openafm.compression.recovery import NAME, regained
from openafm.engine import TorchEngine
from openafm.engine.package import open_package
from openafm.evaluation.evaluate import check_vocabulary
from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.scoring import intervals
from openafm.stage import Config, Context, Metrics
from openafm.tokenizer import load as load_tokenizer

RESULT = "fitting.json"
BASE = "base"
HEADINGS = ("bits a weight\nprojections", "\nall", "\nMB", "\nperplexity", "KL to base\nnats a token", "regained\n%")
"""Of what `cells` returns."""


class FitTableConfig(Config):
    """How much text is measured."""

    length: int = 256
    """Tokens of a window."""
    tokens: int = 8192
    """Held-out tokens of each domain."""


@dataclass(frozen=True)
class Variant:
    """One line of the table: a model as it would ship."""

    name: str
    model: Callable[[], Transformer]
    """Switches the model on."""
    bits_projections: float
    bits_all: float
    megabytes: float
    rank: int | None = None
    """Of its adapter."""
    without: str = ""
    """The line of the same model without its adapter."""


def fit_table(
    config: FitTableConfig,
    context: Context,
    *,
    base: Path,
    packages: dict[str, Path],
    shards: dict[str, Path],
    control: Path | None = None,
) -> Metrics:
    """Measure the model folder `base`, the named `packages` and the adapter store `control` on each of `shards`.

    A domain is one of `shards`; one whose shards have no training part is reported as never trained on. Writes
    `fitting.json`.
    """
    torch.set_num_threads(context.hardware.threads)
    variants = _variants(base, packages, control)
    domains, rows = [], [_row(variant) for variant in variants]
    for name, folder in shards.items():
        check_vocabulary(variants[0].model(), folder)
        windows = read_windows(folder, "heldout", config.length, config.tokens)
        splits = json.loads((folder / "index.json").read_text())["splits"]
        unseen = not sum(part["tokens"] for part in splits["train"].values())
        count = len(windows.tokens)
        domains.append({"name": name, "unseen": unseen, "tokens": windows.predicted, "windows": count})
        batches = windows.batches(variants[0].model().config.vocab_size)
        found = _measure(variants, batches, context, f"{name}: windows")
        for variant, row in zip(variants, rows, strict=True):
            row["domains"][name] = _figures(variant, variants, found, context.seed)
    result = {"domains": domains, "rows": rows}
    (context.out / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    return {"headline": _headline(rows, str(domains[-1]["name"])), **result}


def _variants(base: Path, packages: Mapping[str, Path], control: Path | None) -> list[Variant]:
    """The lines in order: base, packages, recovered packages by rank, control by rank."""
    store = AdapterStore(control) if control is not None else None
    adapters = {name: store.load(name) for name in store.names()} if store is not None else {}
    engine = TorchEngine(load_model(base), load_tokenizer(base), adapters)
    weights = load_file(base / "model.safetensors")
    projections = [weights[f"{name}.weight"] for name in engine.model.linears()]
    stored, size = 8.0 * projections[0].element_size(), (base / "model.safetensors").stat().st_size
    del weights, projections

    def ship(name: str, adapter: str | None, extra: int, rank: int | None) -> Variant:
        """A line of the base's weights, whose file and `extra` bytes are counted over all of its parameters."""
        total, without = size + extra, BASE if adapter else ""
        bits = 8 * total / engine.model.config.parameters
        return Variant(name, lambda: engine.use(adapter), stored, bits, total / 1e6, rank, without)

    plain: list[Variant] = [ship(BASE, None, 0, None)]
    recovered: list[Variant] = []
    for name, folder in packages.items():
        mine = _package_variants(name, folder)
        plain, recovered = [*plain, mine[0]], [*recovered, *mine[1:]]
    cards = sorted((store.card(name) for name in store.names()), key=lambda card: card["rank"]) if store else []
    controls = [
        ship(f"{BASE} + adapter, rank {card['rank']} (control)", card["name"], card["bytes"], card["rank"])
        for card in cards
    ]
    return [*plain, *recovered, *controls]


def _package_variants(name: str, folder: Path) -> list[Variant]:
    """A package alone, then with each of its recovery adapters by rank; each line counts the adapter it needs."""
    package, engine = open_package(folder), TorchEngine.load(folder)
    cards = [package.adapters.card(adapter) for adapter in package.adapters.names()]
    ours = sorted(
        (card for card in cards if card["name"] == NAME or card["name"].startswith(f"{NAME}-")),
        key=lambda card: card["rank"],
    )

    def ship(label: str, adapter: str | None, rank: int | None) -> Variant:
        """A line of the package with one adapter, the only one whose bytes are counted, or with none."""
        size = sizes(package, [adapter] if adapter else [])
        figures = (size["projection_bits_per_weight"], size["package_bits_per_weight"], size["megabytes"])
        return Variant(label, lambda: engine.use(adapter), *figures, rank, name if adapter else "")

    return [
        ship(name, None, None),
        *(ship(f"{name} + recovery, rank {card['rank']}", card["name"], card["rank"]) for card in ours),
    ]


Found = dict[str, tuple[list[float], list[float]]]
"""Variant -> loss and KL to the base of every window, means over its tokens in nats."""


@torch.no_grad()
def _measure(variants: Sequence[Variant], batches: Sequence[Tensor], context: Context, label: str) -> Found:
    """Run every variant over the windows, the base once for all of them; `variants` starts with the base."""
    found: Found = {variant.name: ([], []) for variant in variants}
    for rows in context.track(batches, label):
        log_p = F.log_softmax(variants[0].model()(rows[:, :-1]).float(), -1)
        for variant in variants:
            log_q = log_p if variant.name == BASE else F.log_softmax(variant.model()(rows[:, :-1]).float(), -1)
            losses, kl = found[variant.name]
            losses += F.nll_loss(log_q.transpose(1, 2), rows[:, 1:], reduction="none").double().mean(1).tolist()
            kl += F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).double().mean(1).tolist()
    return found


def _figures(variant: Variant, variants: Sequence[Variant], found: Found, seed: int) -> dict[str, Any]:
    """What the table says of a line in one domain."""
    losses, kl = found[variant.name]
    loss = sum(losses) / len(losses)
    change = [ours - base for ours, base in zip(losses, found[BASE][0], strict=True)]
    figures: dict[str, Any] = {
        "loss": round(loss, 5),
        "perplexity": round(exp(loss), 4),
        "perplexity_interval": [round(exp(end), 4) for end in intervals.mean(losses)] if len(losses) > 1 else None,
        "loss_over_base": round(sum(change) / len(change), 5),
        "loss_over_base_interval": _interval(change),
        "kl": round(sum(kl) / len(kl), 6) + 0.0,  # no minus before a rounded zero
        "kl_interval": _interval(kl),
    }
    control = [v.name for v in variants if v.without == BASE and v.rank == variant.rank]
    if variant.without not in ("", BASE) and control:
        figures |= regained(found[variant.without][0], losses, found[control[0]][0], seed)
    return figures


def _interval(values: list[float]) -> list[float] | None:
    return [round(end, 6) for end in intervals.mean(values)] if len(values) > 1 else None


def _row(variant: Variant) -> dict[str, Any]:
    return {
        "name": variant.name,
        "rank": variant.rank,
        "without": variant.without,
        "bits_projections": round(variant.bits_projections, 3),
        "bits_all": round(variant.bits_all, 3),
        "megabytes": round(variant.megabytes, 2),
        "domains": {},
    }


def _headline(rows: list[dict[str, Any]], domain: str) -> str:
    """Base, the last package and its largest recovery adapter, on the last domain."""
    package = next((row for row in reversed(rows) if not row["without"]), rows[0])
    shown = [rows[0], package, *[row for row in rows if row["without"] == package["name"] != BASE][-1:]]
    told = " -> ".join(f"{row['domains'][domain]['perplexity']:.2f} ({row['name']})" for row in shown)
    share = shown[-1]["domains"][domain].get("regained")
    return f"perplexity on {domain}: {told}" + (f"; {share:.0%} of the lost log-loss regained" if share else "")


def render(folder: Path) -> list[Table]:
    """The table for the terminal, one for each domain."""
    result = json.loads((folder / RESULT).read_text())
    return [_table(result["rows"], domain) for domain in result["domains"]]


def _table(rows: list[dict[str, Any]], domain: dict[str, Any]) -> Table:
    never = ", never trained on" if domain["unseen"] else ""
    title = f"{domain['name']}{never}: {domain['tokens']:,} tokens in {domain['windows']} windows (95% intervals)"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row["name"]), *cells(row, domain["name"]))
    return table


def cells(row: dict[str, Any], domain: str) -> list[str]:
    """A line's figures in one domain, as printed: bits over projections and over all, MB, perplexity, KL, share."""
    found = row["domains"][domain]
    low, high = found["perplexity_interval"] or (found["perplexity"],) * 2
    below, above = found["kl_interval"] or (found["kl"],) * 2
    share = found.get("regained")
    return [
        f"{row['bits_projections']:.2f}",
        f"{row['bits_all']:.2f}",
        f"{row['megabytes']:.1f}",
        f"{found['perplexity']:.2f} {low:.2f}–{high:.2f}",
        f"{found['kl']:.4f} ±{(above - below) / 2:.4f}",
        ""
        if share is None
        else "{:.0f} {:.0f}–{:.0f}".format(*(100 * x for x in (share, *found["regained_interval"]))),
    ]
