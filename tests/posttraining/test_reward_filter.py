import pytest

from openafm import jsonl
from openafm.model.checkpoint import load_model
from openafm.posttraining.reward import RewardModel
from openafm.posttraining.reward_filter import RewardFilterConfig, reward_filter, rewards


@pytest.fixture(scope="module")
def judge(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    RewardModel(load_model(model), seed=3).save(folder, model)
    return folder


def test_the_worst_of_each_task_go_and_people_are_not_judged(judge, examples, context, tmp_path):
    rows = jsonl.read(examples / "train.jsonl")
    rows = [{**row, "origin": "human" if i % 5 == 0 else "synthetic"} for i, row in enumerate(rows)]
    jsonl.write(tmp_path / "examples.jsonl", rows)
    jsonl.write(tmp_path / "rejected.jsonl", [{"id": "earlier", "reason": "copy"}])
    step = context()
    metrics = reward_filter(RewardFilterConfig(drop_share=0.25), step, examples=tmp_path, reward=judge)
    kept, rejected = jsonl.read(step.out / "examples.jsonl"), jsonl.read(step.out / "rejected.jsonl")
    assert rejected[0]["id"] == "earlier" and len(kept) + len(rejected) - 1 == len(rows)
    assert [row["id"] for row in kept] == [row["id"] for row in rows if row["id"] in {k["id"] for k in kept}]
    assert metrics["low_reward"] == len(rejected) - 1 > 0 and not any(r["origin"] == "human" for r in rejected[1:])
    for task in {row["task"] for row in rows}:
        good = [row for row in kept if row["task"] == task and row["origin"] == "synthetic"]
        bad = [row for row in rejected[1:] if row["task"] == task]
        assert len(bad) == int(0.25 * (len(good) + len(bad)))
        assert max(rewards(bad, judge), default=-1e9) <= min(rewards(good, judge)) + 1e-5
