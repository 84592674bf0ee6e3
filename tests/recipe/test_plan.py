"""The plan: shapes followed through a recipe, the model of time by hand, layouts that fit."""

import json
from dataclasses import replace

import pytest
from tests.processes import forked

from openafm.model import PRESETS
from openafm.recipe.devices import DEVICES, Layout, flops_per_token, layouts, least_bytes, step_time
from openafm.recipe.plan import as_json, plan, shape, table
from openafm.recipe.recipe import load
from openafm.stage import Parallelism
from openafm.training.dryrun import dry_run, pretend

H100 = DEVICES["h100"]


def test_shapes_are_followed_through_the_recipe():
    recipe = load("afm-on-device")
    wanted = {"teacher": "afm-teacher", "masks": "afm-teacher", "distil": "afm-on-device", "long": "afm-on-device"}
    for step, preset in wanted.items():
        found = shape(recipe, recipe.steps[step])
        assert found.parameters == PRESETS[preset].parameters, step


def test_flops_and_time_by_hand():
    config = PRESETS["afm-on-device"]
    dense = flops_per_token(config, 4096, False)
    assert dense == pytest.approx(6 * 2.73e9 + 6 * 26 * 4096 * 3072, rel=5e-3)
    assert 1.2 < flops_per_token(config, 4096, True) / dense < 4 / 3
    tokens = 4096 * 4096
    one = step_time(config, Layout(Parallelism(shard=1), 1), 4096, tokens, H100)
    assert one.compute == pytest.approx(tokens * dense / (989e12 * 0.4)) and one.hidden == one.exposed == 0
    node = step_time(config, Layout(Parallelism(shard=8), 4), 4096, tokens, H100)
    assert node.hidden == pytest.approx(4096 / 8 / 4 * 8 * config.parameters * 7 / 8 / 450e9)
    assert node.compute == pytest.approx(one.compute / 8)
    many = step_time(config, Layout(Parallelism(replicate=2, shard=8), 4), 4096, tokens, H100)
    assert many.hidden > node.hidden / 2  # the replicas' sums cross the network


def test_layouts_share_all_devices_and_the_batch():
    found = layouts(PRESETS["afm-on-device"], 32_768, 2**24, 1024, H100)
    assert found and all(
        p.replicate * p.shard * p.context * p.tensor == 1024 and 512 % (p.replicate * p.shard) == 0
        for p in (layout.parallelism for layout in found)
    )
    times = [step_time(PRESETS["afm-on-device"], one, 32_768, 2**24, H100).seconds for one in found]
    assert times == sorted(times)


def planned(path, *arguments):
    recipe = load("tiny")
    few = replace(recipe, steps={name: recipe.steps[name] for name in ("tokenizer", "teacher", "masks")})
    told: list[str] = []
    device, plans = plan(few, *arguments, told.append)
    assert {line.partition(":")[0] for line in told} == {found.work.step for found in plans if found.layout}
    table(plans, arguments[0], device)
    path.write_text(json.dumps(as_json(plans, arguments[0], device)))


def test_tiny_is_planned(tmp_path):
    forked(planned, tmp_path / "one.json", 1, "RTX 4090")
    found = json.loads((tmp_path / "one.json").read_text())
    assert [step["step"] for step in found["steps"]] == ["teacher", "masks"] and found["dollars"] == 0
    teacher = found["steps"][0]
    assert not teacher["warning"] and teacher["memory"]["weights"] == 4 * teacher["parameters"]
    assert teacher["memory"]["peak"] < 24e9


def test_what_cannot_be_done_is_told(tmp_path):
    forked(planned, tmp_path / "many.json", 64, "h100")
    masks = json.loads((tmp_path / "many.json").read_text())["steps"][1]  # they are not split by tensor or context
    assert "64 devices cannot share a batch of" in masks["warning"] and masks["memory"] is None


def test_unknown_devices():
    with pytest.raises(ValueError, match="known are H100, A100"):
        plan(load("tiny"), 8, "TPU")
    with pytest.raises(ValueError, match="one M4Max at a time"):
        plan(load("tiny"), 2, "m4-max")


def bounded(path, *arguments):
    config, layout, length = arguments
    p = layout.parallelism
    if (count := p.shard * p.context * p.tensor) > 1:
        pretend(count)
    memory = dry_run(config, p, rows=layout.rows, length=length)
    path.write_text(json.dumps([memory.peak, least_bytes(config, layout, length)]))


BOUNDED = {
    "small": ("nano-teacher", {"shard": 1}, 2, 1024),
    "small, recomputed": ("nano-teacher", {"shard": 1, "recompute": True}, 2, 1024),
    "by tensors, recomputed": ("proxy", {"shard": 64, "tensor": 2, "recompute": True}, 1, 4096),
    "AFM's long step": ("afm-on-device", {"shard": 64, "context": 4, "tensor": 2}, 1, 32_768),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_what_is_not_tried_would_not_fit(name, tmp_path):
    preset, parallelism, rows, length = BOUNDED[name]
    layout = Layout(Parallelism(**parallelism), rows)
    forked(bounded, tmp_path / "bytes.json", PRESETS[preset], layout, length)
    peak, least = json.loads((tmp_path / "bytes.json").read_text())
    assert 0.7 * peak < least < peak
