"""Weights of packages and model folders into the native engine: from the file's map to tiles, without torch."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from openafm.engine.package import EMBEDDING, Package

if TYPE_CHECKING:
    from openafm.engine._native import Model

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}
"""What a checkpoint may hold; numpy has no bfloat16, so 16 bits stay bits."""


def read_package(model: "Model", package: Package) -> None:
    """Put a package's weights in their places. Raises ValueError for one that misses or does not fit."""
    embedding = package.embedding()
    model.set_int8(EMBEDDING, embedding.values, embedding.scales.astype(np.float32))
    for name, layer in package.layers.items():
        indices, tables = package.packed(name)
        model.set_palettized(name, indices, tables.view(np.uint16), layer.bits, layer.group, layer.shape[1])
    for name, gain in package.norms().items():
        model.set_norm(name, gain)
    model.check()


def read_folder(model: "Model", path: Path, int8: bool) -> None:
    """Put a checkpoint's tensors in their places; `int8` rounds every matrix, with a scale for each row."""
    for name, dtype, values in tensors(path):
        matrix = name.removesuffix(".weight")
        if values.ndim == 1:
            model.set_norm(name, floats(dtype, values))
        elif values.ndim != 2:
            raise ValueError(f"{path}: {name} is no matrix; make the folder again")
        elif int8:
            model.set_int8(matrix, *rounded(floats(dtype, values)))
        elif dtype == "F32":
            model.set_float(matrix, values)
        else:
            (model.set_bfloat if dtype == "BF16" else model.set_half)(matrix, values)
    model.check()


def tensors(path: Path) -> Iterator[tuple[str, str, NDArray[np.generic]]]:
    """Name, type and values of each tensor of a safetensors file, mapped. Raises ValueError where it is damaged."""
    try:
        with safe_open(path, "np"):  # checks names, types, shapes and offsets against one another and the file's size
            data = np.memmap(path, np.uint8, "r")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or missing; make it again ({error})") from error
    length = int.from_bytes(data[:8].tobytes(), "little")
    header: Mapping[str, dict[str, list[int]]] = json.loads(data[8 : 8 + length].tobytes())
    for name in sorted(header.keys() - {"__metadata__"}):
        dtype, shape = str(header[name]["dtype"]), header[name]["shape"]
        if dtype not in DTYPES:
            raise ValueError(f"{path}: {name} is of type {dtype}; known are {', '.join(DTYPES)}")
        begin = 8 + length + header[name]["data_offsets"][0]
        values = data[begin : begin + math.prod(shape) * DTYPES[dtype].itemsize].view(DTYPES[dtype]).reshape(shape)
        yield name, dtype, np.require(values, requirements="A")


def floats(dtype: str, values: NDArray[np.generic]) -> NDArray[np.float32]:
    """A tensor in float32."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(values.view(np.float16) if dtype == "F16" else values, np.float32)


def rounded(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix in int8 and a scale for each row, `(rows,)`: weight = value * scale, off by half a scale at most."""
    scales = np.abs(weight).max(1) / np.float32(127)
    steps = weight / np.where(scales > 0, scales, np.float32(1))[:, None]
    return np.rint(steps).astype(np.int8), scales.astype(np.float32)
