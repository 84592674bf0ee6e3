"""Tiny versions of the two AFM recipes, run to the end of SFT: their own steps, inputs and order, in tiny's sizes.

What follows is wired as in tiny, which test_tiny.py runs to the end.
"""

import json
import subprocess
import sys

import pytest
import yaml

from openafm.recipe import source
from openafm.recipe.recipe import load

pytestmark = pytest.mark.end_to_end
OWN = {"afm-on-device": ("distil", "masks", "teacher_tokens"), "afm-server": ("core",)}


def tiny_version(name: str, folder):
    """A recipe file over `name` that shrinks each of its steps as tiny.yaml does; what is left is the recipe itself."""
    tiny = yaml.safe_load(source.find("tiny").read_text())
    steps = {step: body for step, body in tiny["steps"].items() if step in load(name).steps}
    for step in ("teacher", "scratch"):
        tiny["steps"][step]["with"]["batch_tokens"] = 512
    if name == "afm-server":
        steps["core"] = tiny["steps"]["scratch"]
        steps["evaluate_core"] = {"seconds": 1}
    for step in ("teacher_tokens", "distil", "continued", "masks"):
        if step in steps:
            steps[step]["with"] = {**steps[step]["with"], "batch_tokens": 512}
    for step in ("rejection", "rejection_2", "sft_control", "sft_control_2", "sft", "sft_arms"):
        steps[step]["with"] = {**steps[step]["with"], "sequence_length": 128 if "rejection" not in step else 256}
    steps["compress"]["with"]["target_bits"] = 3.6
    steps["recovery"]["with"] |= {"rank": 4, "nested": [2]}
    for step in ("evaluate_continued", "evaluate_long"):
        steps[step]["with"] |= {"sequence_length": 128, "needle_lengths": []}
    body = {
        "name": f"tiny-{name}", "extends": name, "disk_mb": 200, "steps": steps,
        "defaults": {"evaluate": tiny["defaults"]["evaluate"], "pretrain": {"base_width": 32}},
    }  # fmt: skip
    path = folder / f"{name}-tiny.yaml"
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


@pytest.mark.parametrize("name", OWN)
def test_the_tiny_version_runs(name, tmp_path):
    path = tiny_version(name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "openafm", "run", str(path), "--runs-dir", str(tmp_path), "--until", "sft"],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / f"tiny-{name}"
    made = {path.parent.name for path in run.glob("*/manifest.json")}
    steps = list(load(name).steps)
    assert made == set(steps[: steps.index("sft") + 1]) and made >= {*OWN[name], "continued", "long", "sft"}
    bases = [json.loads((run / step / "config.json").read_text())["rope_base"] for step in ("continued", "long")]
    assert bases[0] == 500 < bases[1]
