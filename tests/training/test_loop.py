import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from openafm.model import Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.stage import Context, Hardware
from openafm.training.batches import TokenBatches
from openafm.training.loop import train
from openafm.training.losses import next_token
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import constant, cosine


def run(config, shards, context, *, dropout=0.1, tokens=6400, **options):
    model = initialise(Transformer(config, dropout), 0)
    batches = TokenBatches(shards, {"web": 2, "code": 1}, sequence_length=16, batch_tokens=64, tokens=tokens, seed=0)
    optimizer = RMSPropMomentum(parameter_groups(model, 16), 0.02, 1e-4)
    curve = train(
        model,
        batches,
        lambda m, b: next_token(m(b["inputs"]), b["targets"]),
        optimizer,
        cosine(6400, 640, 0.01),
        context,
        **options,
    )
    return model, curve


def test_it_learns(tiny_config, token_shards, context):
    _, curve = run(tiny_config, token_shards, context, dropout=0.0)
    assert curve[0]["loss"] > 3.0 and curve[-1]["loss"] < 1.0
    assert curve[-1]["step"] == 100 and curve[-1]["tokens"] == 6400


def test_micro_batches_give_the_same_gradient(tiny_config, token_shards, tmp_path):
    models = []
    for size in (8192, 16):
        context = Context(tmp_path, tmp_path / str(size), hardware=Hardware(micro_batch_tokens=size))
        models.append(run(tiny_config, token_shards, context, dropout=0.0, tokens=640)[0])
    for first, second in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_a_stopped_run_ends_with_the_same_bytes(tiny_config, token_shards, tmp_path):
    """Stopped by an exception at odd moments, with a checkpoint at every step (dropout on)."""
    whole, curve = run(tiny_config, token_shards, Context(tmp_path, tmp_path / "whole"))

    class StoppedError(Exception):
        pass

    def stop_at(when: int):
        def before(step: int) -> None:
            if step == when:
                raise StoppedError

        return before

    context = Context(tmp_path, tmp_path / "parts")
    for when in (3, 40, 77):
        with pytest.raises(StoppedError):
            run(tiny_config, token_shards, context, before_step=stop_at(when), checkpoint_seconds=0.0)
    resumed, again = run(tiny_config, token_shards, context)
    assert again == curve
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_killed_process_resumes(tmp_path, token_shards):
    """The same by SIGKILL from outside."""
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(__import__("pathlib").Path(__file__).parent)!r})
import torch; torch.set_num_threads(1)
from openafm.model import ModelConfig
from openafm.stage import Context
from test_loop import run
config = ModelConfig(vocab_size=64, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24)
print("ready", flush=True)
run(config, Path({str(token_shards)!r}), Context(Path("."), Path(sys.argv[1])), checkpoint_seconds=0.0, log_every=1)
print("done", flush=True)
"""
    for name, kill in (("killed", True), ("killed", False), ("whole", False)):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / name)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        if kill:
            checkpoint = tmp_path / name / "train.safetensors"
            while not checkpoint.exists() and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        assert process.returncode == (-signal.SIGKILL if kill else 0)
    killed, whole = (load_file(tmp_path / name / "train.safetensors") for name in ("killed", "whole"))
    assert set(killed) == set(whole) and all(torch.equal(killed[name], whole[name]) for name in whole)


def test_a_loss_that_is_not_finite_is_an_error(tiny_config, token_shards, context):
    model = initialise(Transformer(tiny_config), 0)
    batches = TokenBatches(token_shards, {"web": 1}, sequence_length=16, batch_tokens=64, tokens=640, seed=0)
    optimizer = RMSPropMomentum(parameter_groups(model, 16), 0.02)

    def broken(m, b):
        output = next_token(m(b["inputs"]), b["targets"])
        output.loss = output.loss * float("nan")
        return output

    with pytest.raises(ValueError, match="lower the learning rate"):
        train(model, batches, broken, optimizer, constant(), context)


def test_snapshots(tiny_config, token_shards, context):
    taken = []
    run(tiny_config, token_shards, context, snapshot=taken.append, snapshots=(10, 100))
    assert taken == [10, 100]


def test_a_damaged_checkpoint_is_named_and_not_trained_on(tiny_config, token_shards, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(step: int) -> None:
        if step == 3:
            raise StoppedError

    context = Context(tmp_path, tmp_path / "scratch")
    with pytest.raises(StoppedError):
        run(tiny_config, token_shards, context, before_step=stop, checkpoint_seconds=0.0)
    path = tmp_path / "scratch" / "train.safetensors"
    whole = path.read_bytes()
    for at in (3, 100, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"train\.safetensors is damaged .*delete it"):
            run(tiny_config, token_shards, context)
    path.write_bytes(whole)
    assert run(tiny_config, token_shards, context)[1][-1]["step"] == 100
