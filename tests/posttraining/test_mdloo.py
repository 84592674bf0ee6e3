import pytest

from openafm import jsonl
from openafm.model.checkpoint import load_model
from openafm.posttraining.mdloo import MdlooConfig, mdloo
from openafm.posttraining.reward import MixConfig, RewardModel
from openafm.synthesis import tasks

CONFIG = MdlooConfig(
    iterations=3, prompts=4, samples=4, steps=3, answers_per_batch=8, lr=0.003, max_tokens=4,
    mix=MixConfig(reward_weight=1.0, verified_weight=1.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def reward(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    RewardModel(load_model(model), seed=2).save(folder, tokenizer=model)
    return folder


def test_iterations_are_logged_and_begin_on_policy(model, examples, reward, context):
    step = context()
    metrics = mdloo(CONFIG, step, model=model, reward=reward, examples=examples)
    iterations = jsonl.read(step.out / "iterations.jsonl")
    curve = jsonl.read(step.out / "metrics.jsonl")
    assert len(iterations) == 3
    assert metrics["steps"] == len(curve) == 9
    assert metrics["sampler_trainer_difference"] < 1e-4
    assert iterations[0]["kl_reference"] == 0  # pi_0 is the reference
    assert [row["ratio"] for row in curve[::3]] == pytest.approx([1.0] * 3, abs=1e-4)
    assert all(row["kl_last"] > 0 for row in iterations)
    assert iterations[0]["entropy"] > 1


def test_a_killed_mdloo_ends_with_the_same_bytes(model, examples, reward, context, same_files, kill):
    whole = context("whole")
    metrics = mdloo(CONFIG, whole, model=model, reward=reward, examples=examples)
    broken = context("broken")
    for label, count in (("iteration 2 loss", 2), ("iteration 3 answers", 1)):
        killed = kill(broken, label, count)
        with pytest.raises(killed):
            mdloo(CONFIG, broken, model=model, reward=reward, examples=examples)
        broken = context("broken")
    assert mdloo(CONFIG, broken, model=model, reward=reward, examples=examples) == metrics
    same_files(whole.out, broken.out)


def test_it_learns_what_is_rewarded(model, reward, context, tmp_path):
    """A reward model of random weights is a reward like any other."""
    rows = [{**tasks.draw("parity", 1, 0)[0], "id": str(i)} for i in range(4)]
    jsonl.write(tmp_path / "train.jsonl", rows)
    config = CONFIG.model_copy(
        update={"iterations": 8, "samples": 16, "steps": 9, "answers_per_batch": 64, "lr": 0.005, "beta": 0.0,
                "gamma": 0.3, "max_tokens": 3, "mix": MixConfig(reward_weight=1.0, verified_weight=0.0)}
    )  # fmt: skip
    step = context()
    mdloo(config, step, model=model, reward=reward, examples=tmp_path)
    rewards = [row["reward"] for row in jsonl.read(step.out / "iterations.jsonl")]
    assert rewards[-1] > rewards[0] + 0.2
