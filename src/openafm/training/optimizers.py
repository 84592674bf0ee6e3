"""RMSProp with momentum, as AFM's pretraining uses it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from openafm.training.parallel import local


class RMSPropMomentum(torch.optim.Optimizer):
    """RMSProp with momentum and decoupled decay (arXiv 2407.21075, section 3.2.1; axlearn's `adastar_optimizer`).

    In this order, for each step t, with s the schedule's factor and mult each group's own (muParam):

        g     <- g * min(1, 1 / (norm(g) + 1e-8))          the whole step is skipped when norm(g) >= 100 or not finite
        v     <- 0.95 v + 0.05 (g^2 + 1e-30);  v_hat = v / (1 - 0.95^t)
        u     <- g / sqrt(v_hat);  u <- u / max(1, RMS(u))  for each parameter
        m     <- 0.95 m + 0.05 u                           no bias correction: about 20 damped steps at the start
        theta <- theta - s (lr * mult * m + weight_decay * theta)

    The training loop sets `scale` (s) before each step. Parameters and state are fp32.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        *,
        decay: float = 0.95,
        momentum: float = 0.95,
        max_norm: float = 1.0,
        skip_norm: float = 100.0,
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "mult": 1.0, "decay": decay, "momentum": momentum}
        super().__init__(list(groups), defaults)
        self.max_norm, self.skip_norm = max_norm, skip_norm
        self.scale = 1.0
        self.grad_norm = 0.0
        """Norm of the last gradient, before clipping."""
        self.updates = 0
        """Steps taken, skipped ones not counted: t in the formulas."""
        self.skipped = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the parameters' gradients."""
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = float(total_norm(grads)) if grads else 0.0
        if not self.grad_norm < self.skip_norm:  # NaN included
            self.skipped += 1
            return
        self.updates += 1
        clip = min(1.0, self.max_norm / (self.grad_norm + 1e-8))
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(group, parameters, clip)

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor], clip: float) -> None:
        grads = torch._foreach_mul([local(p.grad) for p in parameters if p.grad is not None], clip)
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"v": torch.zeros_like(p), "m": torch.zeros_like(p)}
        second = [local(self.state[p]["v"]) for p in parameters]
        momentum = [local(self.state[p]["m"]) for p in parameters]
        decay, beta = group["decay"], group["momentum"]

        torch._foreach_mul_(second, decay)
        torch._foreach_add_(second, (1 - decay) * 1e-30)
        torch._foreach_addcmul_(second, grads, grads, 1 - decay)
        root = torch._foreach_sqrt(torch._foreach_div(second, 1 - decay**self.updates))
        updates = torch._foreach_div(grads, root)
        norms = norms_of_all(list(torch._foreach_norm(updates)), parameters)
        limits = [max(1.0, float(norm) / p.numel() ** 0.5) for norm, p in zip(norms, parameters, strict=True)]
        torch._foreach_div_(updates, limits)

        torch._foreach_mul_(momentum, beta)
        torch._foreach_add_(momentum, updates, alpha=1 - beta)
        weights = [local(p) for p in parameters]
        torch._foreach_mul_(weights, 1 - self.scale * group["weight_decay"])
        torch._foreach_add_(weights, momentum, alpha=-self.scale * group["lr"] * group["mult"])


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all of them together, of all their shards."""
    norms = norms_of_all(list(torch._foreach_norm([local(tensor) for tensor in tensors])), tensors)
    return torch.linalg.vector_norm(torch.stack(norms))


def norms_of_all(norms: list[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The norms of whole tensors, from those of this process's shards of them."""
    layouts: dict[Any, list[int]] = {}
    for number, tensor in enumerate(tensors):
        if hasattr(tensor, "placements"):
            layouts.setdefault((tensor.device_mesh, tensor.placements), []).append(number)
    for (mesh, placements), numbers in layouts.items():
        squares = torch.stack([norms[number] for number in numbers]).double().square()
        for dimension, placement in enumerate(placements):
            if not placement.is_replicate():
                torch.distributed.all_reduce(squares, group=mesh.get_group(dimension))
        for number, norm in zip(numbers, squares.sqrt().float(), strict=True):
            norms[number] = norm
    return norms
