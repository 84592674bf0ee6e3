"""A folder of adapters: `NAME/adapter.safetensors` in float16 and `NAME/card.json`, as packages carry them.

The card says what the adapter is: rank, data, metrics, parent, checksum (docs/format.md).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

if TYPE_CHECKING:
    from torch import Tensor

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WEIGHTS, CARD = "adapter.safetensors", "card.json"


@dataclass(frozen=True)
class Adapter:
    """An adapter's matrices and what is known of it."""

    state: "Mapping[str, Tensor]"
    """`LAYER.lora_a` `(rank, in)` and `LAYER.lora_b` `(out, rank)`."""
    rank: int
    alpha: float
    parent: str | None = None
    """Adapter it was started from."""
    data: str = ""
    """What it was trained on."""
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        return sum(tensor.numel() for tensor in self.state.values())


class AdapterStore:
    """Adapters by name in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self) -> list[str]:
        """Names of all adapters, sorted."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{CARD}"))

    def save(self, name: str, adapter: Adapter) -> None:
        """Write the adapter in float16 under `name`, in place of an older one."""
        import torch  # reading does without, for the native engine
        from safetensors.torch import save_file

        folder = self._path(name)
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: tensor.detach().to("cpu", torch.float16).contiguous() for key, tensor in adapter.state.items()}
        save_file(state, folder / WEIGHTS)
        data = (folder / WEIGHTS).read_bytes()
        card = {
            "name": name, "rank": adapter.rank, "alpha": adapter.alpha, "parent": adapter.parent, "data": adapter.data,
            "parameters": adapter.parameters, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
            "metrics": adapter.metrics,
        }  # fmt: skip
        (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")

    def load(self, name: str) -> Adapter:
        """Read an adapter. Raises ValueError when it is unknown or its bytes are not those that were written."""
        from safetensors.torch import load

        card, data = self._verified(name)
        return Adapter(load(data), card["rank"], card["alpha"], card["parent"], card["data"], card["metrics"])

    def arrays(self, name: str) -> tuple[dict[str, NDArray[np.float16]], float]:
        """Read an adapter's matrices without torch, and its alpha. Raises ValueError as `load` does."""
        card, data = self._verified(name)
        try:
            arrays, alpha = load_arrays(data), float(card["alpha"])
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path(name) / WEIGHTS} is no adapter ({error}): train or copy it again") from error
        halves = {key.rpartition(".")[0] + end for key in arrays for end in (".lora_a", ".lora_b")}
        if halves != arrays.keys() or not all(
            x.ndim == 2 and x.size and x.dtype == np.float16 for x in arrays.values()
        ):
            raise ValueError(f"{self._path(name) / WEIGHTS} is no adapter in float16: train or copy it again")
        return arrays, alpha

    def _verified(self, name: str) -> tuple[dict[str, Any], bytes]:
        """The card and the bytes it vouches for."""
        card = self.card(name)
        path = self._path(name) / WEIGHTS
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != card["sha256"]:
            raise ValueError(f"{path} is damaged or missing (its checksum is not the card's): train or copy it again")
        return card, data

    def card(self, name: str) -> dict[str, Any]:
        """Read what an adapter's card says."""
        path = self._path(name) / CARD
        if not path.exists():
            raise ValueError(f"no adapter {name!r} in {self.folder}: it holds {', '.join(self.names()) or 'none'}")
        try:
            card = json.loads(path.read_bytes())
            return {key: card[key] for key in (*_CARD_KEYS, "bytes", "sha256")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): train or copy the adapter again") from error

    def _path(self, name: str) -> Path:
        """Return the adapter's folder; a name is no path, so nothing outside the store is ever reached."""
        if not NAME.fullmatch(name):
            raise ValueError(f"adapter name {name!r}: use up to 64 letters, digits, '.', '_' and '-', a letter first")
        return self.folder / name


_CARD_KEYS = ("name", "rank", "alpha", "parent", "data", "parameters", "metrics")
