"""muParam (simple): initialisation and learning rates that transfer over width (arXiv 2309.14322, section 3.2.2).

Linear weights start at N(0, 1/fan_in), the embedding at N(0, 1/d_model); each linear weight's learning rate is
multiplied by base_width / d_model. Embeddings and norms keep the whole rate, and depth changes nothing. axlearn caps
the factor at 1, which would switch muParam off below the base width; we do not.
"""

from typing import Any

import torch
from torch import nn

from openafm.model.transformer import Transformer


def initialise(model: Transformer, seed: int) -> Transformer:
    """Draw all weights anew from `seed`, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    linears = {f"{name}.weight" for name in model.linears()}
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name in linears:
                std = parameter.shape[1] ** -0.5
            elif parameter.ndim == 2:
                std = model.config.d_model**-0.5
            else:
                parameter.fill_(1.0)
                continue
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def parameter_groups(model: Transformer, base_width: int) -> list[dict[str, Any]]:
    """Optimizer groups with their learning-rate multiplier `mult`: the projections, and all the rest."""
    scaled = {id(linear.weight) for linear in model.linears().values()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) in scaled], "mult": base_width / model.config.d_model},
        {"params": [p for p in trainable if id(p) not in scaled], "mult": 1.0},
    ]
    return [group for group in groups if group["params"]]


def trainable_groups(module: nn.Module) -> list[dict[str, Any]]:
    """One group with the whole rate: adapters and heads, whose width never changes."""
    return [{"params": [p for p in module.parameters() if p.requires_grad], "mult": 1.0}]
