"""Reading `.afm` packages, format version 1 (docs/format.md): what `chat`, `serve` and every engine open.

A package is the folder `model.afm/` with `header.json`, `weights.safetensors`, the tokenizer's files and `adapters/`.
`openafm.compression.package` writes it. Weights are memory-mapped; checksums are verified when a package is opened.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from openafm.adapters.store import AdapterStore
from openafm.engine.mapped import tensors
from openafm.engine.packed import Int8Rows, Palettized, unpack
from openafm.files import digest, piece_digest, pieces
from openafm.model.config import ModelConfig, Size
from openafm.stage import Config

if TYPE_CHECKING:
    from openafm.model import Transformer

VERSION = 1
HEADER, WEIGHTS, ADAPTERS, FOLDER = "header.json", "weights.safetensors", "adapters", "model.afm"
EMBEDDING = "model.embed_tokens"
PROJECTIONS = 7  # of a layer
REMEDY = "make it again: openafm run RECIPE --from compress, or copy the package anew"


class LayerFormat(Config, strict=True):
    """How one projection is stored."""

    bits: Literal[1, 2, 4, 8]
    group: Size
    shape: tuple[Size, Size] = Field(strict=False)


class Package:
    """An open package: tensors are read from the map when asked for."""

    def __init__(self, folder: Path, *, verify: bool = True):
        """Open and verify the package in `folder`. Raises ValueError naming the file that is missing or damaged.

        With `verify=False` the weights' checksums are left to `checks`, which engines do beside other work.
        """
        self.folder, self._verified = folder, verify
        self.header = _read_header(folder / HEADER)
        try:
            self._sha256 = self.header["files"][WEIGHTS]["sha256"]
            self._pieces = list[str](self.header["files"][WEIGHTS].get("pieces", []))
            for name, entry in sorted(self.header["files"].items()):
                if verify or name != WEIGHTS:
                    _verify(folder, name, entry["sha256"])
            self.config = ModelConfig.model_validate(self.header["config"])
            self.layers = {name: LayerFormat.model_validate(entry) for name, entry in self.header["layers"].items()}
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise ValueError(f"{folder / HEADER} does not describe a package ({error!r}); {REMEDY}") from error
        if len(self.layers) != PROJECTIONS * self.config.n_layers:
            found = f"{len(self.layers)} projections for {self.config.n_layers} layers"
            raise ValueError(f"{folder / HEADER} has {found}; {REMEDY}")
        try:
            self._tensors = tensors(folder / WEIGHTS)
        except (OSError, ValueError):
            self.verify_weights()  # names damage for what it is
            raise
        self.adapters = AdapterStore(folder / ADAPTERS)

    def verify_weights(self) -> None:
        """Raise ValueError where the weights' file is not the one that the header means; read it for that only once."""
        if not self._verified:
            for check in self.checks():
                check()
            self._verified = True

    def checks(self) -> list[Callable[[], None]]:
        """What verifies the weights' file, in any order and threads: each raises ValueError where it is damaged."""
        path = self.folder / WEIGHTS
        if not self._pieces or not path.is_file() or pieces(path) != len(self._pieces):
            return [partial(_verify, self.folder, WEIGHTS, self._sha256)]
        return [partial(_verify_piece, path, number, wanted) for number, wanted in enumerate(self._pieces)]

    def projection(self, name: str) -> Palettized:
        """Read the projection `name`."""
        layer = self.layers[name]
        indices, tables = self.packed(name)
        return Palettized(unpack(indices, layer.bits, layer.shape[1]), tables, layer.bits, layer.group)

    def packed(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Return a projection's indices as they are stored, `(rows, bytes)`, and its tables."""
        return self._tensor(f"{name}.indices", np.uint8, 2), self._tensor(f"{name}.tables", np.float16, 2)

    def norms(self) -> dict[str, NDArray[np.float32]]:
        """Read the gains of all norms by name."""
        names = [name for name in self._tensors if name.endswith("norm.weight")]
        return {name: self._tensor(name, np.float32, 1) for name in names}

    def embedding(self) -> Int8Rows:
        """Read the embedding."""
        return Int8Rows(
            self._tensor(f"{EMBEDDING}.int8", np.int8, 2), self._tensor(f"{EMBEDDING}.scales", np.float16, 1)
        )

    def _tensor(self, name: str, dtype: type[np.generic], dimensions: int) -> NDArray[Any]:
        """Read one tensor. Raises ValueError unless it is there as the format has it."""
        path = self.folder / WEIGHTS
        if name not in self._tensors:
            raise ValueError(f"{path} lacks {name}; {REMEDY}")
        values = self._tensors[name].values
        if values.dtype != dtype or values.ndim != dimensions:
            raise ValueError(f"{path}: {name} is {values.dtype} of {values.ndim} dimensions; {REMEDY}")
        return values

    def model(self) -> "Transformer":
        """Dequantize everything into a torch model in float32. Raises ValueError for tensors of another shape."""
        import torch  # the native engine opens packages without it

        from openafm.model import Transformer

        with torch.device("meta"):
            model = Transformer(self.config)
        state = {f"{EMBEDDING}.weight": torch.from_numpy(self.embedding().dequantize())}
        for name in self.layers:
            state[f"{name}.weight"] = torch.from_numpy(self.projection(name).dequantize())
        for name in set(model.state_dict()) - set(state):
            state[name] = torch.from_numpy(self._tensor(name, np.float32, 1).copy())  # the map cannot be written to
        try:
            model.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{self.folder / WEIGHTS} is of another shape than its header says ({error})") from error
        return model.eval()


def find_package(folder: Path) -> Path | None:
    """Return the package that `folder` is or holds, or None."""
    for candidate in (folder, folder / FOLDER):
        if (candidate / HEADER).exists():
            return candidate
    return None


def open_package(folder: Path) -> Package:
    """Open the package that `folder` is or holds. Raises ValueError where there is none."""
    found = find_package(folder)
    if found is None:
        raise ValueError(f"{folder} holds no package ({FOLDER}/{HEADER}): give the output of the step compress")
    return Package(found)


def header_digest(header: dict[str, Any]) -> str:
    """Return the SHA-256 of the header without its own digest, as JSON with sorted keys and no spaces."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _verify(folder: Path, name: str, sha256: str) -> None:
    """Raise ValueError unless the file of this name, which is no path, is the one that the header means."""
    if Path(name).name != name:
        raise ValueError(f"{folder / HEADER} names a file {name!r} outside the package; {REMEDY}")
    if not (folder / name).is_file() or digest(folder / name) != sha256:
        raise ValueError(f"{folder / name} is missing or damaged (its checksum is not the header's); {REMEDY}")


def _verify_piece(path: Path, number: int, sha256: str) -> None:
    if piece_digest(path, number) != sha256:
        raise ValueError(f"{path} is damaged (the checksum of piece {number + 1} is not the header's); {REMEDY}")


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(path.read_bytes())
        version = header["version"]
        damaged = header["format"] != "afm" or header["sha256"] != header_digest(header)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {REMEDY}") from error
    if version != VERSION:
        raise ValueError(
            f"{path} has format version {version}, this program reads {VERSION}: install a fitting openafm"
        )
    if damaged:
        raise ValueError(f"{path} is damaged (its checksum is wrong); {REMEDY}")
    return header
