import pytest

from openafm import jsonl
from openafm.posttraining.baselines import token_values
from openafm.posttraining.examples import answer_row, collate
from openafm.posttraining.mdloo import MdlooConfig, mdloo
from openafm.posttraining.reward import MixConfig
from openafm.synthesis import tasks

CONFIG = MdlooConfig(
    iterations=3, prompts=4, samples=4, steps=3, answers_per_batch=8, lr=0.003, max_tokens=4,
    mix=MixConfig(reward_weight=1.0, verified_weight=1.0),
)  # fmt: skip


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
        broken, told = context("broken"), []
    broken.report = lambda label, at, total: told.append(label)
    assert mdloo(CONFIG, broken, model=model, reward=reward, examples=examples) == metrics
    assert told and all(label.startswith("iteration 3") for label in told)  # the whole anew would end the same, too
    same_files(whole.out, broken.out)


@pytest.mark.parametrize("algorithm", ["mdloo", "rloo", "grpo", "ppo"])
def test_it_learns_what_is_rewarded(model, reward, context, tmp_path, algorithm):
    """A reward model of random weights is a reward like any other."""
    rows = [{**tasks.draw("parity", 1, 0)[0], "id": str(i)} for i in range(4)]
    jsonl.write(tmp_path / "train.jsonl", rows)
    config = CONFIG.model_copy(
        update={"iterations": 8, "samples": 16, "steps": 9, "answers_per_batch": 64, "lr": 0.005, "beta": 0.0,
                "gamma": 0.3, "max_tokens": 3, "mix": MixConfig(reward_weight=1.0, verified_weight=0.0),
                "algorithm": algorithm}
    )  # fmt: skip
    step = context()
    mdloo(config, step, model=model, reward=reward, examples=tmp_path)
    rewards = [row["reward"] for row in jsonl.read(step.out / "iterations.jsonl")]
    assert rewards[-1] > rewards[0] + 0.2


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "ppo"])
def test_a_baseline_differs_from_mdloo_in_advantage_and_loss_alone(model, examples, reward, context, algorithm):
    """The first iteration's answers, rewards and distances are MDLOO's to the byte; what it learns of them is not."""
    steps = {}
    for name in ("mdloo", algorithm):
        steps[name] = context(name)
        config = CONFIG.model_copy(update={"algorithm": name})
        mdloo(config, steps[name], model=model, reward=reward, examples=examples)
    first, other = (jsonl.read(step.out / "iterations.jsonl")[0] for step in steps.values())
    moved = {"kl_last", "ratio_mean", "ratio_largest"}
    assert {k: v for k, v in first.items() if k not in moved} == {k: v for k, v in other.items() if k not in moved}
    one, two = ((step.out / "model.safetensors").read_bytes() for step in steps.values())
    assert one != two


def test_token_values_stand_where_the_targets_are():
    row = answer_row([5, 6, 7], [8, 9]) | token_values([5, 6, 7], [-1.0, -2.0], [-3.0, -4.0])
    assert [value for value, t in zip(row["values_old"], row["targets"], strict=True) if t != -100] == [-1.0, -2.0]
    batch = collate([row, answer_row([5], [8]) | token_values([5], [-5.0], [-6.0])])
    assert batch["values_reference"].tolist() == [[0, 0, -3, -4], [-6, 0, 0, 0]]
