"""RMSProp with momentum, as AFM's pretraining uses it, and AdamW, the baseline of its ablation.

Both work through the parameters in blocks of a few megabytes, many tensors at a time: a block stays in the cache for
all of its operations, and nothing is ever held but the gradients, two moments and one block. The gradients' memory
holds the updates afterwards. Sharded parameters (DTensor) are updated where they lie; only norms cross devices.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openafm.training.parallel import local

BLOCK = {"cpu": 2**18, "cuda": 2**26, "mps": 2**26}
"""Elements of a block: on a CPU its four tensors fit the second-level caches, elsewhere they fill the device."""


class ClippedOptimizer(torch.optim.Optimizer, ABC):
    """What both share: the gradient clipped to norm 1, wild steps skipped, the schedule's factor s.

    g <- g * min(1, 1 / (norm(g) + 1e-8)); the whole step is skipped, the state frozen, when norm(g) >= 100 or is not
    finite. The training loop sets `scale` (s) before each step; a group's `mult` is muParam's. Decay is decoupled from
    the learning rate, follows s, and falls on every parameter. State is in the parameters' precision (fp32): `v` and
    `m`, second and first moment.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        *,
        decay: float = 0.95,
        momentum: float = 0.95,
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "mult": 1.0, "decay": decay, "momentum": momentum}
        super().__init__(list(groups), defaults)
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data.contiguous()  # blocks are views of one row; an SVD's factors come transposed
        self.max_norm, self.skip_norm = 1.0, 100.0
        self.scale = 1.0
        self.grad_norm = 0.0
        """Norm of the last gradient, before clipping."""
        self.updates = 0
        """Steps taken, skipped ones not counted: t in the formulas."""
        self.skipped = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the parameters' gradients, which are used up."""
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = sum(square_sums(grads)) ** 0.5 if grads else 0.0
        if not self.grad_norm < self.skip_norm:  # NaN included
            self.skipped += 1
            return
        self.updates += 1
        clip = min(1.0, self.max_norm / (self.grad_norm + 1e-8))
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if not self.state[p]:
                    self.state[p] = {"v": torch.zeros_like(p), "m": torch.zeros_like(p)}
            if parameters:
                self._update(group, parameters, clip)

    @abstractmethod
    def _update(self, group: dict[str, Any], parameters: list[Tensor], clip: float) -> None:
        """Take the step of one group whose gradients are scaled by `clip`."""

    def _blocks(self, parameters: Sequence[Tensor]) -> Iterator["Block"]:
        """The parameters with gradients and moments, cut and gathered into blocks."""
        block, room = Block(), BLOCK[parameters[0].device.type]
        limit = room
        for number, p in enumerate(parameters):
            assert p.grad is not None
            pieces = [_flat(tensor) for tensor in (p, p.grad.contiguous(), self.state[p]["v"], self.state[p]["m"])]
            start, size = 0, pieces[0].numel()
            while start < size:
                count = min(room, size - start)
                block.add(number, [piece[start : start + count] for piece in pieces])
                start, room = start + count, room - count
                if not room:
                    yield block
                    block, room = Block(), limit
        if block.owners:
            yield block


@dataclass
class Block:
    """Flat pieces of parameters `p`, gradients `g` and moments `v` and `m`; `owners` numbers their parameters."""

    owners: list[int] = field(default_factory=list)
    p: list[Tensor] = field(default_factory=list)
    g: list[Tensor] = field(default_factory=list)
    v: list[Tensor] = field(default_factory=list)
    m: list[Tensor] = field(default_factory=list)

    def add(self, owner: int, pieces: list[Tensor]) -> None:
        """Take in one piece of each kind."""
        self.owners.append(owner)
        for pile, piece in zip((self.p, self.g, self.v, self.m), pieces, strict=True):
            pile.append(piece)


class RMSPropMomentum(ClippedOptimizer):
    """RMSProp with momentum and decoupled decay (arXiv 2407.21075, section 3.2.1; axlearn's `adastar_optimizer`).

    In this order, for each step t, with s the schedule's factor and mult each group's own (muParam):

        g     <- g * min(1, 1 / (norm(g) + 1e-8))          the whole step is skipped when norm(g) >= 100 or not finite
        v     <- 0.95 v + 0.05 (g^2 + 1e-30);  v_hat = v / (1 - 0.95^t)
        u     <- g / sqrt(v_hat);  u <- u / max(1, RMS(u))  for each parameter
        m     <- 0.95 m + 0.05 u                           no bias correction: about 20 damped steps at the start
        theta <- theta - s (lr * mult * m + weight_decay * theta)
    """

    def _update(self, group: dict[str, Any], parameters: list[Tensor], clip: float) -> None:
        decay, beta = group["decay"], group["momentum"]
        # With v_hat and the clipped g written out, u = factor * g / sqrt(v): one number waits for the second pass.
        factor = clip * (1 - decay**self.updates) ** 0.5
        for block in self._blocks(parameters):
            torch._foreach_mul_(block.v, decay)
            torch._foreach_addcmul_(block.v, block.g, block.g, (1 - decay) * clip * clip)
            torch._foreach_add_(block.v, (1 - decay) * 1e-30)
            torch._foreach_div_(block.g, torch._foreach_sqrt(block.v))
        squares = square_sums([p.grad for p in parameters if p.grad is not None])
        rms = [factor * (square / p.numel()) ** 0.5 for square, p in zip(squares, parameters, strict=True)]
        for block in self._blocks(parameters):
            torch._foreach_mul_(block.g, [factor / max(1.0, rms[owner]) for owner in block.owners])
            torch._foreach_lerp_(block.m, block.g, 1 - beta)
            torch._foreach_mul_(block.p, 1 - self.scale * group["weight_decay"])
            torch._foreach_add_(block.p, block.m, alpha=-self.scale * group["lr"] * group["mult"])


class AdamW(ClippedOptimizer):
    """AdamW (arXiv 1711.05101), the baseline of AFM's ablation: momenta 0.9 and 0.95, decay 1e-4.

    m <- 0.9 m + 0.1 g;  v <- 0.95 v + 0.05 g^2
    theta <- theta - s (lr * mult * m_hat / (sqrt(v_hat) + 1e-8) + weight_decay * theta)
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float = 1e-4):
        super().__init__(groups, lr, weight_decay, decay=0.95, momentum=0.9)

    def _update(self, group: dict[str, Any], parameters: list[Tensor], clip: float) -> None:
        decay, beta = group["decay"], group["momentum"]
        root = (1 - decay**self.updates) ** 0.5
        lr = self.scale * group["lr"] * group["mult"] * root / (1 - beta**self.updates)
        for block in self._blocks(parameters):
            torch._foreach_mul_(block.g, clip)
            torch._foreach_lerp_(block.m, block.g, 1 - beta)
            torch._foreach_mul_(block.v, decay)
            torch._foreach_addcmul_(block.v, block.g, block.g, 1 - decay)
            divisor = torch._foreach_sqrt(block.v)
            torch._foreach_add_(divisor, 1e-8 * root)
            torch._foreach_mul_(block.p, 1 - self.scale * group["weight_decay"])
            torch._foreach_addcdiv_(block.p, block.m, divisor, -lr)


def square_sums(tensors: Sequence[Any]) -> list[float]:
    """Sum of squares of each tensor, over all of its shards where it is sharded (DTensor)."""
    sums = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors])).double().square()
    layouts: dict[Any, list[int]] = {}
    for number, tensor in enumerate(tensors):
        if hasattr(tensor, "placements"):
            layouts.setdefault((getattr(tensor, "device_mesh", None), tensor.placements), []).append(number)
    for (mesh, placements), rows in layouts.items():
        shared = sums[rows]
        for dim, placement in enumerate(placements):
            if not placement.is_replicate():
                torch.distributed.all_reduce(shared, group=mesh.get_group(dim))
        sums[rows] = shared
    return sums.tolist()


def _flat(tensor: Any) -> Tensor:
    """The local part as one row, sharing its memory."""
    return local(tensor).view(-1)
