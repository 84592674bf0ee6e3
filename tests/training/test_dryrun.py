"""The dry run's memory against what the allocator really handed out, on gloo processes of the CPU."""

import json

import pytest
import torch
from tests.processes import forked, processes

from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.stage import Hardware, Parallelism
from openafm.training import dryrun
from openafm.training.loop import _accumulate
from openafm.training.losses import chunked_next_token
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.parallel import Devices

CONFIG = ModelConfig(vocab_size=512, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=512)
ROWS, LENGTH = 2, 256
CASES = {
    "one process": (1, {}, "float32"),
    "one process, recomputed, bfloat16": (1, {"recompute": True}, "bfloat16"),
    "shard 2, bfloat16": (2, {}, "bfloat16"),
    "shard 2 x tensor 2": (4, {"tensor": 2}, "float32"),
    "context 2": (2, {"context": 2}, "float32"),
    "context 2, recomputed, bfloat16": (2, {"context": 2, "recompute": True}, "bfloat16"),
}


def allocated_at_most(work) -> int:
    """Most bytes that the CPU's allocator had given out during `work`, over those at its start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measure(rank, path, parallelism, precision) -> None:
    """A real step of two micro-batches, the second in a run, so that all state is there."""
    model = initialise(Transformer(CONFIG), 0)
    optimizer = RMSPropMomentum(parameter_groups(model, 128), 0.01)
    held = ROWS * LENGTH // parallelism.get("context", 1)
    hardware = Hardware(precision=precision, micro_batch_tokens=held)

    def loss(m, b):
        return chunked_next_token(m.hidden(b["inputs"]), m.model.embed_tokens.weight, b["targets"], 1e-6)

    devices = Devices(model, loss, optimizer, hardware, Parallelism(**parallelism))
    count = devices.mesh.rows if devices.mesh else 1
    batch = {name: torch.zeros((2 * ROWS * count, LENGTH), dtype=torch.int64) for name in ("inputs", "targets")}

    def step() -> None:
        _accumulate(devices, batch, hardware, False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    most = min(allocated_at_most(step) for _ in range(5))  # gloo's threads let go of gathered tensors a little late
    path.with_suffix(f".{rank}").write_text(str(most))


def predict(path, count, parallelism, precision) -> None:
    if count > 1:
        dryrun.pretend(count)
    memory = dryrun.dry_run(CONFIG, Parallelism(**parallelism), rows=ROWS, length=LENGTH, precision=precision)
    path.write_text(json.dumps(vars(memory)))


@pytest.mark.parametrize("name", CASES)
def test_memory_is_what_a_real_step_takes(name, tmp_path):
    count, parallelism, precision = CASES[name]
    processes(count, measure, tmp_path / "real", parallelism, precision)
    forked(predict, tmp_path / "dry.json", count, parallelism, precision)
    dry = json.loads((tmp_path / "dry.json").read_text())
    real = int((tmp_path / "real.0").read_text()) + dry["weights"] + dry["optimizer"]
    assert sum(dry.values()) == pytest.approx(real, rel=0.1)
    print(name, dry, real, sum(dry.values()) / real)
