"""Low-rank adapters on every linear layer: y = W x + (alpha / rank) B A x (LoRA, arXiv 2106.09685, section 4.1).

AFM's recovery and task adapters (arXiv 2407.21075, section 5). The base stays frozen; the steps `recovery` and
`summariser` train the adapter, engines switch it by name. A module keeps its name and its weight's name, so a model
with adapters reads and writes the checkpoints of one without.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openafm.model import Transformer


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank term beside its frozen weight."""

    def __init__(self, base: nn.Linear, a: Tensor, b: Tensor, scale: float):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_a, self.lora_b, self.scale = nn.Parameter(a), nn.Parameter(b), scale
        self.rank = a.shape[0]
        """Leading rows in use: all, but while a nested adapter is trained."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., in)` to `(..., out)`."""
        a, b = self.lora_a[: self.rank], self.lora_b[:, : self.rank]
        return super().forward(x) + F.linear(F.linear(x, a), b) * self.scale


def attach(model: Transformer, rank: int, alpha: float, targets: Iterable[str] | None = None, seed: int = 0) -> None:
    """Put a fresh adapter on the linear layers named `targets` (all when None) and freeze everything else.

    A is drawn as LoRA's reference does, uniformly within 1/sqrt(in); B is zero, so the model's function stays.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    names = sorted(model.linears() if targets is None else targets)
    for name in names:
        linear = _linear(model, name)
        bound = linear.in_features**-0.5
        state[f"{name}.lora_a"] = (torch.rand(rank, linear.in_features, generator=generator) * 2 - 1) * bound
        state[f"{name}.lora_b"] = torch.zeros(linear.out_features, rank)
    load_adapter(model, state, alpha)


def load_adapter(model: Transformer, state: Mapping[str, Tensor], alpha: float) -> None:
    """Put the adapter `state` on the model in place of any other; only its weights are trainable then.

    Raises ValueError when the adapter was made for another shape.
    """
    detach(model)
    model.requires_grad_(False)
    layers = {}  # all of them before any is put there: one that does not fit leaves the model as it is
    for name in sorted({key.rpartition(".")[0] for key in state}):
        linear = _linear(model, name)
        a, b = (state[f"{name}.{half}"].detach().to(linear.weight, copy=True) for half in ("lora_a", "lora_b"))
        if (b.shape[0], a.shape[1]) != tuple(linear.weight.shape) or a.shape[0] != b.shape[1]:
            raise ValueError(
                f"the adapter's {name} is {b.shape[0]} x {a.shape[1]} at rank {a.shape[0]}, the model's "
                f"{tuple(linear.weight.shape)}: it was made for another model"
            )
        layers[name] = LoRALinear(linear, a, b, alpha / a.shape[0])
    for name, layer in layers.items():
        put_layer(model, name, layer)


def adapter_state(model: Transformer, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Return the adapter's matrices: `NAME.lora_a` `(rank, in)` and `NAME.lora_b` `(out, rank)`, sorted by name."""
    state = {}
    for name, layer in sorted(adapted(model).items()):
        state[f"{name}.lora_a"] = layer.lora_a.detach().to(dtype, copy=True)
        state[f"{name}.lora_b"] = layer.lora_b.detach().to(dtype, copy=True)
    return state


def truncated(state: Mapping[str, Tensor], alpha: float, rank: int) -> tuple[dict[str, Tensor], float]:
    """Return the adapter of the first `rank` components of `state`, and its alpha: the scale alpha / rank stays.

    Of use where the components are ordered, as the step `recovery` trains them (nested ranks).
    """
    whole = next(tensor.shape[0] for key, tensor in state.items() if key.endswith("lora_a"))
    if not 0 < rank <= whole:
        raise ValueError(f"rank {rank} cannot be cut from an adapter of rank {whole}")
    cut = {key: tensor[:rank] if key.endswith("lora_a") else tensor[:, :rank] for key, tensor in state.items()}
    return cut, alpha * rank / whole


def use_rank(model: Transformer, rank: int) -> None:
    """Let only the first `rank` components of the adapter on the model take part, and be trained."""
    for layer in adapted(model).values():
        layer.rank = rank


def detach(model: Transformer) -> None:
    """Take the adapter off: plain linear layers with the very same weights."""
    for name, layer in adapted(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        put_layer(model, name, plain)


@torch.no_grad()
def merge(model: Transformer) -> None:
    """Add the adapter to the weights and take it off: W + (alpha / rank) B A."""
    for layer in adapted(model).values():
        layer.weight += layer.scale * layer.lora_b @ layer.lora_a
    detach(model)


def adapted(model: Transformer) -> dict[str, LoRALinear]:
    """Return the layers that carry the adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def _linear(model: Transformer, name: str) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the model has no layer {name}: the adapter was made for another model") from None
    if not isinstance(module, nn.Linear):
        raise ValueError(f"{name} is no linear layer: the adapter was made for another model")
    return module


def put_layer(model: Transformer, name: str, module: nn.Linear) -> None:
    """Put `module` in the place of the linear layer `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
