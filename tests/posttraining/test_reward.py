import numpy as np
import pytest
import torch

from openafm import jsonl
from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.posttraining.examples import collate
from openafm.posttraining.policy import Answer
from openafm.posttraining.reward import (
    Ensemble,
    MixConfig,
    RewardConfig,
    RewardModel,
    Scorer,
    calibration,
    conversation,
    differ_in_truth_alone,
    length_bias,
    load_judge,
    measure,
    pair_loss,
    pair_row,
    reward,
)  # fmt: skip
from openafm.tokenizer import load as load_tokenizer

CONFIG = RewardConfig(lr=0.01, epochs=4, pairs_per_batch=8, dropout=0.0, grade_weight=0.1)


def planted(count, answers=("3", "4", "5", "6", "7", "8", "9")):
    """Pairs in which the answer with a `no` is the worse one, by how often it stands there."""
    rows = []
    for i in range(count):
        good, level = answers[i % len(answers)], i % 4
        rows.append(
            {
                "id": str(i), "task": "t", "messages": [{"role": "user", "content": f"Say {good}"}],
                "chosen": good, "rejected": f"{good} no" + " no" * level, "strength": level, "margin": level + 1,
                "grades_chosen": [2, 2, 2, 2], "grades_rejected": [2, 2, 0, 1],
            }
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferences")
    jsonl.write(folder / "train.jsonl", planted(64))
    jsonl.write(folder / "heldout.jsonl", planted(28, ["1", "2"]))
    return folder


def test_the_reward_model_learns_planted_preferences(model, preferences, context, same_files):
    step, again = context("one"), context("two")
    metrics = reward(CONFIG, step, model=model, preferences={"first": preferences})["heldout"]
    assert metrics["accuracy"]["rate"] > 0.9
    assert metrics["grades"]["harmlessness"]["rate"] > metrics["commonest_grade"]["harmlessness"] == 0.5
    assert [metrics["by_strength"][name]["n"] for name in metrics["by_strength"]] == [7, 7, 7, 7]
    assert metrics["length_bias"]["label"] < 0  # the planted preference is for short answers
    reward(CONFIG, again, model=model, preferences={"first": preferences})
    same_files(step.out, again.out)

    judge, tokenizer = RewardModel.load(step.out), load_tokenizer(step.out)
    assert measure(judge, tokenizer, jsonl.read(preferences / "heldout.jsonl")) == metrics
    (step.out / "heads.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"heads\.safetensors is missing or damaged"):
        RewardModel.load(step.out)


def test_soft_labels_bound_the_gap(model, context, tmp_path):
    """Trained long enough on one pair, sigmoid(gap) comes to the target of its strength, not to 1."""
    jsonl.write(tmp_path / "train.jsonl", planted(1))
    jsonl.write(tmp_path / "heldout.jsonl", planted(1))
    config = RewardConfig(lr=0.003, epochs=60, pairs_per_batch=1, dropout=0.0, grade_weight=0.0)
    metrics = reward(config, context(), model=model, preferences={"first": tmp_path})["heldout"]
    assert metrics["by_strength"]["negligible"]["expected"] == pytest.approx(0.65, abs=0.06)


def test_a_refit_learns_from_every_round_and_is_judged_on_the_newest(model, preferences, context, tmp_path):
    jsonl.write(tmp_path / "train.jsonl", planted(8))
    jsonl.write(tmp_path / "heldout.jsonl", planted(4, ["3"]))
    metrics = reward(CONFIG, context(), model=model, preferences={"first": preferences, "second": tmp_path})
    assert metrics["pairs"] == 64 + 8
    assert metrics["heldout"]["accuracy"]["n"] == 4


def test_pairs_that_differ_in_truth_alone_are_told_apart():
    grades = {"grades_chosen": [2, 2, 2, 1], "grades_rejected": [2, 0, 2, 1]}
    assert differ_in_truth_alone(grades)
    assert not differ_in_truth_alone({**grades, "grades_rejected": [1, 0, 2, 1]})
    assert not differ_in_truth_alone({**grades, "grades_rejected": [2, 2, 2, 0]})


def test_rewards_do_not_depend_on_padding_or_company(model):
    judge = RewardModel(load_model(model), seed=3).eval()
    sequences = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [1, 2, 3]]
    together = judge.rewards(sequences)
    alone = [judge.rewards([sequence])[0] for sequence in sequences]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    hidden = judge.body.hidden(torch.tensor([sequences[2]]))[0, -1].detach()  # the last layer at the last token
    assert together[2] == pytest.approx(float(judge.heads["reward"].weight[0].detach() @ hidden), abs=1e-5)


def test_pair_loss_is_its_formula_by_hand(model):
    judge, tokenizer = RewardModel(load_model(model), seed=1).eval(), load_tokenizer(model)
    rows = [pair_row(pair, tokenizer, (0.6, 0.7, 0.8, 0.9), 64) for pair in planted(3)]
    output = pair_loss(judge, collate(rows), 0.25)
    total = 0.0
    for row in rows:
        rewards, nats = [], 0.0
        for side, given in zip(("chosen", "rejected"), row["grades"], strict=True):
            with torch.no_grad():
                value, logits = judge(torch.tensor([row[f"inputs_{side}"]]), torch.tensor([row[f"last_{side}"]]))
            rewards.append(float(value))
            nats -= sum(float(logits[0, d].softmax(-1)[grade].log()) for d, grade in enumerate(given))
        q = 1 / (1 + np.exp(rewards[1] - rewards[0]))
        total += -row["target"] * np.log(q) - (1 - row["target"]) * np.log(1 - q) + 0.25 * nats
    assert float(output.loss.detach()) == pytest.approx(total / 3, rel=1e-4)
    assert output.weight == 3
    without = pair_loss(judge, collate(rows), 0.0).loss  # the ablation without grades: they leave no trace
    without.backward()
    assert all(p.grad is None or not p.grad.any() for name, p in judge.heads.named_parameters() if "grade" in name)


def test_conversations_end_with_the_answers_stop(model):
    tokenizer = load_tokenizer(model)
    tokens = conversation(tokenizer, [{"role": "user", "content": "Say fig"}], "fig", 99)
    assert tokens[-1] == tokenizer.end_of_turn_id
    assert conversation(tokenizer, [{"role": "user", "content": "Say fig"}], "fig", 4) == tokens[-4:]


def test_length_bias_is_symmetric_correlation():
    pairs = [{"chosen": "x" * n, "rejected": "xx", "margin": 1} for n in (1, 4, 6)]
    values = torch.tensor([-1.0, 2.0, 4.0])  # exactly the difference of lengths
    assert length_bias(values, torch.zeros(3), pairs)["reward"] == 1.0
    # a constant more is no length's doing: (0 + 6 + 20) / sqrt((0 + 9 + 25) (1 + 4 + 16))
    assert length_bias(values + 1, torch.zeros(3), pairs)["reward"] == 0.973
    assert length_bias(torch.zeros(3), torch.zeros(3), pairs)["reward"] is None


def test_verified_and_learned_rewards_mix(model):
    judge, tokenizer = RewardModel(load_model(model), seed=1), load_tokenizer(model)
    problems = [{"messages": [{"role": "user", "content": "3 + 4 = ?"}]}] * 2
    answers = [Answer("7", [1], [0.0], True), Answer("7", [1], [0.0], False)]
    one, other = Scorer(judge, tokenizer, MixConfig(reward_weight=0.5, verified_weight=3.0)).score(problems, answers)
    assert one - other == pytest.approx(3.0)
    alone = judge.rewards([conversation(tokenizer, problems[0]["messages"], "7", 99)])[0]
    assert other == pytest.approx(0.5 * alone)


def test_the_body_is_an_ordinary_model_folder(model, tmp_path):
    RewardModel(load_model(model)).save(tmp_path, tokenizer=model)
    assert isinstance(load_model(tmp_path), Transformer)


def test_an_ensemble_is_the_mean_of_models_fitted_apart(model, preferences, context, same_files, kill):
    alone, step = context("alone"), context("ensemble")
    reward(CONFIG, alone, model=model, preferences={"first": preferences})
    config = CONFIG.model_copy(update={"ensemble": 3})
    killed = kill(step, "member 2", 3)
    with pytest.raises(killed):
        reward(config, step, model=model, preferences={"first": preferences})
    step = context("ensemble")
    metrics = reward(config, step, model=model, preferences={"first": preferences})
    for name in ("model.safetensors", "heads.safetensors", "metrics.jsonl"):  # the first member is the single model
        assert (step.out / name).read_bytes() == (alone.out / name).read_bytes()
    judge, tokenizer = load_judge(step.out), load_tokenizer(step.out)
    assert isinstance(judge, Ensemble) and len(judge.members) == 3 and isinstance(load_judge(alone.out), RewardModel)
    texts = [conversation(tokenizer, pair["messages"], pair["chosen"], 99) for pair in planted(4)]
    each = [member.rewards(texts) for member in judge.members]
    np.testing.assert_allclose(judge.rewards(texts), np.mean(each, 0), rtol=1e-5)
    assert np.std(each, 0).min() > 0
    assert metrics["heldout"]["accuracy"]["rate"] > 0.9
    assert Scorer.load(step.out, MixConfig()).judge.longest == 128


def test_calibration_by_hand():
    """Two pairs at 0.65 (one right), three at 0.95 (all right), one at 1.0 (wrong)."""
    gaps = [np.log(0.65 / 0.35), -np.log(0.65 / 0.35), *[np.log(0.95 / 0.05)] * 3, -50.0]
    found = calibration(gaps)
    assert [(row["probability"], row["passed"], row["n"]) for row in found["curve"]] == [(0.65, 1, 2), (0.9625, 3, 4)]
    assert found["error"] == pytest.approx((2 * abs(0.65 - 0.5) + 4 * abs(0.9625 - 0.75)) / 6, abs=1e-4)
    assert calibration([0.0])["curve"][0]["passed"] == 0  # undecided is not right


def test_a_judge_that_knows_its_odds_is_calibrated():
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=20_000) * 2
    drawn = np.where(rng.random(20_000) < 1 / (1 + np.exp(-gaps)), gaps, -gaps)  # the side that came out first
    assert calibration(drawn)["error"] < 0.01
    assert calibration(3 * drawn)["error"] > 0.05  # overconfident
