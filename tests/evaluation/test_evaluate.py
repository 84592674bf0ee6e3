import json

import pytest

from openafm.evaluation.evaluate import EvaluateConfig, evaluate
from openafm.scoring.checks import passes
from openafm.stage import Context

CONFIG = EvaluateConfig(
    name="core", sequence_length=32, tokens_per_flow=256, problems_per_task=2, answer_tokens=4, long_length=420,
    long_windows=2, needle_questions=4, needle_depths=(0.0, 1.0), needle_lengths=(410,),
    sample_prompts=("the cat",), sample_tokens=5,
)  # fmt: skip


def run(world, out, config=CONFIG, **inputs):
    out.mkdir()
    inputs = {"model": world / "model", "shards": world / "shards", "examples": world / "examples"} | inputs
    return evaluate(config, Context(out=out, scratch=out.with_name("scratch")), **inputs)


def test_every_row_has_its_n_and_interval(world, tmp_path):
    metrics = run(world, tmp_path / "a")
    found = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    rows = {row["metric"]: row for row in found["rows"]}
    assert found["model"] == "core"
    assert set(rows) == {
        *(f"{m}/{flow}" for m in ("bits_per_byte", "top1") for flow in ("code", "web", "all")),
        "task/add", "task/copy", "task/all", "loss_at/0000-0064", "loss_at/0064-0128", "loss_at/0128-0256",
        "loss_at/0256-0420", "needle/0", "needle/1", "needle_at/410/0", "needle_at/410/1",
    }  # fmt: skip
    assert rows["bits_per_byte/web"]["n"] == 8 and rows["bits_per_byte/all"]["n"] == 16
    assert rows["task/all"]["n"] == 4
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows.values())
    assert metrics["top1/all"] == rows["top1/all"]["value"]
    assert len((tmp_path / "a" / "answers.jsonl").read_text().splitlines()) == 4
    assert found["samples"][0]["prompt"] == "the cat"


def test_the_same_inputs_give_the_same_bytes(world, tmp_path):
    run(world, tmp_path / "a")
    run(world, tmp_path / "b")
    for name in ("evaluation.json", "windows.jsonl", "answers.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_without_problems_only_text_is_measured(world, tmp_path):
    config = CONFIG.model_copy(update={"long_length": 0, "sample_prompts": ()})
    metrics = run(world, tmp_path / "a", config, examples=None)
    assert {name.split("/")[0] for name in metrics if name != "headline"} == {"bits_per_byte", "top1"}


def test_wrong_inputs_say_what_to_do(world, tmp_path):
    with pytest.raises(ValueError, match=r"heldout\.jsonl is missing"):
        run(world, tmp_path / "a", examples=tmp_path)
    other = tmp_path / "shards"
    other.mkdir()
    (other / "index.json").write_text('{"vocab_size": 7, "dtype": "uint16", "splits": {"heldout": {}}}')
    with pytest.raises(ValueError, match="vocabulary of 7"):
        run(world, tmp_path / "b", shards=other)


def test_an_answer_that_is_cut_off_does_not_pass(world, tmp_path):
    problem = {
        "id": "p", "task": "free", "messages": [{"role": "user", "content": "the cat"}], "answer": "the door",
        "check": {"kind": "rules", "rules": [{"rule": "excludes", "word": "zebra"}]},
    }  # fmt: skip
    (tmp_path / "heldout.jsonl").write_text(json.dumps(problem) + "\n")
    run(world, tmp_path / "a", CONFIG.model_copy(update={"long_length": 0}), examples=tmp_path)
    (answer,) = map(json.loads, (tmp_path / "a" / "answers.jsonl").read_text().splitlines())
    assert passes(problem, answer["answer"]) and not answer["passed"]  # an untrained model does not stop in 4 tokens
