"""Safetensors files as numpy arrays over the file's map: nothing is copied until it is used, and no torch is needed."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "U8": "u1"}
"""Types that weights have here; numpy has no bfloat16, so its bits stay bits."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    dtype: str
    """As safetensors calls it."""
    values: NDArray[Any]


def tensors(path: Path) -> Mapping[str, Tensor]:
    """Map a file. Raises ValueError where it is missing, damaged, or holds other types."""
    try:
        with safe_open(path, "np"):  # checks names, types, shapes and offsets against one another and the file's size
            data = np.memmap(path, np.uint8, "r")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or missing; make it again ({error})") from error
    length = int.from_bytes(data[:8].tobytes(), "little")
    header: dict[str, dict[str, Any]] = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, data[8 + length :]) for name, entry in sorted(header.items())}


def _tensor(path: Path, name: str, entry: Mapping[str, Any], data: NDArray[np.uint8]) -> Tensor:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{path}: {name} is of type {entry['dtype']}; known are {', '.join(DTYPES)}")
    dtype, (begin, _) = np.dtype(DTYPES[entry["dtype"]]), entry["data_offsets"]
    values = data[begin : begin + math.prod(entry["shape"]) * dtype.itemsize]
    return Tensor(entry["dtype"], np.require(values.view(dtype).reshape(entry["shape"]), requirements="A"))
