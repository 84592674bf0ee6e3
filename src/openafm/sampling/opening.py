"""Any model as a `Sampler`, told by where it is: a server, a package, or a model folder."""

from pathlib import Path
from typing import Literal

import torch

from openafm.engine import TorchEngine, open_engine
from openafm.engine.package import find_package
from openafm.sampling.endpoint import EndpointSampler
from openafm.sampling.sampler import EngineSampler, Sampler, TorchSampler


def open_sampler(
    where: str,
    *,
    model: str = "",
    cache: Path | None = None,
    dtype: torch.dtype = torch.float32,
    engine: Literal["torch", "native"] = "torch",
) -> Sampler:
    """Open `http://…/v1` (with the name of one of its models), a package `model.afm`, or a model folder.

    `native` decodes packages and folders in C++, faster, in the precision it stores; its answers are not torch's to
    the bit, and it does not score. Raises ValueError for a server without a model's name, for what is neither of these,
    and where the native engine is asked for and cannot run the model.
    """
    if where.startswith(("http://", "https://")):
        if not model:
            raise ValueError(f"{where} may serve several models: say which one")
        return EndpointSampler(where, model, cache=cache)
    if engine == "native":
        return EngineSampler(open_engine(Path(where), "native"))
    if find_package(Path(where)):
        return EngineSampler(TorchEngine.load(Path(where)))
    return TorchSampler.load(Path(where), dtype)
