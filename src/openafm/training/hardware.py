"""The hardware probe: which device, precision and number of threads are fastest here, measured in about a second.

A run asks once, at its first start, and keeps the answer in run.json (`openafm run`): other choices sum in another
order and give other bytes.
"""

import shutil
import time
from pathlib import Path
from typing import Any, Literal, TypeGuard

import psutil
import torch
from torch import nn

from openafm.files import cores, free_memory
from openafm.model import Transformer
from openafm.model.transformer import Block
from openafm.stage import Hardware

MARGIN = 1.2
"""bfloat16 must be so much faster than float32 to be chosen: it costs precision, and timings are noisy."""
SHAPE = (512, 256, 1024)
"""Tokens, width and FFN width of the block that is timed."""
COMPILE_FROM = 1e14
"""Least FLOPs of a step that compiles: about eight minutes on two cores, against half a minute of compiling."""
SMALL_MEMORY = 3 * 2**30
"""Below this much free memory micro-batches are a quarter."""


def probe() -> tuple[Hardware, dict[str, Any]]:
    """The choice for this machine, and the measurements it rests on (tokens per second, cores, free memory)."""
    device, threads = best_device(), physical_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        single, half = _tokens_per_second(device)
    finally:
        torch.set_num_threads(before)
    free = free_memory()
    precision: Literal["float32", "bfloat16"] = "bfloat16" if half > MARGIN * single else "float32"
    micro_batch = 8192 if free > SMALL_MEMORY else 2048
    measured = {
        "float32_tokens_per_second": round(single),
        "bfloat16_tokens_per_second": round(half),
        "free_memory_mb": round(free / 2**20),
    }
    return Hardware(device, threads, precision, micro_batch, can_compile(device)), measured


def autocast(hardware: Hardware) -> torch.autocast:
    """The precision of a run's forward passes, as a context."""
    return torch.autocast(hardware.device, dtype=torch.bfloat16, enabled=hardware.precision == "bfloat16")


def is_plain(model: nn.Module) -> TypeGuard[Transformer]:
    """Whether this is a decoder alone: no masks or heads around it, no adapters in it."""
    return isinstance(model, Transformer) and all(type(linear) is nn.Linear for linear in model.linears().values())


def compile_blocks(model: nn.Module, tokens: int, hardware: Hardware) -> list[Block]:
    """Compile the blocks of a plain decoder that is to train on so many tokens, where that pays; the compiled ones.

    All share one kernel, kept in torch's cache on disk. `plain_blocks` takes it back.
    """
    if not hardware.compile or not is_plain(model):
        return []
    if 6 * sum(p.numel() for p in model.parameters()) * tokens < COMPILE_FROM:
        return []
    for block in model.blocks:
        block.compile(dynamic=False)
    return model.blocks


def plain_blocks(blocks: list[Block]) -> None:
    """Let compiled blocks run as written again: generation has another shape at every token."""
    for block in blocks:
        block._compiled_call_impl = None


def can_compile(device: str) -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler for a CPU; a GPU's comes with torch."""
    return device == "cuda" or (device == "cpu" and any(map(shutil.which, ("g++", "clang++"))))


def best_device() -> str:
    """cuda, mps or cpu, whichever is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def physical_cores() -> int:
    """Physical cores this process may use: within its affinity and its container's quota of CPU time."""
    logical = psutil.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    shared = max(1, cores() * physical // logical) if cores() < logical else physical
    return max(1, min(shared, int(_quota())))


def _quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """CPUs that the container may use at a time (Linux cgroup v2); infinite where nothing limits it."""
    try:
        limit, period = file.read_text().split()
    except (OSError, ValueError):
        return 1e6
    return 1e6 if limit == "max" else max(1.0, float(limit) / float(period))


def _tokens_per_second(device: str) -> tuple[float, float]:
    """Forward and backward through a SwiGLU-sized block in float32 and under bfloat16 autocast, taken alternately."""
    tokens, width, wide = SHAPE
    block = nn.Sequential(nn.Linear(width, wide), nn.SiLU(), nn.Linear(wide, width)).to(device)
    inputs = torch.full((tokens, width), 0.5, device=device)
    best = {False: float("inf"), True: float("inf")}
    for _ in range(3):  # the first of each also warms up
        for half in best:
            best[half] = min(best[half], _seconds(block, inputs, half))
    return tokens / best[False], tokens / best[True]


def _seconds(block: nn.Module, inputs: torch.Tensor, half: bool) -> float:
    device = inputs.device
    started = time.perf_counter()
    for _ in range(2):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            loss = block(inputs).square().mean()
        loss.backward()
    if device.type != "cpu":
        (torch.cuda if device.type == "cuda" else torch.mps).synchronize()
    return (time.perf_counter() - started) / 2
