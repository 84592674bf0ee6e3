"""Many processes in the one training loop: FSDP2, HSDP, tensor and context parallelism over one device mesh.

    torchrun --nproc-per-node 2 -m openafm run nano --only teacher

A stage hands over model, batches, loss and optimizer as ever. Here the model becomes a sharded copy whose parameters
the optimizer updates, each process takes its rows (and its part of each sequence) of every batch, and sums over
processes make losses and gradients means over all tokens of the batch. At the end the weights are whole again.
"""

import copy
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from openafm.model import Transformer
from openafm.model.transformer import Block
from openafm.stage import Hardware, Parallelism
from openafm.training.batches import Batch
from openafm.training.context import SharedSequence, part_of
from openafm.training.hardware import is_plain
from openafm.training.heartbeat import Heartbeat
from openafm.training.losses import LossOutput

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from openafm.training.optimizers import ClippedOptimizer

WAIT = timedelta(days=30)
"""Other processes wait this long for rank 0, which alone runs what is no training."""
SILENT, SILENT_SECONDS = "OPENAFM_RANK_SECONDS", 600.0
"""Environment variable, and its default: for so long processes wait for one that does not answer."""
COMPARED = 100
"""Steps from one comparison of the processes with one another to the next; there is one before each checkpoint too."""

_beating: list[Heartbeat] = []


class DifferError(ValueError):
    """What has to be the same on several processes is not: a machine computes or remembers wrongly."""


def start() -> int:
    """Join the processes that torchrun started; how many there are. Does nothing alone or a second time."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and not distributed.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend, number = "cpu:gloo,cuda:nccl" if cuda else "gloo", int(os.environ["RANK"])
        silent = timedelta(seconds=float(os.environ.get(SILENT, SILENT_SECONDS)))
        store = _store()
        distributed.init_process_group(backend, timeout=silent, store=store, rank=number, world_size=processes)
        _beating.append(Heartbeat(store, number, processes, silent.total_seconds()).start())
    return processes


def _store() -> distributed.Store:
    """Where the processes find one another.

    torchrun keeps its store over restarts, and with it the addresses of processes that have died: who reads them waits
    for ever. One node's restarts are numbered; nodes count each their own, so there torchrun has to make it anew.
    """
    one_node = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts and not one_node and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ValueError(
            "processes on several nodes do not find one another after a restart while torchrun keeps its store: start "
            "it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --rdzv-backend c10d, or with --max-restarts 0"
        )
    store, _, _ = next(distributed.rendezvous("env://"))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_node else ""
    return distributed.PrefixStore(f"restart-{restart}", store)


def leave() -> None:
    """The end of `start`'s processes: left to Python's own end, their groups' threads abort it now and then."""
    if distributed.is_initialized():
        meet()
        while _beating:
            _beating.pop().over.set()
        waiting_group.cache_clear()
        device_mesh.cache_clear()
        distributed.destroy_process_group()


def rank() -> int:
    """This process's number, 0 where it is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def meet() -> None:
    """Wait, for days if need be, until all processes are here."""
    if distributed.is_initialized():
        distributed.barrier(group=waiting_group())


def once(path: Path, make: Callable[[], None]) -> None:
    """Have rank 0 make a file on the disk of all processes where it is not there yet; all go on when it is."""
    if rank() == 0 and not path.exists():
        make()
    meet()


@cache
def waiting_group() -> distributed.ProcessGroup:
    """All processes, in a group of its own: for what goes on beside training, or takes longer than its timeout."""
    group: distributed.ProcessGroup = distributed.new_group(backend="gloo", timeout=WAIT)
    return group


def sizes(parallelism: Parallelism, processes: int) -> tuple[int, int, int, int]:
    """Processes along replicate, shard, context and tensor. Raises ValueError where they do not make up `processes`."""
    rest = parallelism.replicate * parallelism.context * parallelism.tensor
    shard = parallelism.shard or max(1, processes // rest)
    if shard * rest != processes:
        started = f"torchrun started {processes}" if processes > 1 else "there is one (torchrun starts more)"
        raise ValueError(
            f"parallelism (replicate {parallelism.replicate} x shard {shard} x context {parallelism.context} x tensor "
            f"{parallelism.tensor}) is for {shard * rest} processes, and {started}: change one of them, for example "
            "with --set parallelism.shard=0, which takes all that are left"
        )
    return parallelism.replicate, shard, parallelism.context, parallelism.tensor


@dataclass(frozen=True)
class Mesh:
    """All processes, and this one's place among them."""

    root: "DeviceMesh"
    """replicate x fsdp x tensor; fsdp is shard and context together, for both see other tokens."""
    context: "DeviceMesh"
    rows: int
    """Processes that hold other rows of a batch."""
    row: int
    """This one's number among them."""

    @property
    def tensor(self) -> "DeviceMesh":
        """Processes that hold the same tokens."""
        return self.root["tensor"]

    @property
    def stream(self) -> int:
        """This one's number among the processes that hold other tokens: dropout draws differ between them."""
        return self.row * self.context.size() + self.context.get_local_rank()


@cache
def device_mesh(parallelism: Parallelism, device: str) -> Mesh:
    """The processes as `parallelism` arranges them."""
    from torch.distributed.device_mesh import init_device_mesh

    replicate, shard, context, tensor = sizes(parallelism, distributed.get_world_size())
    shape, names = (replicate, shard * context, tensor), ("replicate", "fsdp", "tensor")
    root = init_device_mesh(device, shape, mesh_dim_names=names)
    finer = root._unflatten("fsdp", (shard, context), ("shard", "context"))
    row = finer["replicate"].get_local_rank() * shard + finer["shard"].get_local_rank()
    return Mesh(root, finer["context"], replicate * shard, row)


class LossStep(nn.Module):
    """Model and loss as one module, so that the weights outside of the blocks are whole for all of the loss."""

    def __init__(self, network: nn.Module, loss: Callable[[Any, Batch], LossOutput]):
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch: Batch) -> tuple[Tensor, float, dict[str, float]]:
        """The fields of LossOutput (FSDP looks for tensors in tuples, not in dataclasses)."""
        output = self.loss(self.network, batch)
        return output.loss, output.weight, output.metrics


class Devices:
    """What of the training loop depends on how many processes take part; with one, it is all trivial."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Batch], LossOutput],
        optimizer: "ClippedOptimizer",
        hardware: Hardware,
        parallelism: Parallelism,
    ):
        processes = distributed.get_world_size() if distributed.is_initialized() else 1
        sizes(parallelism, processes)
        self.model, self.loss, self.network = model, loss, model
        """`network` is what is trained: the model itself, or this process's shards of it."""
        self.mesh = device_mesh(parallelism, hardware.device) if processes > 1 else None
        if self.mesh is not None:
            self.network = _twin(model)
            _parallelise_tensors(self.network, self.mesh)
            _share_sequences(self.network, self.mesh)
            self.step = shard(LossStep(self.network, loss), self.mesh, hardware.precision)
            move_optimizer(optimizer, model, self.network)
        for module in self.network.modules():
            if isinstance(module, Transformer):
                module.recompute = parallelism.recompute
        self.optimizer = optimizer

    def evaluate(self, batch: Batch) -> LossOutput:
        """The loss of a part of this process's share."""
        return self.loss(self.model, batch) if self.mesh is None else LossOutput(*self.step(batch))

    def share(self, batch: Batch) -> Batch:
        """This process's rows of the batch, and its part of each sequence."""
        if self.mesh is None:
            return batch
        count, number = self.mesh.rows, self.mesh.row
        rows = len(next(iter(batch.values())))
        if rows % count:
            raise ValueError(
                f"a batch of {rows} rows cannot be split evenly over {count} processes: change the step's batch_tokens "
                "(or its rows a batch), or put fewer processes into parallelism.shard and replicate"
            )
        mine = slice(number * (rows // count), (number + 1) * (rows // count))
        return part_of({name: tensor[mine] for name, tensor in batch.items()}, self.mesh.context)

    def add(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes that hold other tokens."""
        if self.mesh is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return (total / self.mesh.tensor.size()).tolist()

    def divide_gradients(self, weight: float) -> None:
        """Make sums over all tokens means; FSDP has already divided by the processes that hold other tokens."""
        if self.mesh is not None:
            weight /= self.mesh.rows * self.mesh.context.size()
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                local(parameter.grad).div_(weight)

    @torch.no_grad()
    def compare(self, step: int, batch: Batch, loss: float) -> None:
        """Hold the processes against one another: batch, loss and counts of all of them, and weights of replicas.

        Weights are copied over `replicate`, and those that `tensor` does not split over that. Compared are sums of
        their bits, so any single flipped bit is seen. Raises DifferError on every process that sees a difference.
        """
        if self.mesh is None:
            return
        split, copied = _bits(self.network, "tensor")
        mesh, counts = self.mesh.root, self.optimizer
        same = [step, counts.updates, counts.skipped, counts.scale, counts.grad_norm, loss]
        compared = {
            "the batch": (bits(batch.values()), None),
            "counts, loss or gradient norm": (bits([torch.tensor(same, dtype=torch.float64)]), None),
            "the replicas' weights": (split + copied, "replicate"),
            "weights that tensor parallelism copies": (copied, "tensor"),
        }
        for what, (found, dimension) in compared.items():
            if dimension is not None and mesh[dimension].size() == 1:
                continue
            ends = torch.tensor([found, -found])
            group = None if dimension is None else mesh.get_group(dimension)
            distributed.all_reduce(ends, distributed.ReduceOp.MAX, group=group)
            if ends[0] != -ends[1]:
                raise DifferError(
                    f"step {step}: {what} differ between processes (rank {rank()} among them): memory, disk or a link "
                    "of a machine is at fault. Nothing of this step was kept; the same command goes on from the last "
                    "checkpoint, before which all agreed. If it comes again, leave a machine out"
                )

    @torch.no_grad()
    def collect(self) -> None:
        """Bring the model's own weights up to date, whole on every process."""
        if self.mesh is None:
            return
        own = dict(self.model.named_parameters())
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                own[name].copy_(whole(parameter))

    def end(self) -> None:
        """Leave the model whole, and the optimizer at its parameters, with the state's shards kept for a next call."""
        if self.mesh is not None:
            self.collect()
            move_optimizer(self.optimizer, self.network, self.model)


def local(tensor: Tensor) -> Tensor:
    """This process's shard, sharing its memory; the tensor itself where it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def bits(tensors: Iterable[Tensor]) -> int:
    """The sum of the tensors' words of 32 bits, each tensor's weighed by its place: one flipped bit changes it."""
    total = 0
    for number, tensor in enumerate(tensors):
        row = tensor.detach().cpu().reshape(-1).clone().view(torch.uint8)  # a shard may begin anywhere
        words = row.numel() // 4 * 4
        found = row[:words].view(torch.int32).sum(dtype=torch.int64) + row[words:].sum(dtype=torch.int64)
        total += (2 * number + 1) * int(found)
    return total % 2**62


def _bits(network: nn.Module, name: str) -> tuple[int, int]:
    """Of this process's shards: those of weights that the mesh's dimension `name` splits, and those of all others."""
    kinds: tuple[list[Tensor], list[Tensor]] = ([], [])
    for parameter in network.parameters():
        tensor: Any = parameter
        names = tensor.device_mesh.mesh_dim_names or () if hasattr(tensor, "device_mesh") else ()
        split = name in names and tensor.placements[names.index(name)].is_shard()
        kinds[not split].append(local(parameter))
    return bits(kinds[0]), bits(kinds[1])


def whole(tensor: Tensor) -> Tensor:
    """All shards put together, on every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _twin(model: nn.Module) -> nn.Module:
    """A copy of the modules over the same weights: sharding replaces the copy's parameters only."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _parallelise_tensors(network: nn.Module, mesh: Mesh) -> None:
    """Split heads and FFN units of every block over `tensor`: Megatron's two all-reduces a block (arXiv 1909.08053).

    Embedding and norms stay whole on each of these processes. Raises ValueError where the shape does not divide.
    """
    count = mesh.tensor.size()
    if count == 1:
        return
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        ParallelStyle,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    if not is_plain(network):
        raise ValueError("tensor parallelism takes plain models, no masks, heads or adapters: set tensor: 1 here")
    config = network.config
    if config.n_kv_heads % count or config.d_ff % count:
        raise ValueError(
            f"{config.n_kv_heads} key heads, FFN {config.d_ff}: not divisible by parallelism.tensor {count}"
        )
    for block in network.blocks:
        heads = {name: SequenceParallel(sequence_dim=1, use_local_output=True) for name in ("q_norm", "k_norm")}
        plan: dict[str, ParallelStyle] = {f"self_attn.{name}": style for name, style in heads.items() if config.qk_norm}
        plan |= {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"} | {
            "self_attn.o_proj": RowwiseParallel()
        }
        plan |= {f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")} | {
            "mlp.down_proj": RowwiseParallel()
        }
        parallelize_module(block, mesh.tensor, plan)


def _share_sequences(network: nn.Module, mesh: Mesh) -> None:
    if mesh.context.size() == 1:
        return
    if not is_plain(network):
        raise ValueError("context parallelism takes plain models, no masks, heads or adapters: set context: 1 here")
    network.part = SharedSequence(mesh.context)


def shard(step: LossStep, mesh: Mesh, precision: str) -> LossStep:
    """Split each block's parameters, then all others, over `fsdp` (and copy them over `replicate`).

    In bfloat16 blocks are gathered in it: the very values that autocast would make of the float32 shards.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    over = mesh.root["replicate", "fsdp"] if mesh.root["replicate"].size() > 1 else mesh.root["fsdp"]
    half = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
    for module in list(step.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=over, mp_policy=policy)
    fully_shard(step, mesh=over)
    return step


def move_optimizer(optimizer: torch.optim.Optimizer, source: nn.Module, target: nn.Module) -> None:
    """Let the optimizer update `target`'s parameters in place of `source`'s, of the same names; its state follows."""
    names = {id(parameter): name for name, parameter in source.named_parameters()}
    new = dict(target.named_parameters())
    state: dict[Tensor, Any] = {new[names[id(parameter)]]: value for parameter, value in optimizer.state.items()}
    for group in optimizer.param_groups:
        group["params"] = [new[names[id(parameter)]] for parameter in group["params"]]
    optimizer.state = defaultdict(dict, state)
