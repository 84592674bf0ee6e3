"""Arms, costs and measurements of an ablation, on the artifacts that a small run of training steps leaves."""

import json
import math
import shutil

import pytest

from openafm.evaluation.ablation import AblationConfig, ablation, arms_of, best_rows, cost, optimum, sensitivity
from openafm.evaluation.evaluate import EvaluateConfig
from openafm.model.config import load_config
from openafm.stage import Context


def manifest(folder, stage, inputs=(), **more):
    """What the runner would leave of a step."""
    folder.mkdir(exist_ok=True)
    entries = {name: {"step": step, "digest": ""} for name, step in inputs}
    body = {"stage": stage, "inputs": entries, "config": {}, "metrics": {}, "seed": 1} | more
    (folder / "manifest.json").write_text(json.dumps(body))


@pytest.fixture
def run(world, tmp_path):
    """teacher -> masks -> prune -> (cache) -> both, and scratch at two rates."""
    trained = {"teacher", "masks", "prune", "both", "scratch-0.1", "scratch-0.2"}
    for name in trained:
        shutil.copytree(world / "model", tmp_path / name)
    shutil.copytree(world / "shards", tmp_path / "shards")
    manifest(tmp_path / "shards", "shards")
    manifest(tmp_path / "teacher", "pretrain", [("shards", "shards")], metrics={"tokens": 1000})
    manifest(tmp_path / "masks", "learn_masks", [("model", "teacher")], config={"tokens": 100})
    manifest(tmp_path / "prune", "prune", [("model", "masks"), ("teacher", "teacher")])
    manifest(tmp_path / "cache", "cache_teacher", [("model", "teacher")], metrics={"tokens": 300})
    manifest(
        tmp_path / "both", "pretrain", [("model", "prune"), ("teacher_tokens", "cache")],
        metrics={"tokens": 300, "final_cross_entropy": 4.5}, config={"lr": 0.1},
    )  # fmt: skip
    for lr, diverged in ((0.1, False), (0.2, True)):
        manifest(
            tmp_path / f"scratch-{lr}", "pretrain", [("shards", "shards")], config={"lr": lr},
            metrics={"tokens": 300, "final_cross_entropy": 5.0, "diverged": diverged},
        )  # fmt: skip
    return tmp_path


def test_cost_counts_all_training_behind_a_model(run):
    weights = load_config(run / "both").parameters
    assert cost(run / "both", "[tc]*e*") == (6 * weights * 400, 6 * weights * 1000 + 2 * weights * 300)
    assert cost(run / "both", "") == (6 * weights * 1400 + 2 * weights * 300, 0)
    assert cost(run / "scratch-0.1", "teacher") == (6 * weights * 300, 0)


def test_arms_are_apart_and_none_is_empty():
    steps = ["core-1", "core-2", "core-small-1"]
    assert arms_of({"a": "core-[0-9]", "b": "core-small*"}, steps) == {
        "core-1": "a",
        "core-2": "a",
        "core-small-1": "b",
    }
    with pytest.raises(ValueError, match="arm 'b': no model's step is called like 'x-\\*'"):
        arms_of({"a": "core-1", "b": "x-*"}, steps)
    with pytest.raises(ValueError, match="step 'core-small-1' is of the arms 'a' and 'b'"):
        arms_of({"a": "core-*", "b": "core-small*"}, steps)


def test_every_model_is_measured_once(run, tmp_path):
    config = AblationConfig(
        arms={"both": "both", "scratch": "scratch-*"}, x="lr", teacher="teacher", continuations=8,
        measure=EvaluateConfig(sequence_length=32, tokens_per_flow=256),
    )  # fmt: skip
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir(), scratch.mkdir()
    models = {name: run / name for name in ("both", "scratch-0.1", "scratch-0.2", "teacher")}
    ablation(config, Context(out, scratch), models=models, shards=run / "shards")
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    assert [(row["arm"], row["x"], row["end_loss"]) for row in rows] == [
        ("both", 0.1, 4.5), ("scratch", 0.1, 5.0), ("scratch", 0.2, 5.0)
    ]  # fmt: skip
    assert {"bits_per_byte/all", "top1/web", "continuation/all", "continuation/code"} <= rows[0]["metrics"].keys()
    assert rows[2]["diverged"] and rows[2]["metrics"] == {}, "not the best"
    rises = [rows[i]["metrics"].pop("sensitivity") for i in (0, 1)]
    assert [rows[i]["metrics"].pop("optimum") for i in (0, 1)] == pytest.approx([math.log2(0.1)] * 2, abs=1e-5)
    assert rises == pytest.approx([0, (math.log(320) - 5) / 2], abs=0.01)
    assert rows[0]["metrics"] == rows[1]["metrics"], "the same weights on the same text"
    kept = json.loads((scratch / "both.json").read_text())
    (scratch / "both.json").write_text(json.dumps(kept | {"top1/all": 2.0}))
    ablation(config, Context(out, scratch), models=models, shards=run / "shards")
    found = json.loads((out / "ablation.json").read_text())["rows"][0]["metrics"]
    assert found["top1/all"] == 2.0, "not measured again"


def test_sensitivity_is_the_mean_rise_over_the_best_up_to_a_guess():
    def row(end, diverged=False):
        return {"end_loss": end, "diverged": diverged, "guess": 6.0}

    rows = [row(4.0), row(5.0), row(9.0), row(3.0, diverged=True)]
    assert sensitivity(rows) == pytest.approx((4 + 5 + 6 + 6) / 4 - 4)


def test_the_optimum_of_a_parabola_is_its_vertex_and_an_end_is_an_end():
    def rows(vertex, xs):
        return [{"x": x, "end_loss": 3 + 0.2 * (math.log2(x) - vertex) ** 2, "diverged": False} for x in xs]

    for xs in ([0.005, 0.01, 0.02, 0.04], [0.003, 0.01, 0.03, 0.1]):  # also where steps are uneven
        assert optimum(rows(-5.9, xs)) == pytest.approx(-5.9)
    assert optimum(rows(-9.0, [0.005, 0.01, 0.02])) == math.log2(0.005)
    broken = [*rows(-5.9, [0.005, 0.01, 0.02, 0.04]), {"x": 0.08, "end_loss": 0.0, "diverged": True}]
    assert optimum(broken) == pytest.approx(-5.9)


def test_the_best_x_is_chosen_by_training_and_never_where_a_run_diverged():
    def row(seed, x, end, diverged=False):
        return {"arm": "a", "seed": seed, "x": x, "end_loss": end, "diverged": diverged}

    rows = [row(seed, x, end) for seed in (1, 2) for x, end in ((0.1, 5.0), (0.2, 4.0))]
    rows += [row(1, 0.4, 1.0), row(2, 0.4, 1.0, diverged=True), row(1, 0.8, 0.5)]
    assert best_rows(rows) == [row(1, 0.2, 4.0), row(2, 0.2, 4.0)]
    assert best_rows([row(1, 0.4, 1.0, diverged=True)]) == []
