"""Palettization: weights a second and squared error over the optimum, against coremltools and plain Lloyd.

    openafm bench palettize --rows 256 --columns 576 --bits 4
    openafm bench palettize --model runs/device/import --tensor model.layers.2.mlp.down_proj.weight --rows 576

Without a model the weights are drawn (Student's t of 5 degrees). Every `group` rows share one table. Ours weighs
columns; coremltools' post-training palettizer solves each group exactly in C++ (kmeans1d, SMAWK), unweighted; the same
solver is also called directly with our column weights, which is the optimum that errors are compared with. Lloyd starts
from quantiles, as scipy's or scikit-learn's one-dimensional k-means would be run, 20 rounds. The limit is the speed of
sorting the weights alone, which every exact method begins with.
"""

import contextlib
import io
import logging
from pathlib import Path

import numpy as np
import torch
from coremltools._deps import _kmeans1d
from coremltools.optimize.torch.palettization import PostTrainingPalettizer, PostTrainingPalettizerConfig

from harness import alternate, options, show, timed
from openafm.compression import palettize
from openafm.model.huggingface import read_tensor, tensor_files


def main() -> None:
    o = options(__doc__, rows=128, columns=576, bits=4, group=16, threads=1, model="", tensor="")
    torch.set_num_threads(o.threads)
    logging.disable(logging.INFO)
    rng = np.random.default_rng(0)
    weight = rng.standard_t(5, size=(o.rows, o.columns)).astype(np.float32) * 0.03
    if o.model:
        weight = read_tensor(tensor_files(Path(o.model))[o.tensor], o.tensor)[: o.rows].float().numpy()
    columns = np.exp(
        rng.normal(size=weight.shape[1])
    )  # second moments of activations: a wide spread, as in real models
    makers = {
        "openafm, weighted columns": (lambda: palettize(weight, o.bits, o.group, columns).dequantize(), columns),
        "coremltools PostTrainingPalettizer": (lambda: coremltools(weight, o.bits, o.group), None),
        "kmeans1d, weighted columns": (lambda: exact(weight, o.bits, o.group, columns), columns),
        "Lloyd from quantiles": (lambda: lloyd(weight, o.bits, o.group), None),
    }
    unweighted = palettize(weight, o.bits, o.group).dequantize()
    rates = {name: (lambda make=make: weight.size / timed(make) / 1e6) for name, (make, _) in makers.items()}
    figures = alternate(rates, o.repeats)
    best = {
        weighted: error(weight, exact(weight, o.bits, o.group, columns if weighted else None), columns, weighted)
        for weighted in (False, True)
    }
    excess = {"openafm": error(weight, unweighted, columns, False) / best[False] - 1}
    for name, (make, weights) in makers.items():
        weighted = weights is not None
        excess[name] = error(weight, make(), columns, weighted) / best[weighted] - 1
    for name, share in excess.items():
        print(f"{name}: squared error {share:+.4%} over the optimum")
    sort = weight.size / timed(lambda: np.argsort(weight.reshape(-1, o.group * weight.shape[1]), axis=1)) / 1e6
    rows, width = weight.shape
    detail = {"rows": rows, "columns": width, "tensor": o.tensor, "bits": o.bits, "group": o.group}
    show(
        "palettize", "million weights/s", figures, limit=sort, limit_is="sorting the weights",
        detail={**detail, "excess_error": excess}, as_json=o.json,
    )  # fmt: skip


def error(weight: np.ndarray, made: np.ndarray, columns: np.ndarray, weighted: bool) -> float:
    """Squared error, weighted by columns where the contestant was."""
    squares = np.square(weight.astype(np.float64) - made)
    return float((squares @ columns).sum() if weighted else squares.sum())


def exact(weight: np.ndarray, bits: int, group: int, columns: np.ndarray | None) -> np.ndarray:
    """The optimum of each group by kmeans1d's dynamic programme."""
    made = []
    for rows in np.split(weight, len(weight) // group):
        importance = None if columns is None else np.tile(columns, len(rows))
        found = _kmeans1d.cluster(rows.ravel(), 2**bits, weights=importance)
        made.append(np.array(found.centroids)[found.clusters].reshape(rows.shape))
    return np.concatenate(made)


def coremltools(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    """What a user of coremltools calls, on a module with this one weight."""
    module = torch.nn.Sequential(torch.nn.Linear(*weight.shape[::-1], bias=False))
    module[0].weight.data = torch.from_numpy(weight.copy())
    layout = {"n_bits": bits, "granularity": "per_grouped_channel", "group_size": group, "channel_axis": 0}
    config = PostTrainingPalettizerConfig.from_dict({"global_config": layout})
    with contextlib.redirect_stderr(io.StringIO()):
        return PostTrainingPalettizer(module, config).compress(num_kmeans_workers=1)[0].weight.detach().numpy()


def lloyd(weight: np.ndarray, bits: int, group: int, rounds: int = 20) -> np.ndarray:
    """Lloyd's algorithm, group by group."""
    made = []
    for rows in np.split(weight, len(weight) // group):
        values = rows.ravel()
        centres = np.quantile(values, (np.arange(2**bits) + 0.5) / 2**bits)
        for _ in range(rounds):
            labels = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
            counts = np.bincount(labels, minlength=2**bits)
            sums = np.bincount(labels, values, 2**bits)
            centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
        made.append(centres[labels].reshape(rows.shape))
    return np.concatenate(made)


if __name__ == "__main__":
    main()
