"""The whole recipe on the committed fixture, as a user runs it: once whole, once killed again and again, once more."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end
KILLS = 4


def openafm(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "openafm", *words], capture_output=True, text=True, timeout=600, check=False, **options
    )


def digests(run: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["digest"] for path in sorted(run.glob("*/manifest.json"))}


@pytest.fixture(scope="module")
def whole(tiny_run) -> Path:
    """The folder of an unbroken run."""
    return tiny_run


@pytest.fixture(scope="module")
def runs(whole) -> Path:
    return whole.parent


def test_every_step_leaves_an_artifact(whole):
    steps = [step["name"] for step in json.loads((whole / "run.json").read_text())["steps"]]
    assert set(digests(whole)) == set(steps)
    page = (whole / "report.html").read_text()
    assert "<html" in page and "http://" not in page.replace("http://www.w3.org", "") and 'src="http' not in page


def test_all_is_current_the_second_time(whole, runs):
    before = digests(whole)
    again = openafm("run", "tiny", "--runs-dir", str(runs))
    assert again.returncode == 0 and digests(whole) == before
    states = json.loads(openafm("status", str(whole), "--json").stdout)
    assert {step["state"] for step in states} == {"current"}


def test_killed_runs_end_with_the_same_bytes(whole, tmp_path):
    """SIGKILL at random moments, each time run again on the same folder with the whole run's hardware choices."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "run.json").write_bytes((whole / "run.json").read_bytes())
    rng = random.Random(0)
    command = [sys.executable, "-m", "openafm", "run", "tiny", "--runs-dir", str(tmp_path)]
    for _ in range(KILLS):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(3, 8))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = openafm("run", "tiny", "--runs-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert digests(tmp_path / "tiny") == digests(whole)


def test_no_held_out_problem_is_in_any_training_set(whole):
    """Problems by what they ask, whatever file of whatever step: SFT arms, committee answers, preference pairs."""

    def asked(*names: str) -> set[str]:
        paths = [path for name in names for path in whole.glob(name)]
        assert paths, names
        rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        return {json.dumps(row["messages"]) for row in rows}

    def keys(*names: str) -> set[str]:
        rows = [json.loads(line) for name in names for line in (whole / "sft_mixture" / name).read_text().splitlines()]
        return {row["lineage"].split("/", 2)[-1] for row in rows if row["origin"] == "synthetic"}

    trained = asked(
        "sft_mixture/train*.jsonl", "rollouts*/rollouts.jsonl", "rejection*/best.jsonl", "preferences*/train.jsonl"
    )
    assert not trained & asked(
        "sft_mixture/heldout.jsonl", "sft_mixture/validation.jsonl", "preferences*/heldout.jsonl"
    )
    assert not keys("train.jsonl") & keys("heldout.jsonl")  # not in other words either
    assert not keys("train.jsonl") & keys("validation.jsonl")


def test_the_model_answers(whole):
    done = openafm("chat", str(whole), input="What is 2 + 2?\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_why_tells_a_pages_fate(whole):
    planted = [json.loads(line) for line in (whole / "fetch" / "planted.jsonl").read_text().splitlines()]
    card = next(mark["url"] for mark in planted if mark["kind"] == "card")
    done = openafm("why", card, "--run", str(whole))
    assert done.returncode == 0 and "pii.card" in done.stdout, done.stdout + done.stderr


def test_status_is_a_table(whole):
    done = openafm("status", str(whole))
    assert done.returncode == 0 and "teacher" in done.stdout and "current" in done.stdout
