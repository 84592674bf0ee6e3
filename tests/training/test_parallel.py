"""Training on several processes (gloo), each forked from the test: the losses and weights are those of one."""

import json

import pytest
import torch
from tests.processes import processes

from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.stage import Context, Hardware, Parallelism
from openafm.training.batches import TokenBatches
from openafm.training.loop import train
from openafm.training.losses import next_token
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import cosine

CONFIG = ModelConfig(
    vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48, rope_base=500.0, max_length=32
)
MESHES = {
    "shard 2": (2, {}),
    "replicate 2 x shard 2": (4, {"replicate": 2}),
    "shard 2 x tensor 2": (4, {"tensor": 2}),
    "shard 2 x context 2": (4, {"context": 2}),
    "context 2 x tensor 2, recomputed": (4, {"tensor": 2, "context": 2, "recompute": True}),
}


def run(folder, shards, parallelism=None, *, steps=12, rank=0, dropout=0.0, **options):
    """A short training run; its curve, and its model."""
    model = initialise(Transformer(CONFIG, dropout), 0)
    batches = TokenBatches(shards, {"web": 2, "code": 1}, sequence_length=16, batch_tokens=128, tokens=128 * 12, seed=0)
    optimizer = RMSPropMomentum(parameter_groups(model, 16), 0.02, 1e-3)
    context = Context(folder, folder / f"scratch-{rank}", shared=folder / "shared")
    context.parallelism = Parallelism(**(parallelism or {}))
    context.hardware = Hardware(micro_batch_tokens=32)
    curve = train(
        model,
        batches,
        lambda m, b: next_token(m(b["inputs"]), b["targets"], 1e-4),
        optimizer,
        cosine(128 * 12, 256, 0.01),
        context,
        log_every=1,
        **options,
    )
    return curve, model


def work(rank, folder, shards, parallelism):
    curve, model = run(folder, shards, parallelism, rank=rank)
    if rank == 0:
        (folder / "curve.json").write_text(json.dumps(curve))
    torch.save(model.state_dict(), folder / f"weights-{rank}.pt")


@pytest.mark.parametrize("name", MESHES)
def test_losses_and_weights_are_those_of_one_process(name, token_shards, tmp_path):
    count, parallelism = MESHES[name]
    curve, model = run(tmp_path / "alone", token_shards)
    (tmp_path / "many").mkdir()
    processes(count, work, tmp_path / "many", token_shards, parallelism)
    many = json.loads((tmp_path / "many/curve.json").read_text())
    for one, other in zip(curve, many, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    for rank in range(count):
        weights = torch.load(tmp_path / f"many/weights-{rank}.pt")
        for key, value in model.state_dict().items():
            torch.testing.assert_close(weights[key], value, atol=1e-4, rtol=1e-3)
