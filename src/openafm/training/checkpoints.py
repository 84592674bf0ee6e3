"""Checkpoints of a running stage: weights, optimizer state, curve and position, all of one moment.

    SCRATCH/LABEL/step-00000120/*.safetensors      tensors, each process its shards (PyTorch's DCP)
    SCRATCH/LABEL/step-00000120/checkpoint.json    position, curve and SHA-256 of the files; written last

Training goes on while a copy is written. The newest two are kept. Only what is trained is in them: frozen weights come
from the stage's inputs again. They can be read on another number of processes than wrote them.
"""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from openafm.files import digest
from openafm.training.optimizers import ClippedOptimizer
from openafm.training.parallel import rank, waiting_group

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is no mistake

KEPT = 2
CHEAP = 0.2
"""Seconds a checkpoint may keep training waiting at each turn; dearer ones come less often."""
MARK = "checkpoint.json"


@dataclass
class Position:
    """Where a run of the loop stands, but for its tensors."""

    step: int = 0
    tokens: int = 0
    updates: int = 0
    """Steps that the optimizer took."""
    skipped: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """Those of one call of the training loop, in `folder`, which all processes reach."""

    def __init__(self, folder: Path, network: nn.Module, optimizer: ClippedOptimizer):
        self.folder, self.network, self.optimizer = folder, network, optimizer
        self.blocked = 0.0
        """Seconds that the last save kept training waiting."""
        self.saved = time.monotonic()
        """When the last one was taken, or these were opened."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def due(self, seconds: float) -> bool:
        """Whether it is time for the next: after `seconds`, later where they are dear or one is still being written."""
        busy = self._writing is not None and not self._writing.done()
        return not busy and time.monotonic() - self.saved > seconds * max(1.0, self.blocked / CHEAP)

    def save(self, position: Position) -> None:
        """Copy the state and write it in the background, after the one being written."""
        from torch.distributed.checkpoint import async_save
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

        started = time.monotonic()
        self.wait()
        position.updates, position.skipped = self.optimizer.updates, self.optimizer.skipped
        path, tensors, group = self.folder / f"step-{position.step:08d}", self._tensors(), _group()
        path.mkdir(parents=True, exist_ok=True)
        writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
        written = async_save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
        mark = {"position": json.dumps(asdict(position)), "tensors": sorted(tensors)}
        self._writing = self._pool.submit(_finish, path, written, mark)
        self.saved = time.monotonic()
        self.blocked = self.saved - started

    def wait(self) -> None:
        """Return when nothing is being written any more; raises what went wrong in it."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Wait, and let go of the thread."""
        self._pool.shutdown(wait=True)

    @torch.no_grad()
    def load(self, warn: Callable[[str], None]) -> Position:
        """Bring network and optimizer to the newest checkpoint, if there is one; where it stands.

        A damaged one is named to `warn` and the one before it taken: weights of a flipped bit would train on to other
        bytes. Raises ValueError where all are damaged.
        """
        chosen: list[Any] = [_newest(self.folder, warn) if rank() == 0 else None]
        if distributed.is_initialized():
            distributed.broadcast_object_list(chosen, group=waiting_group())
        if chosen[0] is None:  # the optimizer may have been used before
            return Position(updates=self.optimizer.updates, skipped=self.optimizer.skipped)
        name, mark = chosen[0]
        for key, parameter in self._trained().items():
            if f"v.{key}" in mark["tensors"]:
                self.optimizer.state[parameter] = {moment: torch.zeros_like(parameter) for moment in ("v", "m")}
        _read(self.folder / name, self._tensors())
        at = Position(**json.loads(mark["position"]))
        self.optimizer.updates, self.optimizer.skipped = at.updates, at.skipped
        return at

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.network.named_parameters() if parameter.requires_grad}

    def _tensors(self) -> dict[str, Tensor]:
        """All that is trained, and the optimizer's moments, by name."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._trained().items():
            tensors[f"weight.{name}"] = parameter.detach()
            tensors |= {f"{key}.{name}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        return tensors


def _group() -> Any:
    """The processes' own group for checkpoints: training's collectives go on at the same time."""
    return waiting_group() if distributed.is_initialized() else None


def _finish(path: Path, written: Any, mark: dict[str, Any]) -> None:
    """When all processes have written, seal the checkpoint, then remove all but the newest (rank 0)."""
    written.result()
    if rank() > 0:
        return
    mark["files"] = {file.name: digest(file) for file in sorted(path.glob("*.safetensors"))}
    mark["sha256"] = _seal(mark)
    partial = path / f"{MARK}.partial"
    with partial.open("w") as out:
        json.dump(mark, out)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path / MARK)
    for old in sorted(path.parent.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def _read(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place, whatever their shards are now."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    group = _group()
    reader = HuggingFaceStorageReader(str(path))
    checkpoint.load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)


def _newest(folder: Path, warn: Callable[[str], None]) -> tuple[str, dict[str, Any]] | None:
    """Name and mark of the newest whole checkpoint; what was never finished, or is damaged and not needed, goes."""
    damaged: dict[Path, str] = {}
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not (path / MARK).exists():
            shutil.rmtree(path)
            continue
        try:
            mark = _checked(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged[path] = str(error)
            continue
        for bad, reason in damaged.items():
            warn(f"the checkpoint {bad} is damaged ({reason}): training goes on from {path.name}, the one before")
            shutil.rmtree(bad)
        return path.name, mark
    if damaged:
        path, reason = next(iter(damaged.items()))
        raise ValueError(f"the checkpoint {path} is damaged ({reason}): delete {folder}, the step starts anew then")
    return None


def _checked(path: Path) -> dict[str, Any]:
    """The checkpoint's mark; an error of some kind when anything is not as written."""
    mark: dict[str, Any] = json.loads((path / MARK).read_text())
    if mark["sha256"] != _seal(mark):
        raise ValueError(f"the checksum of {MARK} is wrong")
    for name, written in mark["files"].items():
        if digest(path / name) != written:
            raise ValueError(f"the checksum of {name} is wrong")
    return mark


def _seal(mark: dict[str, Any]) -> str:
    rest = {key: value for key, value in mark.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
