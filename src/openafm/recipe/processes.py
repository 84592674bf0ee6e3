"""A run on many processes: `torchrun --nproc-per-node 2 -m openafm run RECIPE`, with `--only STEP` or without.

Rank 0 runs the recipe as ever: lock, artifacts, manifests, progress, every step that does not train. The others wait
for the training steps that it announces, call the same stage function beside it, so that they meet in the training
loop, and throw away what they would write. Checkpoints are rank 0's and theirs together, so a run that torchrun starts
again goes on from the last one.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openafm.recipe import artifacts
from openafm.recipe.recipe import Recipe, Step
from openafm.stage import Context, Hardware

TRAINING = frozenset("pretrain learn_masks sft_arms sft reward rejection direct mdloo recovery task_adapter".split())
"""Stages that call the training loop."""


def join() -> bool:
    """Join the processes that torchrun started; whether this one only takes part."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    from openafm.training import parallel

    parallel.start()
    return parallel.rank() > 0


def announce(step: Step | None, hardware: Hardware) -> None:
    """Rank 0 tells the others what comes: a training step, or (None) the end of the run."""
    if step is None or step.stage in TRAINING:
        _tell({"step": step.name if step else None, "hardware": asdict(hardware)})


def meet(step: Step) -> None:
    """Wait until all have left the step."""
    if step.stage in TRAINING and _many():
        from openafm.training import parallel

        parallel.meet()


def take_part(recipe: Recipe, folder: Path) -> None:
    """What the other processes do until rank 0 is done with the run in `folder`."""
    while (task := _tell(None))["step"] is not None:
        step, hardware = recipe.steps[task["step"]], Hardware(**task["hardware"])
        settle(hardware)
        _call(step, hardware, folder)
        meet(step)


def _call(step: Step, hardware: Hardware, folder: Path) -> None:
    """The stage's function, with folders of its own; only checkpoints are shared."""
    shared = artifacts.partial(folder, step.name) / "scratch"
    own = shared / f"rank-{os.environ['RANK']}"
    artifacts.remove(own / "out")
    for path in (own / "out", own / "scratch"):
        path.mkdir(parents=True, exist_ok=True)
    context = Context(own / "out", own / "scratch", step.seed, hardware, warn=_nobody)
    context.parallelism, context.shared = step.parallelism, shared
    step.signature.function(step.config, context, **step.paths(folder))


def leave() -> None:
    """The run is done: the others go, rank 0 writes its report alone."""
    if _many():
        from openafm.training import parallel

        parallel.leave()


def settle(hardware: Hardware) -> None:
    """The same number of threads and deterministic kernels on every start: sums are taken in the same order."""
    threads = max(1, hardware.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _many() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _tell(message: dict[str, Any] | None) -> dict[str, Any]:
    """Rank 0's message, on every process."""
    if not _many():
        return message or {}
    from torch import distributed

    from openafm.training.parallel import waiting_group

    messages = [message]
    distributed.broadcast_object_list(messages, group=waiting_group())
    return messages[0] or {}


def _nobody(message: str) -> None:
    """Rank 0 warns for all."""
