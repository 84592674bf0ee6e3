"""MDLOO's step at AFM's own size: dry, on a fake process group; and small, against what the allocator hands out."""

import json

import pytest
import torch
from tests.processes import forked
from tests.training.test_dryrun import allocated_at_most

from openafm.model import PRESETS, ModelConfig, Transformer
from openafm.model.muparam import initialise
from openafm.posttraining.mdloo import mdloo_step
from openafm.stage import Parallelism
from openafm.training.alignment import mdloo, sequence_log_probs
from openafm.training.dryrun import dry_run, pretend
from openafm.training.losses import LossOutput

SMALL = ModelConfig(vocab_size=512, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=512)
NUMBERS = ("old_log_probs", "advantages")


def loss(model, batch):
    """`mdloo_step` without figures to log."""
    log_probs = sequence_log_probs(model(batch["inputs"]), batch["targets"])
    return LossOutput(mdloo(log_probs, batch["old_log_probs"], batch["advantages"], 1.0), 1.0)


def dry(path, config, processes, options):
    if processes > 1:
        pretend(processes)
    memory = dry_run(config, Parallelism(**options.pop("parallelism", {})), loss=loss, numbers=NUMBERS, **options)
    path.write_text(json.dumps(vars(memory)))


def test_memory_is_what_a_real_step_takes(tmp_path):
    forked(dry, tmp_path / "dry.json", SMALL, 1, {"rows": 4, "length": 128, "precision": "float32"})
    found = json.loads((tmp_path / "dry.json").read_text())
    model = initialise(Transformer(SMALL), 0).train()
    batch = {name: torch.zeros((4, 128), dtype=torch.int64) for name in ("inputs", "targets")}
    batch |= {name: torch.zeros(4) for name in NUMBERS}

    def step():
        mdloo_step(model, batch, 1.0).loss.backward()

    step()  # gradients are there from now on
    assert found["rest"] == pytest.approx(allocated_at_most(step), rel=0.1)


def test_three_billion_weights_on_a_node_of_h100s(tmp_path):
    """AFM-on-device's shape, sharded over 8 devices, 8 answers of 1,024 tokens at a time on each."""
    config = PRESETS["afm-on-device"]
    forked(dry, tmp_path / "dry.json", config, 8, {"rows": 8, "length": 1024, "parallelism": {"recompute": True}})
    found = json.loads((tmp_path / "dry.json").read_text())
    assert found["weights"] == pytest.approx(4 * config.parameters / 8, rel=0.01)
    held = sum(found.values()) + 2 * 4 * config.parameters  # the reference and the reward model, whole on each device
    print({name: round(size / 1e9, 1) for name, size in found.items()}, f"{held / 1e9:.1f} GB with the frozen two")
    assert held < 80e9
