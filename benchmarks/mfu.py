"""Model FLOPs of training over this machine's GEMM peak, against width, depth, vocabulary and sequence length.

    openafm bench mfu --seconds 300

One setting is changed at a time, the others stay at width 512, 8 layers, 4,096 entries, 256 tokens. FLOPs and peak are
counted as in `openafm bench training`, the step is openafm's own, its blocks compiled or not (--compiled yes).
"""

import argparse
import json
import statistics

import torch
from rich.console import Console
from rich.table import Table

from harness import machine, options
from openafm.model import ModelConfig
from training import flops_per_token, gemm_flops, ours, rate, seconds

SWEEPS: dict[str, tuple[int, ...]] = {
    "width": (128, 256, 512, 768, 1024),
    "layers": (2, 4, 8, 16),
    "vocabulary": (2048, 8192, 32_768, 49_152),
    "sequence": (256, 512, 1024, 2048, 4096),
}
USUAL = {"width": 512, "layers": 8, "vocabulary": 4096, "sequence": 256}


def main() -> None:
    o = options(__doc__, seconds=300.0, batch_tokens=4096, threads=2, precision="bfloat16", compiled="no", sweeps="all")
    torch.set_num_threads(o.threads)
    wanted = list(SWEEPS) if o.sweeps == "all" else o.sweeps.split(",")
    points = [USUAL | {name: value} for name in wanted for value in SWEEPS[name]]
    share = o.seconds / (len(points) * o.repeats)
    found, shown = [], Table(title=f"model FLOPs over GEMM peak, {o.precision}")
    for column in (*USUAL, "tokens/s", "of the peak"):
        shown.add_column(column, justify="right")
    for point in points:
        tokens, used = measure(point, o, share)
        found.append({**point, "tokens_per_second": tokens, "share_of_peak": used})
        shown.add_row(*(f"{point[name]:,}" for name in USUAL), f"{tokens:,.0f}", f"{used:.0%}")
    Console(width=110).print(shown)
    if o.json:
        print(json.dumps({"name": "mfu", "unit": "share of GEMM peak", "points": found, "machine": machine()}))


def measure(point: dict[str, int], o: argparse.Namespace, share: float) -> tuple[float, float]:
    """Median tokens a second, and the median share of the peak, the peak measured anew beside each figure."""
    width = point["width"]
    head = 32 if width < 512 else 64
    config = ModelConfig(
        vocab_size=point["vocabulary"], d_model=width, n_layers=point["layers"], n_heads=width // head,
        n_kv_heads=width // head // 2, head_dim=head, d_ff=3 * width,
    )  # fmt: skip
    rows = max(1, o.batch_tokens // point["sequence"])
    setting = argparse.Namespace(batch=rows, length=point["sequence"], precision=o.precision)
    step = ours(config, setting, compiled=o.compiled == "yes")
    once = [seconds(step) for _ in range(3)][-1]
    rates, shares = [], []
    for _ in range(o.repeats):
        rates.append(rate(step, max(1, int(share / once)), rows * point["sequence"]))
        shares.append(rates[-1] * flops_per_token(config, point["sequence"]) / gemm_flops(o.precision, 3))
    return statistics.median(rates), statistics.median(shares)


if __name__ == "__main__":
    main()
