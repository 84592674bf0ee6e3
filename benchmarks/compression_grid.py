"""What compression costs and what the adapter brings back: blocks x bits, each before and after a rank-16 adapter.

    openafm bench compression_grid --run runs/device --base import --results docs/results/compression.jsonl
    openafm bench compression_grid --run runs/device --only "16 rows, 3.7 bits"

Blocks: 16 rows, about 1,000 and 100,000 weights with a table each; and 32 weights with a float16 scale each on one
uniform grid, as formats without tables do. Bits: 4, and 3.7 and 3.5 where the knapsack has sent projections to 2 bits;
2 is quantization-aware training with a learned clip. Tables and scales are counted, so "4 bits" of blocks of 32 are
4.5, and their 3.7 has more projections at 2 bits. The adapter is trained on KL to the base, so the same adapter on the
base itself stays at zero: the base is its control, and the regained share is (q - (q + adapter)) / (q - base).
The embedding is int8 everywhere. `--base offgrid` is the copy fine-tuned in all its weights.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import options
from heldout import CALIBRATION, Base, enter, read_base, whole_size, with_int8_embedding
from openafm.adapters.lora import detach
from openafm.compression.allocation import allocate
from openafm.compression.calibration import Windows, read_windows, readings
from openafm.compression.compress import palettize_model, sensitivities, table_rows
from openafm.compression.feedback import corrected, damped
from openafm.compression.qat import QATConfig, fit_grid, put_on_grid, settle
from openafm.compression.recovery import RecoveryConfig, fit_adapter, start_adapter, text_phase
from openafm.engine.packed import stored_bits
from openafm.files import default_cache
from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.stage import Context
from openafm.training.hardware import probe

ROWS = {"16 rows": (16, None), "1k weights": (16, 1_000), "100k weights": (16, 100_000)}
"""Block -> `group` and `block` of `openafm.compression.compress.table_rows`."""
BLOCKS, SMALL = "32 weights", 32
TARGETS = {"4 bits": 99.0, "3.7 bits": 3.7, "3.5 bits": 3.5}
TRAINED = "2 bits, QAT"
DEFAULT = "16 rows, 3.7 bits"
POINTS = [
    DEFAULT, "16 rows, 4 bits", "16 rows, 3.5 bits", f"16 rows, {TRAINED}",
    "100k weights, 3.7 bits", "32 weights, 3.7 bits", "1k weights, 3.7 bits",
    "100k weights, 4 bits", "32 weights, 4 bits", "1k weights, 4 bits",
    "100k weights, 3.5 bits", "32 weights, 3.5 bits", "1k weights, 3.5 bits",
    f"100k weights, {TRAINED}", f"1k weights, {TRAINED}",
]  # fmt: skip
SENSITIVITY: dict[str, int] = {"length": 256, "tokens": 512}
RECOVERY = RecoveryConfig(rank=16, alpha=16.0, loss="kl", tokens=40_960, batch_tokens=512, lr=1e-3)
ADAPTERS = [
    ("rank 16", RECOVERY),
    ("rank 8", RECOVERY.model_copy(update={"rank": 8, "alpha": 8.0})),
    ("rank 32", RECOVERY.model_copy(update={"rank": 32, "alpha": 32.0})),
    ("rank 16, zero start", RECOVERY.model_copy(update={"start": "zero"})),
    ("rank 16, not trained", RECOVERY.model_copy(update={"tokens": 0})),
]
QAT = QATConfig(tokens=40_960, batch_tokens=512, lr=2e-4, clip_lr=2e-3)


@dataclass(frozen=True)
class Bench:
    """What all points share."""

    base: Base
    shards: Path
    context: Context


def main() -> None:
    o = options(__doc__, run="runs/device", base="import", results="docs/results/compression.jsonl", only="")
    hardware, _ = probe()
    torch.set_num_threads(hardware.threads)
    work = Path(tempfile.mkdtemp(prefix="openafm-grid-"))
    context = Context(work / "out", work / "scratch", 1, hardware, warn=print)
    run, results = Path(o.run), Path(o.results)
    bench = Bench(read_base(run, o.base), run / "shards", context)
    for point in [o.only] if o.only else POINTS:
        for line in measure(bench, results, point):
            print(told(line), flush=True)
    shutil.rmtree(work)


def measure(bench: Bench, results: Path, point: str) -> Iterator[dict[str, Any]]:
    """The lines of a point: before, and after each of its adapters."""
    block, _, bits = point.partition(", ")
    made: list[tuple[Transformer, dict[str, Any]]] = []

    def before() -> tuple[Transformer, dict[str, Any]]:
        if not made:  # only where a line of this point is still to be measured
            made.append(compressed(bench, block, bits))
        return made[0]

    yield enter(results, bench.base, point, before)
    for name, recovery in ADAPTERS if point == DEFAULT else ADAPTERS[:1]:

        def after(recovery: RecoveryConfig = recovery) -> tuple[Transformer, dict[str, Any]]:
            model, sizes = before()
            train_adapter(bench, recovery, model)
            return model, sizes | whole_size(model, sizes["projection_bits"])

        yield enter(results, bench.base, f"{point} + adapter, {name}", after)


def train_adapter(bench: Bench, recovery: RecoveryConfig, model: Transformer) -> None:
    """Put a trained adapter on the model, in place of any other."""
    shutil.rmtree(bench.context.scratch, ignore_errors=True)  # no checkpoint of another point's
    base = load_model(bench.base.folder).requires_grad_(False)
    detach(model)
    start_adapter(recovery, bench.context, base, model, bench.shards)
    fit_adapter(model, base, text_phase(recovery, bench.context, bench.shards), recovery, bench.context, "grid")
    model.eval()


def compressed(bench: Bench, block: str, bits: str) -> tuple[Transformer, dict[str, Any]]:
    """The base at these bits, and its sizes."""
    model = load_model(bench.base.folder).requires_grad_(False)
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in model.linears().items()}
    stored = {kind: {name: stored_as(block, shape, kind) for name, shape in shapes.items()} for kind in (4, 2)}
    if bits == TRAINED:
        chosen = dict.fromkeys(shapes, 2)
        train_on_grid(bench, model, rows_of(block, shapes))
    else:
        chosen = dict.fromkeys(shapes, 4)
        if TARGETS[bits] < 4:
            budget = int(TARGETS[bits] * sum(map(prod, shapes.values())))
            chosen |= dict.fromkeys(allocate(stored[4], stored[2], costs(bench, block), budget), 2)
        calibration = read_windows(bench.shards, "train", **CALIBRATION)
        if block == BLOCKS:
            in_blocks(model, calibration, chosen, bench.context)
        else:
            made, _ = palettize_model(model, calibration, chosen, rows_of(block, shapes), bench.context)
            for name, linear in model.linears().items():
                linear.weight.data = torch.from_numpy(made[name].dequantize())
    size = sum(stored[kind][name] for name, kind in chosen.items())
    weights = sum(map(prod, shapes.values()))
    return with_int8_embedding(model), {
        "projection_bits": size,
        "share_at_2_bits": round(sum(prod(shapes[name]) for name, kind in chosen.items() if kind == 2) / weights, 4),
        **whole_size(model, size),
    }


def rows_of(block: str, shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    return {name: table_rows(columns, *ROWS[block]) for name, (_, columns) in shapes.items()}


def stored_as(block: str, shape: tuple[int, int], bits: int) -> int:
    """Bits that a projection takes, tables or scales included."""
    if block == BLOCKS:
        return prod(shape) * bits + prod(shape) // SMALL * 16
    return stored_bits(shape, bits, table_rows(shape[1], *ROWS[block]))


def costs(bench: Bench, block: str) -> dict[str, float]:
    """KL of each projection alone at 2 bits, kept in the cache; blocks of 32 weights take that of 16 rows."""
    block = "16 rows" if block == BLOCKS else block
    path = default_cache() / f"sensitivity-{bench.base.contest}-{block.replace(' ', '-')}.json"
    if not path.exists():
        model = load_model(bench.base.folder).requires_grad_(False)
        shapes = {name: (linear.out_features, linear.in_features) for name, linear in model.linears().items()}
        calibration = read_windows(bench.shards, "train", **CALIBRATION)
        windows = read_windows(bench.shards, "train", **SENSITIVITY)
        found = sensitivities(model, calibration, windows, rows_of(block, shapes), bench.context)
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def train_on_grid(bench: Bench, model: Transformer, groups: Mapping[str, int]) -> None:
    shutil.rmtree(bench.context.scratch, ignore_errors=True)
    base = load_model(bench.base.folder).requires_grad_(False)
    layers = put_on_grid(
        base, model, read_windows(bench.shards, "train", **CALIBRATION), groups, bench.context.hardware
    )
    fit_grid(model, layers, base, QAT, bench.context, bench.shards)
    settle(model, layers)
    model.eval()


@torch.no_grad()
def in_blocks(model: Transformer, calibration: Windows, bits: Mapping[str, int], context: Context) -> None:
    """Every 32 weights of a row on a uniform grid of their own scale, with error feedback as the tables have it."""
    base, linears = deepcopy(model), model.linears()
    for reading in readings(base, model, calibration, context.hardware):
        for name in reading.names:
            weight = corrected(linears[name].weight, reading)
            linears[name].weight.data = block_feedback(weight, reading.gram, bits[name])


def block_feedback(weight: Tensor, gram: Tensor, bits: int) -> Tensor:
    """GPTQ with groups along the columns: a block's scale is its largest value's when its turn comes."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram)))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    left, made, most = weight.clone(), torch.empty_like(weight), 2 ** (bits - 1)
    for first in range(0, weight.shape[1], SMALL):
        last = first + SMALL
        scale = best_scale(left[:, first:last], most)
        errors = torch.empty(len(weight), SMALL)
        for i in range(first, last):
            made[:, i] = scale * ((left[:, i] / scale + 0.5).round().clamp(1 - most, most) - 0.5)
            errors[:, i - first] = (left[:, i] - made[:, i]) / factor[i, i]
            left[:, i + 1 : last] -= errors[:, i - first, None] * factor[i, i + 1 : last]
        left[:, last:] -= errors @ factor[first:last, last:]
    return made


def best_scale(block: Tensor, most: int) -> Tensor:
    """The scale of each row of `block`, in float16's values, with the least squared error of thirty tried."""
    scales = block.abs().amax(1) / (most - 0.5) * torch.linspace(0.4, 1.0, 30)[:, None]
    scales = scales.half().float().clamp_min(2.0**-24)[..., None]
    errors = (scales * ((block / scales + 0.5).round().clamp(1 - most, most) - 0.5) - block).square().sum(2)
    return scales[..., 0].gather(0, errors.argmin(0, keepdim=True))[0]


def told(line: Mapping[str, Any]) -> str:
    domains = ", ".join(
        f"{name}: +{found['loss_over_base']:.4f} nats, KL {found['kl']:.4f}" for name, found in line["domains"].items()
    )
    bits = f"{line['projection_bits_per_weight']:.2f} and {line['package_bits_per_weight']:.2f} bits"
    return f"{line['name']} ({bits}, {line['megabytes']} MB): {domains}"


if __name__ == "__main__":
    main()
