"""Any model as a `Sampler`, told by where it is: a server, a package, or a model folder."""

from pathlib import Path

import torch

from openafm.engine import TorchEngine
from openafm.engine.package import find_package
from openafm.sampling.endpoint import EndpointSampler
from openafm.sampling.sampler import EngineSampler, Sampler, TorchSampler


def open_sampler(
    where: str, *, model: str = "", cache: Path | None = None, dtype: torch.dtype = torch.float32
) -> Sampler:
    """Open `http://…/v1` (with the name of one of its models), a package `model.afm`, or a model folder.

    Raises ValueError for a server without a model's name and for what is neither of these.
    """
    if where.startswith(("http://", "https://")):
        if not model:
            raise ValueError(f"{where} may serve several models: say which one")
        return EndpointSampler(where, model, cache=cache)
    if find_package(Path(where)):
        return EngineSampler(TorchEngine.load(Path(where)))
    return TorchSampler.load(Path(where), dtype)
