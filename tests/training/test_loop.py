import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from openafm.model import Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.stage import Context, Hardware, Parallelism
from openafm.training.batches import TokenBatches
from openafm.training.checkpoints import Checkpoints
from openafm.training.loop import HIGH, Watch, _accumulate, train
from openafm.training.losses import IGNORED, next_token
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.parallel import Devices
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


def test_micro_batches_give_the_same_gradient(tiny_config, token_shards):
    """Rows have unequal numbers of targets. Weights after some steps would not tell: those hide a gradient's scale."""
    seen = torch.arange(16) < torch.tensor([[3], [16], [9], [1]])
    batches = TokenBatches(token_shards, {"web": 1}, sequence_length=16, batch_tokens=64, tokens=64, seed=0)
    gradients = []
    for size in (8192, 16):
        model = initialise(Transformer(tiny_config), 0)
        devices = Devices(
            model,
            lambda m, b: next_token(m(b["inputs"]), b["targets"]),
            RMSPropMomentum(parameter_groups(model, 16), 0.02),
            Hardware(micro_batch_tokens=size),
            Parallelism(),
        )
        batch = {**batches[0], "targets": batches[0]["targets"].masked_fill(~seen, IGNORED)}
        _accumulate(devices, batch, Hardware(micro_batch_tokens=size), False)
        gradients.append([parameter.grad for parameter in model.parameters()])
    loss = next_token(model(batch["inputs"]), batch["targets"]).loss
    for first, second, wanted in zip(*gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(first, wanted, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(second, wanted, atol=1e-6, rtol=1e-4)


def test_a_stopped_run_ends_with_the_same_bytes(tiny_config, token_shards, tmp_path):
    """Stopped by an exception at odd moments, with a checkpoint at every step (dropout on)."""
    whole, curve = run(tiny_config, token_shards, Context(tmp_path, tmp_path / "whole"))

    class StoppedError(Exception):
        pass

    def stop_at(when: int):
        def before(network, step: int) -> None:
            if step == when:
                raise StoppedError

        return before

    context = Context(tmp_path, tmp_path / "parts")
    for when in (3, 40, 77):
        with pytest.raises(StoppedError):
            run(tiny_config, token_shards, context, before_step=stop_at(when), checkpoint_seconds=0.0)
    steps = []
    resumed, again = run(tiny_config, token_shards, context, before_step=lambda network, step: steps.append(step))
    assert again == curve and steps[0] >= 3  # each part left a checkpoint: from the start it would be the same, too
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
steps = []
run(config, Path({str(token_shards)!r}), Context(Path("."), Path(sys.argv[1])), checkpoint_seconds=0.0, log_every=1,
    before_step=lambda network, step: steps.append(step))
print(*steps[:1], flush=True)
"""
    for name, kill in (("killed", True), ("killed", False), ("whole", False)):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / name)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        if kill:
            while not list((tmp_path / name).glob("train/*/checkpoint.json")) and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        began, _ = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if kill else 0)
        assert kill or (int(began) == 0) == (name == "whole")  # from the start it would end the same, too
    killed, whole = (
        load_file(next((tmp_path / name / "train/step-00000100").glob("*.safetensors"))) for name in ("killed", "whole")
    )
    assert set(killed) == set(whole) and all(torch.equal(killed[name], whole[name]) for name in whole)


def broken_at(steps):
    """A loss that is not finite in these of the calls."""
    calls = iter(range(1000))

    def loss(m, b):
        output = next_token(m(b["inputs"]), b["targets"])
        output.loss = output.loss * (float("nan") if next(calls) in steps else 1.0)
        return output

    return loss


def train_with(loss, config, shards, context, steps=40):
    model = initialise(Transformer(config), 0)
    batches = TokenBatches(shards, {"web": 1}, sequence_length=16, batch_tokens=64, tokens=64 * steps, seed=0)
    optimizer = RMSPropMomentum(parameter_groups(model, 16), 0.02)
    return model, train(model, batches, loss, optimizer, constant(), context, log_every=1)


def test_steps_that_are_not_finite_are_skipped_and_told(tiny_config, token_shards, context):
    told = []
    context.warn = told.append
    model, curve = train_with(broken_at({3, 4}), tiny_config, token_shards, context)
    assert [record["step"] for record in curve] == [1, 2, 3, *range(6, 41)]  # what has no loss has no record
    assert curve[-1]["skipped"] == 2 and curve[-1]["loss"] < curve[0]["loss"]
    assert context.notes["train_alarms"] == [{"step": n, "alarm": "skipped", "loss": None} for n in (4, 5)]
    assert len(told) == 2 and "step 4 was skipped: loss nan" in told[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_batch_without_a_target_is_told(tiny_config, token_shards, context):
    told = []
    context.warn = told.append
    calls = iter(range(1000))

    def loss(m, b):
        return next_token(m(b["inputs"]), torch.full_like(b["targets"], IGNORED) if next(calls) == 7 else b["targets"])

    model, curve = train_with(loss, tiny_config, token_shards, context)
    assert context.notes["train_alarms"] == [{"step": 8, "alarm": "empty", "loss": None}]
    assert told == ["train: step 8 had no target to learn from: look at this step's data"]
    assert len(curve) == 39 and all(parameter.isfinite().all() for parameter in model.parameters())


def test_many_skipped_in_a_row_are_an_error(tiny_config, token_shards, context):
    context.warn = lambda message: None
    with pytest.raises(ValueError, match=r"20 steps of train in a row were skipped.*lower the learning rate"):
        train_with(broken_at(range(1000)), tiny_config, token_shards, context)


def test_a_jump_of_the_loss_is_told_and_a_high_batch_is_not(tiny_config, token_shards, context):
    """Wrong targets, as a broken shard would give: of one batch, then of all from step 90 on."""
    told = []
    context.warn = told.append
    calls = iter(range(1000))

    def loss(m, b):
        call = next(calls)
        return next_token(m(b["inputs"]), b["targets"].flip(1) if call == 70 or call >= 90 else b["targets"])

    train_with(loss, tiny_config, token_shards, context, steps=100)
    assert [(alarm["step"], alarm["alarm"]) for alarm in context.notes["train_alarms"]] == [(96, "jump")]
    assert any("the loss jumped to about" in message for message in told)


def test_divergence_is_told(tiny_config, token_shards, context):
    """Trained well for 60 steps, then at a learning rate fifty times too high."""
    model = initialise(Transformer(tiny_config), 0)
    batches = TokenBatches(token_shards, {"web": 2}, sequence_length=16, batch_tokens=64, tokens=6400, seed=0)

    def schedule(tokens: int) -> float:
        return 1.0 if tokens <= 60 * 64 else 50.0

    optimizer = RMSPropMomentum(parameter_groups(model, 16), 0.02)
    train(model, batches, lambda m, b: next_token(m(b["inputs"]), b["targets"]), optimizer, schedule, context)
    jumps = [alarm["step"] for alarm in context.notes["train_alarms"] if alarm["alarm"] == "jump"]
    assert 66 <= jumps[0] <= 70


TAILS = {
    "normal": lambda draw: draw.normalvariate(0, 1),
    "log-normal": lambda draw: draw.lognormvariate(0, 1.5),
    "Pareto, without a variance": lambda draw: draw.paretovariate(1.5),
    "Pareto, without a mean": lambda draw: draw.paretovariate(0.9),
    "one batch in 20 is another kind": lambda draw: draw.normalvariate(0, 1) + 20 * (draw.random() < 0.05),
}


@pytest.mark.parametrize("tail", TAILS)
@given(seed=st.integers(0, 2**32), level=st.floats(-3, 10), width=st.floats(0.01, 3), fall=st.floats(0, 5))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_heavy_tails_are_no_jump_and_a_step_up_is_one(tail, seed, level, width, fall):
    """Falling from its start as early training does, then flat; then above all that was."""
    draw = random.Random(seed)
    losses = [level + fall * 0.9**step + width * TAILS[tail](draw) for step in range(300)]
    assert not jumps(losses)
    up = max(losses) - min(losses) + abs(level) + 1
    told = jumps([*losses, *(loss + up for loss in losses[-HIGH:])])
    assert len(told) == 1 and 300 < told[0] <= 300 + HIGH


def jumps(losses):
    """Steps at which an alarm is told."""
    watch, optimizer = Watch([], lambda message: None, "train"), SimpleNamespace(grad_norm=1.0, skip_norm=100.0)
    for step, loss in enumerate(losses, 1):
        watch.look(step, loss, optimizer)
    return [alarm["step"] for alarm in watch.alarms]


def test_snapshots(tiny_config, token_shards, context):
    taken = []
    run(tiny_config, token_shards, context, snapshot=taken.append, snapshots=(10, 100))
    assert taken == [10, 100]


def test_a_damaged_checkpoint_is_told_and_not_trained_on(tiny_config, token_shards, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(network, step: int) -> None:
        if step == 30:
            raise StoppedError

    told: list[str] = []
    context = Context(tmp_path, tmp_path / "scratch", warn=told.append)
    with pytest.raises(StoppedError):
        run(tiny_config, token_shards, context, before_step=stop, checkpoint_seconds=0.0)
    kept = sorted((tmp_path / "scratch/train").glob("step-*"))
    assert len(kept) == 2
    whole = {path: path.read_bytes() for folder in kept for path in folder.iterdir()}

    def flip(path, at: int) -> None:
        path.write_bytes(whole[path][:at] + bytes([whole[path][at] ^ 16]) + whole[path][at + 1 :])

    for path in kept[1].iterdir():
        for at in (3, len(whole[path]) // 2, len(whole[path]) - 3):
            flip(path, at)
            again = Checkpoints(tmp_path / "scratch/train", *fresh(tiny_config)).load(told.append)
            assert again.step == int(kept[0].name[5:]) and str(kept[1]) in told[-1] and not kept[1].exists()
            kept[1].mkdir()
            for name in (name for name in whole if name.parent == kept[1]):
                name.write_bytes(whole[name])
    for path in whole:
        flip(path, len(whole[path]) // 2)
    with pytest.raises(ValueError, match=r"step-\d+ is damaged .*delete .*train, the step starts anew"):
        run(tiny_config, token_shards, context)


def fresh(config):
    model = Transformer(config)
    return model, RMSPropMomentum(parameter_groups(model, 16), 0.02)
