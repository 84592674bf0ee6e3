"""Memory that a training step will take on each device, by doing one without data, devices or network.

PyTorch's fake process group plays all other processes and fake tensors have shapes but no memory, so a step of any size
on any number of devices runs here in seconds: the real model, sharding and loss, followed by PyTorch's memory trackers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import distributed

from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import parameter_groups
from openafm.stage import Hardware, Parallelism
from openafm.training.batches import Batch
from openafm.training.hardware import autocast
from openafm.training.loop import Loss
from openafm.training.losses import LossOutput, _ChunkedCrossEntropy
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.parallel import Devices, local


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the worst moment of a step."""

    weights: int
    """float32 shards."""
    optimizer: int
    """Both moments."""
    gradients: int
    """float32 shards."""
    rest: int
    """Activations, gathered weights, logits, and gradients on their way."""

    @property
    def peak(self) -> int:
        """All together."""
        return self.weights + self.optimizer + self.gradients + self.rest


def pretend(processes: int) -> None:
    """Be rank 0 of so many processes that do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)


def dry_run(
    config: ModelConfig,
    parallelism: Parallelism,
    *,
    rows: int,
    length: int,
    precision: Literal["float32", "bfloat16"] = "bfloat16",
    loss: Loss | None = None,
    numbers: Sequence[str] = (),
) -> Memory:
    """Two micro-batches of `rows` sequences of `length` tokens on each device, forward and backward.

    With more than one process call `pretend` first. A second micro-batch finds the gradients of the first. `loss` is
    the next token's, or another that asks no tensor for its value, of batches that have `numbers` too, one a row.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    hardware = Hardware(precision=precision)
    with torch.device("meta"):
        model = Transformer(config)
    optimizer = RMSPropMomentum(parameter_groups(model, config.d_model), lr=0.01)
    devices = Devices(model, loss or _loss, optimizer, hardware, parallelism)
    network = devices.network if devices.mesh is None else devices.step
    positions = length // (devices.mesh.context.size() if devices.mesh else 1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        network.train()
        for parameter in network.parameters():
            optimizer.state[parameter] = {moment: torch.zeros_like(parameter) for moment in ("v", "m")}
        batch = {name: torch.zeros((rows, positions), dtype=torch.int64) for name in ("inputs", "targets")}
        batch |= {name: torch.zeros(rows) for name in numbers}
        peak = _peak(devices, network, batch, hardware)
    weights = sum(local(parameter).nbytes for parameter in network.parameters())
    moments = 2 * weights
    return Memory(weights, moments, weights, peak - 2 * weights)


def _peak(devices: Devices, network: torch.nn.Module, batch: Batch, hardware: Hardware) -> int:
    """Most bytes held at once by weights, gradients and all that comes and goes."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.distributed.fsdp import FSDPModule

    if isinstance(network, FSDPModule):
        tracker: MemTracker = FSDPMemTracker(network)
        tracker.track_inputs((batch,))  # type: ignore[attr-defined]
    else:
        tracker = MemTracker()
        tracker.track_external(network)
    with tracker:
        for _ in range(2):
            with autocast(hardware):
                output = devices.evaluate(batch)
            (output.loss * output.weight).backward()
            tracker.reset_mod_stats()
            del output
    snapshot = tracker.get_tracker_snapshot("peak")
    return max(found["Total"] for found in snapshot.values())


def _loss(network: Transformer, batch: Batch) -> LossOutput:
    """The next token's loss without figures to log: a fake tensor has no value."""
    rows, targets = network.hidden(batch["inputs"]).flatten(0, 1), batch["targets"].view(-1, 1)
    output = network.model.embed_tokens.weight
    loss, _ = _ChunkedCrossEntropy.apply(rows, output, targets, [1.0], 1e-6)  # type: ignore[no-untyped-call]
    return LossOutput(loss, 1.0)
