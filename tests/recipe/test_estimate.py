"""What a run is said to take."""

from dataclasses import replace

import pytest

from openafm.recipe.artifacts import Manifest
from openafm.recipe.estimate import announce, pace
from openafm.recipe.recipe import parse
from openafm.recipe.source import parse as parse_yaml
from openafm.recipe.status import State

STAGES = {"extract": ("openafm.data.ingest:extract", "")}
RECIPE = parse(
    parse_yaml(
        "x.yaml",
        "name: x\ndisk_mb: 100\nsteps:\n  a: {run: extract, inputs: {sources: b/x}, seconds: 30}\n"
        "  b: {run: extract, inputs: {sources: c}, seconds: 90}\n"
        "  c: {run: extract, inputs: {sources: d}, seconds: 1}\n"
        "  d: {run: fetch}\n",
    ),
    STAGES | {"fetch": ("openafm.data.fetch:fetch", "")},
)
PROBED = {"hardware": {"precision": "float32"}, "probe": {"float32_tokens_per_second": 380_000}}


def state(name: str, kind: str, spent: float | None = None) -> State:
    step = RECIPE.steps[name]
    manifest = Manifest(name, "extract", "", {}, {}, "", 0, {}, planned_seconds=step.seconds)
    return State(step, kind, "", None if spent is None else replace(manifest, times={"seconds": spent}))


def test_before_anything_ran_the_probe_tells_the_pace(tmp_path):
    found = [state("a", "missing"), state("b", "missing")]
    said = announce(tmp_path, RECIPE, found, PROBED)
    assert said.startswith("2 steps to run: about 1:19, planned 2:00, as the probe did 380,000 tokens/s")
    assert f"up to 100 MB more disk in {tmp_path}" in said and "MB are free" in said


def test_finished_steps_tell_it_better(tmp_path):
    found = [state("a", "missing"), state("b", "current", spent=180.0)]
    said = announce(tmp_path, RECIPE, found, PROBED)
    assert said.startswith(
        "1 step to run (1 more are current): about 1:00, planned 0:30, at the pace of the 1 finished"
    )


def test_what_is_all_current_says_nothing(tmp_path):
    assert announce(tmp_path, RECIPE, [state("b", "current", spent=1.0)], PROBED) == ""


@pytest.mark.parametrize(
    ("speed", "factor"), [(1_000, 10.0), (190_000 / 32, 8.0), (190_000, 1.0), (190_000 * 1.5, 0.784), (10_000_000, 0.5)]
)
def test_a_probe_in_a_busy_moment_is_bounded(speed, factor):
    settings = {"hardware": {"precision": "bfloat16"}, "probe": {"bfloat16_tokens_per_second": speed}}
    assert pace([], settings)[0] == pytest.approx(factor, rel=1e-3)
    assert pace([], {"hardware": {"precision": "bfloat16"}})[0] == 1.0
