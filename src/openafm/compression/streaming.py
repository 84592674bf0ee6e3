"""A package of a checkpoint of any size, tensor by tensor: `openafm compress MODEL --uncalibrated`.

No text is read, so every column counts the same and all projections take the same bits; that is for models which do
not fit in memory, or where no text is at hand. A tensor is mapped, palettized, packed and written to its place in the
file, whose header is known from the shape alone; what is in memory at once is a few tensors.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openafm.compression.embedding import quantize_embedding
from openafm.compression.package import write_header
from openafm.compression.palettize import palettize
from openafm.engine.package import EMBEDDING, WEIGHTS, LayerFormat, Package
from openafm.engine.packed import pack
from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import TOKENIZER_FILES
from openafm.model.config import load_config
from openafm.model.huggingface import open_folder, read_tensor, tensor_files

ROWS = 4096
"""Rows of the embedding that are quantized at once."""
TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
"""Names of the format, in the order in which its library puts tensors."""
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor -> its type and shape."""
Tracked = Callable[[list[str], str], Iterable[str]]


def palettize_checkpoint(
    source: Path, folder: Path, track: Tracked, bits: int = 4, group: int = 16, threads: int = 1
) -> tuple[Package, float]:
    """Write the package of `source` (a model folder, or one of Hugging Face's) into `folder`.

    Returns it, verified, and the squared error of its projections over their squares. Raises ValueError for a
    checkpoint that cannot be imported, holds NaN or does not fit its config.
    """
    folder.mkdir(parents=True)
    config, files = _open(source, folder)
    with torch.device("meta"):
        model = Transformer(config)
    layers = {
        name: LayerFormat.model_validate(
            {"bits": bits, "group": group, "shape": (linear.out_features, linear.in_features)}
        )
        for name, linear in model.linears().items()
    }
    norms = {name: tuple(part.shape) for name, part in model.state_dict().items() if name.endswith("norm.weight")}
    places = create_tensors(folder / WEIGHTS, layout(config, layers, norms))

    def put(name: str, array: NDArray[Any], first: int = 0) -> None:
        """Write an array where the file has its tensor, `first` bytes behind the tensor's start."""
        with (folder / WEIGHTS).open("r+b") as file:
            file.seek(places[name] + first)
            file.write(np.ascontiguousarray(array).data)

    def read(name: str) -> NDArray[np.float32]:
        """The checkpoint's tensor in float32, in the shape that it is stored in."""
        return read_tensor(files[f"{name}.weight"], f"{name}.weight").float().numpy()

    def project(name: str) -> tuple[str, float, float]:
        """Pack one projection into the file; its digest, its squared error and the sum of its squares."""
        weight = read(name)
        made = palettize(weight, bits, group)
        put(f"{name}.indices", pack(made.indices, bits))
        put(f"{name}.tables", made.tables)
        lost = (made.dequantize() - weight).ravel()
        return _digest(made.indices, made.tables), float(lost @ lost), float(weight.ravel() @ weight.ravel())

    digests = {name: _digest(read(name)) for name in (norm.removesuffix(".weight") for norm in norms)}
    for name in norms:
        put(name, read(name.removesuffix(".weight")))
    digests[EMBEDDING] = _embed(files, config, put)
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(project, names := list(layers))
        found = [next(done) for _ in track(names, "palettize")]
    digests |= {name: made for name, (made, _, _) in zip(names, found, strict=True)}
    write_header(folder, config, layers)
    package = Package(folder)
    verify(package, digests, track)
    return package, sum(lost for _, lost, _ in found) / sum(whole for _, _, whole in found)


def _open(source: Path, folder: Path) -> tuple[ModelConfig, dict[str, Path]]:
    """The checkpoint's shape and the file of each tensor; its tokenizer is written to `folder`."""
    path = source / "config.json"
    if path.is_file() and "model_type" in json.loads(path.read_bytes()):
        return open_folder(source, folder)
    config, files = load_config(source), tensor_files(source)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    return config, files


def layout(config: ModelConfig, layers: Mapping[str, LayerFormat], norms: Mapping[str, tuple[int, ...]]) -> Layout:
    """What a package's weights are made of."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {name: ("F32", shape) for name, shape in norms.items()}
    found[f"{EMBEDDING}.int8"] = ("I8", (config.vocab_size, config.d_model))
    found[f"{EMBEDDING}.scales"] = ("F16", (config.vocab_size,))
    for name, layer in layers.items():
        rows, columns = layer.shape
        found[f"{name}.indices"] = ("U8", (rows, -(-columns * layer.bits // 8)))
        found[f"{name}.tables"] = ("F16", (-(-rows // layer.group), 2**layer.bits))
    return found


def create_tensors(path: Path, tensors: Layout) -> dict[str, int]:
    """Write the header of a safetensors file and leave room for the data; where each tensor's begins.

    Header and order are those of the library: wider types first, then by name.
    """
    order = sorted(tensors, key=lambda name: (list(TYPES).index(tensors[name][0]), name))
    header, places, end = {}, {}, 0
    for name in order:
        kind, shape = tensors[name]
        places[name], end = end, end + TYPES[kind].itemsize * prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [places[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + end)
    return {name: start + place for name, place in places.items()}


def _embed(files: Mapping[str, Path], config: ModelConfig, put: Callable[[str, NDArray[Any], int], None]) -> str:
    """Quantize the embedding some rows at a time; its digest."""
    weight = read_tensor(files[f"{EMBEDDING}.weight"], f"{EMBEDDING}.weight")
    values, scales = hashlib.sha256(), hashlib.sha256()
    for first in range(0, config.vocab_size, ROWS):
        rows = weight[first : min(first + ROWS, config.vocab_size)].float().numpy()
        made = quantize_embedding(rows)
        put(f"{EMBEDDING}.int8", made.values, first * config.d_model)
        put(f"{EMBEDDING}.scales", made.scales, first * 2)
        values.update(made.values.data)
        scales.update(made.scales.data)
    return values.hexdigest() + scales.hexdigest()


def _digest(*arrays: NDArray[Any]) -> str:
    return "".join(hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for array in arrays)


def verify(package: Package, digests: Mapping[str, str], track: Tracked) -> None:
    """Unpack every tensor as an engine does and compare it with what was packed; ValueError naming one that differs."""
    for name in track(sorted(digests), "verify"):
        if _digest(*_unpacked(package, name)) != digests[name]:
            raise ValueError(f"{package.folder / WEIGHTS}: {name} does not unpack to what was packed; compress again")


def _unpacked(package: Package, name: str) -> Iterator[NDArray[Any]]:
    if name in package.layers:
        made = package.projection(name)
        yield from (made.indices, made.tables)
    elif name == EMBEDDING:
        embedding = package.embedding()
        yield from (embedding.values, embedding.scales)
    else:
        yield package.norms()[f"{name}.weight"]
