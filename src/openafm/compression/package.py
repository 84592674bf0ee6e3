"""Writing `.afm` packages (format version 1, docs/format.md); `openafm.engine.package` reads them.

Used by the steps `compress` (a new package) and `recovery` and `summariser` (a copy with one more adapter).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from openafm.adapters.store import Adapter
from openafm.engine.package import EMBEDDING, FOLDER, HEADER, VERSION, WEIGHTS, LayerFormat, Package, header_digest
from openafm.engine.packed import Int8Rows, Palettized, pack
from openafm.files import digest, piece_digest, pieces
from openafm.model import ModelConfig
from openafm.model.checkpoint import TOKENIZER_FILES


def write_package(
    folder: Path,
    config: ModelConfig,
    projections: Mapping[str, Palettized],
    embedding: Int8Rows,
    rest: Mapping[str, NDArray[np.floating]],
    tokenizer: Path,
) -> None:
    """Write a package into `folder`; `rest` are the norms, kept in float32, `tokenizer` a folder with its files."""
    folder.mkdir(parents=True)
    tensors: dict[str, NDArray[Any]] = {name: np.asarray(tensor, np.float32) for name, tensor in rest.items()}
    tensors |= {f"{EMBEDDING}.int8": embedding.values, f"{EMBEDDING}.scales": embedding.scales}
    for name, projection in projections.items():
        tensors[f"{name}.indices"] = pack(projection.indices, projection.bits)
        tensors[f"{name}.tables"] = projection.tables
    save_file({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, folder / WEIGHTS)
    for file in TOKENIZER_FILES:
        if (tokenizer / file).exists():
            shutil.copyfile(tokenizer / file, folder / file)
    layers = {
        name: LayerFormat.model_validate({"bits": p.bits, "group": p.group, "shape": p.indices.shape})
        for name, p in projections.items()
    }
    write_header(folder, config, layers)


def write_header(folder: Path, config: ModelConfig, layers: Mapping[str, LayerFormat]) -> None:
    """Write the header of a package whose other files are in `folder`, with their checksums."""
    header = {
        "format": "afm",
        "version": VERSION,
        "config": config.model_dump(),
        "layers": {name: layer.model_dump(mode="json") for name, layer in sorted(layers.items())},
        "files": {path.name: _checksums(path) for path in sorted(folder.iterdir())},
    }
    header["sha256"] = header_digest(header)
    (folder / HEADER).write_text(json.dumps(header, indent=1) + "\n")


def _checksums(path: Path) -> dict[str, Any]:
    """A file's size and digest, and the digests of its pieces where it has several."""
    found: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    if pieces(path) > 1:
        found["pieces"] = [piece_digest(path, number) for number in range(pieces(path))]
    return found


def add_adapter(package: Package, out: Path, name: str, adapter: Adapter) -> Package:
    """Copy the package to `out`/model.afm and put the adapter in the copy."""
    shutil.copytree(package.folder, out / FOLDER)
    copy = Package(out / FOLDER)
    copy.adapters.save(name, adapter)
    return copy


def verify_package(
    package: Package,
    projections: Mapping[str, Palettized],
    embedding: Int8Rows,
    rest: Mapping[str, NDArray[np.floating]],
) -> None:
    """Unpack every tensor and compare it with what was packed. Raises ValueError naming the first that differs."""
    state = {name: tensor.numpy() for name, tensor in package.model().state_dict().items()}
    expected = {f"{name}.weight": projection.dequantize() for name, projection in projections.items()}
    expected |= {f"{EMBEDDING}.weight": embedding.dequantize(), **rest}
    for name in sorted(state.keys() | expected.keys()):
        if name not in state or name not in expected or not np.array_equal(state[name], expected[name]):
            raise ValueError(
                f"{package.folder / WEIGHTS}: {name} does not unpack to what was packed; run compress again"
            )


def sizes(package: Package, shipped: Sequence[str] | None = None) -> dict[str, float]:
    """Bits a weight, twice: over projections (indices and tables), and over all that the package holds.

    The second counts every byte of weights and adapters (only those `shipped`, where given), file headers too, over
    the model's parameters.
    """
    layers = package.layers
    projections = sum(package.projection(name).storage_bits for name in layers)
    store = package.adapters
    adapters = sum(int(store.card(name)["bytes"]) for name in (store.names() if shipped is None else shipped))
    total = (package.folder / WEIGHTS).stat().st_size + adapters
    return {
        "projection_bits_per_weight": round(projections / sum(prod(layer.shape) for layer in layers.values()), 4),
        "package_bits_per_weight": round(8 * total / package.config.parameters, 4),
        "adapter_megabytes": round(adapters / 1e6, 4),
        "megabytes": round(total / 1e6, 4),
    }
