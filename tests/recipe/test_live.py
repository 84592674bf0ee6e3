"""What a run says of itself while it runs, and who looks on: the file, the terminal, TensorBoard."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console
from torch import nn

from openafm.recipe import live, watch
from openafm.recipe.board import Board
from openafm.training.loop import train
from openafm.training.losses import LossOutput
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import constant

STEPS = [("fetch", 10.0, True), ("teacher", 20.0, False), ("masks", 5.0, False)]


def shown(record, height=30):
    console = Console(width=110, height=height, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(watch.frame("nano", record, height))
    return console.export_text()


def test_the_terminal_shows_steps_progress_rates_and_the_loss(tmp_path):
    run = live.Live(tmp_path, STEPS)
    run.end("fetch", 0.0, "")
    run.begin("teacher")
    for step in range(1, 200):
        run.report(f"pretrain loss {9 - step / 50:.3f}", step, 400)
        run.log("pretrain", step, {"step": step, "tokens": 512 * step, "loss": 9 - step / 50, "lr": 0.01})
        time.sleep(0.001)
    run._write()
    record = live.read(tmp_path)
    assert record is not None and live.at_work(record) and len(record["now"]["losses"]) <= live.POINTS
    text = shown(record)
    for wanted in ("1 of 3 steps", "= fetch", "▶ teacher", "of 0:20", "199 of 400", "a second", "tokens/s", "lr 0.01",
                   "loss 8.980 █", "pretrain loss 5.020", "next: masks", " left"):  # fmt: skip
        assert wanted in text, (wanted, text)
    run.end("teacher", 12.0, "2.82M parameters")
    assert "✓ teacher" in shown(live.read(tmp_path)) and "2.82M parameters" in shown(live.read(tmp_path))
    run.close()
    assert live.read(tmp_path) is None


def test_many_steps_fit_a_small_terminal(tmp_path):
    run = live.Live(tmp_path, [(f"step{i}", 1.0, False) for i in range(64)])
    for i in range(40):
        run.begin(f"step{i}")
        run.end(f"step{i}", 1.0, "done")
    run.begin("step40")
    text = shown(live.read(tmp_path), height=20)
    assert len(text.splitlines()) <= 20 and "steps before these" in text and " more" in text


def test_a_killed_run_is_told_from_one_at_work(tmp_path):
    program = "import sys; from pathlib import Path; from openafm.recipe.live import Live; Live(Path(sys.argv[1]), [])"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    record = live.read(tmp_path)
    assert record is not None and not live.at_work(record)
    assert live.at_work(record | {"host": "elsewhere"})


def test_control_c_ends_the_looking_cleanly(tmp_path, monkeypatch):
    run = live.Live(tmp_path, STEPS)
    run.begin("teacher")

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupted)
    for terminal in (True, False):
        console = Console(force_terminal=terminal, width=100, height=30, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
        assert watch.watch(tmp_path, console) == 0
        assert "you no longer watch; the run goes on" in console.export_text()
    assert live.read(tmp_path) is not None


def test_the_end_of_a_run_is_told_with_the_step_it_failed_in(tmp_path, monkeypatch):
    run = live.Live(tmp_path, STEPS)
    run.begin("teacher")
    (tmp_path / ".teacher.partial").mkdir()
    (tmp_path / ".teacher.partial/error.txt").write_text("Traceback\nValueError: no step had a finite loss\n")
    (tmp_path / "fetch").mkdir()
    (tmp_path / "fetch/manifest.json").write_text("{}")
    monkeypatch.setattr(watch, "read_manifest", lambda folder: (folder / "manifest.json").exists() or None)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: run.close())
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    assert watch.watch(tmp_path, console) == 1
    assert "ended before teacher was done: ValueError: no step had a finite loss" in console.export_text()


def fit(context, steps, log_every=1):
    """Train two weights by the one loop."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    batches = [{"inputs": torch.ones(2, 2) * (i + 1)} for i in range(steps)]

    def loss(network, batch):
        return LossOutput((network(batch["inputs"]) ** 2).mean(), float(batch["inputs"].numel()), {})

    optimizer = RMSPropMomentum([{"params": list(model.parameters())}], 0.01)
    return train(model, batches, loss, optimizer, constant(), context, log_every=log_every)


def test_tensorboard_files_hold_the_loops_curve(context, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path)
    context.log = lambda label, step, values: board.log("teacher", label, step, values)
    records = fit(context, 12)
    board.end()
    found = EventAccumulator(str(tmp_path / "tensorboard/teacher/train")).Reload()
    assert {"loss", "lr", "grad_norm", "tokens"} <= set(found.Tags()["scalars"])
    events = found.Scalars("loss")
    assert [event.step for event in events] == [record["step"] for record in records]
    assert [event.value for event in events] == pytest.approx([record["loss"] for record in records])
    board.log("teacher", "train", 9, {"loss": 1.0})  # a run that goes on after a kill takes steps 9 and later again
    board.end()
    again = EventAccumulator(str(tmp_path / "tensorboard/teacher/train")).Reload().Scalars("loss")
    assert [event.step for event in again] == [*range(1, 10)] and again[-1].value == 1.0


def test_without_the_package_tensorboard_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("openafm.recipe.board.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'openafm\[tensorboard\]'"):
        Board(tmp_path)


def test_the_record_is_whole_at_any_moment(tmp_path):
    run = live.Live(tmp_path, STEPS)
    assert json.loads((tmp_path / live.NAME).read_text())["steps"]["fetch"]["state"] == "current"
    (tmp_path / live.NAME).unlink()
    (tmp_path / live.NAME).mkdir()  # in the way of root too
    run.begin("teacher")  # what cannot be written is no reason to end a run
