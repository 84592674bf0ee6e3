"""Weights of packages and model folders into the native engine: from the file's map to tiles, several at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openafm.engine.mapped import Tensor, tensors
from openafm.engine.package import EMBEDDING, Package

if TYPE_CHECKING:
    from openafm.engine._native import Model


def read_package(model: "Model", package: Package) -> None:
    """Put a package's weights in their places, and see to their checksums meanwhile.

    Raises ValueError for one that misses or does not fit, and for a file that is damaged.
    """

    def projection(name: str) -> None:
        """Hand over one projection as it is packed: its indices and its float16 tables."""
        layer = package.layers[name]
        indices, tables = package.packed(name)
        model.set_palettized(name, indices, tables.view(np.uint16), layer.bits, layer.group, layer.shape[1])

    def embedding() -> None:
        """Hand over the embedding, int8 `(vocab, d_model)` with a float32 scale for each row."""
        found = package.embedding()
        model.set_int8(EMBEDDING, found.values, found.scales.astype(np.float32))

    _together(model, [*package.checks(), embedding, *(partial(projection, name) for name in package.layers)])
    for name, gain in package.norms().items():
        model.set_norm(name, gain)
    model.check()


def read_folder(model: "Model", path: Path, int8: bool) -> None:
    """Put a checkpoint's tensors in their places; `int8` rounds every matrix, with a scale for each row."""

    def put(name: str, tensor: Tensor) -> None:
        """Hand over one tensor: a vector as a norm, a matrix in its own precision or in int8; ValueError for others."""
        matrix, values = name.removesuffix(".weight"), tensor.values
        if values.ndim == 1:
            model.set_norm(name, _floats(tensor))
        elif values.ndim != 2 or tensor.dtype not in ("F32", "F16", "BF16"):
            raise ValueError(f"{path}: {name} is no matrix in float32, float16 or bfloat16; make the folder again")
        elif int8:
            model.set_int8(matrix, *_rounded(_floats(tensor)))
        elif tensor.dtype == "F32":
            model.set_float(matrix, values)
        else:
            (model.set_bfloat if tensor.dtype == "BF16" else model.set_half)(matrix, values.view(np.uint16))

    found = tensors(path)
    _together(model, [partial(put, name, tensor) for name, tensor in found.items()])
    model.check()


def _together(model: "Model", jobs: list[Callable[[], None]]) -> None:
    """Repack matrices on as many threads as the model has; the first error of a job is raised."""
    with ThreadPoolExecutor(model.threads) as threads:
        for done in [threads.submit(job) for job in jobs]:
            done.result()


def _floats(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor in float32."""
    if tensor.dtype == "BF16":
        return (tensor.values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(tensor.values, np.float32)


def _rounded(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix in int8 and a scale for each row, `(rows,)`: weight = value * scale, off by half a scale at most."""
    scales = np.abs(weight).max(1, initial=0) / np.float32(127)
    steps = weight / np.where(scales > 0, scales, np.float32(1))[:, None]
    return np.rint(steps).astype(np.int8), scales.astype(np.float32)
