"""Step `compress`: calibrate, allocate bits, palettize, pack, and check the pack against the unpacked weights.

AFM (arXiv 2407.21075, section 5.1): 4-bit tables shared by 16 rows, the least sensitive projections at 2 bits, the
embedding in int8. Block after block, each column's error is made up for by those after it, on training text that has
gone through the compressed blocks before.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import log, prod
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from openafm.compression.allocation import allocate, curve
from openafm.compression.calibration import READERS, Windows, compare, read_windows, readings, replaced
from openafm.compression.embedding import quantize_embedding
from openafm.compression.feedback import corrected, eliminate, output_error, palettize_with_feedback
from openafm.compression.package import sizes, verify_package, write_package
from openafm.engine.package import EMBEDDING, FOLDER, Package
from openafm.engine.packed import Palettized, stored_bits
from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.model.transformer import Block, rope_angles
from openafm.scoring import intervals
from openafm.stage import Config, Context, Metrics
from openafm.training.hardware import autocast


class CompressConfig(Config):
    """How far to compress, and how much text to measure it on."""

    target_bits: float = 3.6
    """Average bits a projection weight, tables included; the rest of the package is printed beside it. Never above."""
    group: int = 16
    """Rows that share one table."""
    block: int | None = None
    """Weights that share one table, in whole rows, in place of `group`; AFM's blocks go up to 100,000."""
    length: int = 256
    """Window of all measurements, in tokens."""
    calibration_tokens: int = 16_384
    """Training tokens whose activations say what an error in each column costs."""
    sensitivity_tokens: int = 2048
    """Training tokens on which each projection's loss at 2 bits is measured; their logits are kept in memory."""
    heldout_tokens: int = 16_384
    """Held-out tokens that the package is judged on."""


def compress(config: CompressConfig, context: Context, *, model: Path, shards: Path) -> Metrics:
    """Turn the model folder into a package, `model.afm/`, and measure what that costs on held-out text."""
    torch.set_num_threads(context.hardware.threads)
    base = load_model(model).requires_grad_(False)
    windows = read_windows(shards, "train", config.length, config.calibration_tokens)
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in base.linears().items()}
    groups = {name: table_rows(columns, config.group, config.block) for name, (_, columns) in shapes.items()}
    high, low = ({name: stored_bits(shapes[name], bits, groups[name]) for name in shapes} for bits in (4, 2))
    weights = sum(map(prod, shapes.values()))
    budget = int(config.target_bits * weights)
    if budget < sum(low.values()):
        floor = sum(low.values()) / weights
        raise ValueError(f"target_bits {config.target_bits} is below {floor:.3f}, which all projections at 2 bits take")
    costs = {}
    if _undecided(high, low, budget):
        judging = read_windows(shards, "train", config.length, config.sensitivity_tokens)
        costs = sensitivities(base, windows, judging, groups, context)
    coarse = allocate(high, low, costs or dict.fromkeys(shapes, 0.0), budget)
    bits = {name: 2 if name in coarse else 4 for name in shapes}
    projections, errors = palettize_model(base, windows, bits, groups, context)
    package = _pack(context.out / FOLDER, base, projections, model)
    layers = {
        name: {
            "bits": bits[name],
            **({"kl_at_2_bits": round(costs[name], 6)} if costs else {}),
            "error": round(errors[name], 6),
        }
        for name in sorted(bits)
    }
    heldout = read_windows(shards, "heldout", config.length, config.heldout_tokens)
    size, judged = sizes(package), _judge(base, package.model(), heldout)
    spent = "{projection_bits_per_weight:.2f} bits a projection, {package_bits_per_weight:.2f} in all".format(**size)
    lost = "bits per byte {bits_per_byte_base:.3f} -> {bits_per_byte:.3f}, KL {kl:.4f}".format(**judged)
    expected = [[round(b / weights, 4), round(kl, 6)] for b, kl in curve(high, low, costs)] if costs else []
    return {"headline": f"{spent}; {lost}", **size, **judged, "layers": layers, "kl_by_bits": expected}


def table_rows(columns: int, group: int, block: int | None) -> int:
    """Rows of one table: `group`, or those that make about `block` weights, in sixteens where they are as many."""
    if block is None:
        return group
    rows = max(1, round(block / columns))
    return rows if rows < 16 else round(rows / 16) * 16


def _undecided(high: Mapping[str, int], low: Mapping[str, int], budget: int) -> bool:
    """Whether some projections, but not all, must go low: only then does it matter which."""
    least = sum(low.values())
    return sum(high.values()) > budget >= least + min(high[name] - low[name] for name in high)


@torch.no_grad()
def sensitivities(
    model: Transformer, calibration: Windows, windows: Windows, groups: Mapping[str, int], context: Context
) -> dict[str, float]:
    """Return KL to the whole model, nats a token of `windows`, when each projection alone goes to 2 bits.

    In the run's precision: they are only compared with each other, and a model has hundreds of projections.
    """
    batches = windows.batches(model.config.vocab_size)
    rope = rope_angles(torch.arange(windows.tokens.shape[1] - 1), model.config.head_dim, model.config.rope_base)

    def log_probabilities(x: Tensor, blocks: Sequence[Block]) -> Tensor:
        """What the last `blocks` make of what the first of them reads."""
        with autocast(context.hardware):
            for block in blocks:
                x = block(x, rope, None, None)
            return F.log_softmax(model.logits(model.model.norm(x)).float(), -1)

    inputs = [model.model.embed_tokens(rows[:, :-1]) for rows in batches]
    reference = [log_probabilities(x, model.blocks) for x in inputs]
    costs, linears = {}, model.linears()
    looks = readings(model, model, calibration, context.hardware)
    for number, reading in enumerate(context.track(looks, "sensitivity", steps(model))):
        layer, part = divmod(number, len(READERS))
        if layer and not part:  # the blocks before the changed one always give the same
            with autocast(context.hardware):
                inputs = [model.blocks[layer - 1](x, rope, None, None) for x in inputs]
        elimination = eliminate(reading.gram)
        for name in reading.names:
            coarse = palettize_with_feedback(linears[name].weight, elimination, 2, groups[name]).dequantize()
            with replaced(model, name, torch.from_numpy(coarse)):
                total = sum(
                    float(F.kl_div(log_probabilities(x, model.blocks[layer:]), log_p, log_target=True, reduction="sum"))
                    for x, log_p in zip(inputs, reference, strict=True)
                )
            costs[name] = total / windows.predicted
    return costs


def palettize_model(
    base: Transformer, windows: Windows, bits: Mapping[str, int], groups: Mapping[str, int], context: Context
) -> tuple[dict[str, Palettized], dict[str, float]]:
    """Palettize the projections of `base`, which stays as it is; returns them and their relative output errors."""
    model, made, errors = deepcopy(base), {}, {}
    linears = model.linears()
    for reading in context.track(readings(base, model, windows, context.hardware), "palettize", steps(model)):
        elimination = eliminate(reading.gram)
        for name in reading.names:
            weight = corrected(linears[name].weight, reading)
            made[name] = palettize_with_feedback(weight, elimination, bits[name], groups[name])
            errors[name] = output_error(weight, made[name], reading.gram)
            linears[name].weight.data = torch.from_numpy(made[name].dequantize())
    return made, errors


def steps(model: Transformer) -> int:
    """How many readings there are."""
    return len(READERS) * len(model.blocks)


def _pack(folder: Path, base: Transformer, projections: dict[str, Palettized], tokenizer: Path) -> Package:
    """Write the package, open it again and compare every tensor."""
    quantized = {f"{name}.weight" for name in (*projections, EMBEDDING)}
    rest = {name: tensor.numpy() for name, tensor in base.state_dict().items() if name not in quantized}
    embedding = quantize_embedding(base.model.embed_tokens.weight.numpy())
    write_package(folder, base.config, projections, embedding, rest, tokenizer)
    package = Package(folder)
    verify_package(package, projections, embedding, rest)
    return package


def _judge(base: Transformer, quantized: Transformer, windows: Windows) -> Metrics:
    """Compare both models on held-out windows: bits a byte, KL, their 95% intervals over windows."""
    found = compare(quantized, base, windows)
    kl, to_bits = found.kl, windows.predicted / log(2) / windows.bytes
    change = [(after - before) * to_bits for before, after in zip(found.base, found.model, strict=True)]
    return {
        "heldout_tokens": windows.predicted,
        "heldout_windows": len(kl),
        "bits_per_byte_base": round(sum(found.base) / len(kl) * to_bits, 5),
        "bits_per_byte": round(sum(found.model) / len(kl) * to_bits, 5),
        "bits_per_byte_change_interval": _rounded(intervals.mean(change)),
        "kl": round(sum(kl) / len(kl), 6),
        "kl_interval": _rounded(intervals.mean(kl)),
    }


def _rounded(values: tuple[float, float]) -> list[float]:
    return [round(value, 6) for value in values]
