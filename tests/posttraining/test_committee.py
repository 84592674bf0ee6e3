import json

import pytest
import torch

from openafm import jsonl
from openafm.model.checkpoint import load_model
from openafm.posttraining.committee import CommitteeConfig, RolloutsConfig, by_prompt, committee, methods, rollouts
from openafm.posttraining.direct import DirectConfig, best_and_worst, direct
from openafm.posttraining.policy import Policy, token_log_probs
from openafm.posttraining.rejection import RejectionConfig, rejection
from openafm.posttraining.reward import RewardModel
from openafm.posttraining.sft import BestConfig, SftConfig, sft, sft_best
from openafm.stage import Hardware


@pytest.fixture(scope="module")
def reward(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    RewardModel(load_model(model), seed=2).save(folder, tokenizer=model)
    return folder


@pytest.fixture(scope="module")
def drawn(model, tmp_path_factory):
    """Answers "7" (right) and "8" (wrong) to a few sums, as a round of rollouts."""
    policy, rows = Policy.load(model), []
    for a in range(1, 6):
        problem = {"id": str(a), "task": "addition", "messages": [{"role": "user", "content": f"{a} + {7 - a} = ?"}]}
        answers = []
        for text, value in (("8", -1.0), ("7", 1.0), ("9", 0.0)):
            tokens = [*policy.tokenizer.encode(text), policy.tokenizer.end_of_turn_id]
            answers.append({"text": text, "tokens": tokens, "logprobs": [], "reward": value, "passed": text == "7"})
        for member, part in (("sft", answers[:1]), ("dpo", answers[1:])):
            rows.append({**problem, "prompt_tokens": policy.prompt(problem), "member": member, "completions": part})
    folder = tmp_path_factory.mktemp("rollouts")
    jsonl.write(folder / "rollouts.jsonl", rows)
    return folder


def test_members_take_turns_and_every_prompt_gets_its_samples(model, examples, reward, context, same_files):
    config = RolloutsConfig(prompts=9, samples=4, max_tokens=6)
    members = {"sft": model, "rejection": model, "dpo": model}
    one, two = context("one"), context("two")
    metrics = rollouts(config, one, members=members, reward=reward, examples=examples)
    rows = jsonl.read(one.out / "rollouts.jsonl")
    prompts = by_prompt(rows)
    assert len(prompts) == 9
    assert all(len(answers) == 4 for _, answers in prompts)
    assert all(answers == sorted(answers, key=lambda a: (not a["passed"], -a["reward"])) for _, answers in prompts)
    assert {name: figure["n"] for name, figure in metrics["members"].items()} == dict.fromkeys(members, 12)
    assert all(len(a["tokens"]) == len(a["logprobs"]) for _, answers in prompts for a in answers)
    rollouts(config, two, members=members, reward=reward, examples=examples)
    same_files(one.out, two.out)


def test_rejection_learns_the_best_answer_of_each_prompt(model, drawn, context):
    step = context()
    config = RejectionConfig(tokens=1600, batch_tokens=80, sequence_length=40, lr=0.02, dropout=0.0)
    metrics = rejection(config, step, model=model, rollouts=drawn)
    assert [row["answer"] for row in jsonl.read(step.out / "best.jsonl")] == ["7"] * 5
    assert metrics["loss"] < 0.5


def unverified(rows):
    return [{**row, "completions": [{**c, "passed": False} for c in row["completions"]]} for row in rows]


def test_best_and_worst_differ_in_being_verified_or_need_a_gap(drawn):
    rows = jsonl.read(drawn / "rollouts.jsonl")
    assert len(best_and_worst(rows, 2.5)) == len(best_and_worst(unverified(rows), 2.0)) == 5
    assert best_and_worst(unverified(rows), 2.5) == []


def test_a_verified_answer_is_better_than_a_rewarded_one():
    good, liked = {"reward": 1.0, "passed": True, "tokens": [1]}, {"reward": 4.0, "passed": False, "tokens": [2]}
    (pair,) = best_and_worst([{"id": "1", "prompt_tokens": [0], "completions": [liked, good]}], 0.5)
    assert (pair["chosen"], pair["rejected"]) == ([1], [2])


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_direct_moves_from_the_worst_to_the_best_answer(model, drawn, context, loss, same_files):
    config = DirectConfig(loss=loss, beta=0.5, lr=0.003, steps=25, pairs_per_batch=5)
    one, two = context("one"), context("two")
    metrics = direct(config, one, model=model, rollouts=drawn)
    pairs = best_and_worst(jsonl.read(drawn / "rollouts.jsonl"), 2.0)

    def gaps(folder):
        model = load_model(folder)
        sides = [[(pair["prompt"], pair[side]) for pair in pairs] for side in ("chosen", "rejected")]
        chosen, rejected = (token_log_probs(model, side, Hardware()) for side in sides)
        return torch.tensor([sum(a) - sum(b) for a, b in zip(chosen, rejected, strict=True)])

    assert (gaps(one.out) > gaps(model)).all()
    assert metrics["accuracy"] == 1.0
    if loss == "ipo":  # its optimum is a gap of 1 / (2 beta) nats a token; the answers have two tokens
        assert metrics["margin"] < 1.5
    direct(config, two, model=model, rollouts=drawn)
    same_files(one.out, two.out)


def test_direct_and_rejection_name_what_is_wrong(model, drawn, context, tmp_path):
    with pytest.raises(ValueError, match="lower least_gap"):
        jsonl.write(tmp_path / "rollouts.jsonl", unverified(jsonl.read(drawn / "rollouts.jsonl")))
        direct(DirectConfig(least_gap=9.0), context(), model=model, rollouts=tmp_path)
    with pytest.raises(ValueError, match="no prompt has a verified answer"):
        rejection(RejectionConfig(), context(), model=model, rollouts=tmp_path)


def test_the_committee_picks_the_best(model, drawn, examples, reward, context):
    taught = context("taught")
    config = SftConfig(arm="b", tokens=9000, batch_tokens=600, sequence_length=60, lr=0.02, snapshots=2)
    sft(config, taught, model=model, examples=examples)
    best = context("best")
    chosen = sft_best(
        BestConfig(problems=8, answers=2, max_tokens=6),
        best,
        snapshots=taught.out,
        reward=reward,
        examples=examples,
    )
    assert len(chosen["checkpoints"]) == 2
    by_picks = {name: (row["best_of_n"]["passed"], row["reward"]) for name, row in chosen["checkpoints"].items()}
    assert by_picks[chosen["checkpoint"]] == max(by_picks.values())

    step = context("committee")
    config = CommitteeConfig(problems=16)
    members = {"sft": model, "taught": taught.out, "again": taught.out}
    metrics = committee(config, step, members=members, reward=reward, examples=examples, control=taught.out)
    table = json.loads((step.out / "committee.json").read_text())["members"]
    assert list(table) == [*members, "control"]
    assert table["taught"]["validation"]["passed"] > table["sft"]["validation"]["passed"]
    assert metrics["best"] == "taught"  # a tie goes to the earlier member, and the control is never picked
    assert table["taught"]["heldout"]["low"] <= table["taught"]["heldout"]["rate"] <= table["taught"]["heldout"]["high"]
    taught_weights, picked = load_model(taught.out).state_dict(), load_model(step.out).state_dict()
    assert all(torch.equal(picked[name], taught_weights[name]) for name in picked)


def test_methods_are_measured_on_the_same_problems_greedily_and_sampled(model, examples, reward, context, same_files):
    one, two, picked = context("one"), context("two"), context("picked")
    config = CommitteeConfig(problems=8, max_tokens=6, sampled=True)
    members = {"base": model, "same": model}
    table = methods(config, one, members=members, reward=reward, examples=examples)["members"]
    assert {k: v for k, v in table["base"].items() if k != "sampled"} == {
        k: v for k, v in table["same"].items() if k != "sampled"
    }
    assert table["base"]["n"] == table["base"]["sampled"]["n"] == sum(t["n"] for t in table["base"]["tasks"].values())
    assert json.loads((one.out / "methods.json").read_text()) == table
    methods(config, two, members=members, reward=reward, examples=examples)
    same_files(one.out, two.out)
    plain = CommitteeConfig(problems=8, max_tokens=6)
    rows = committee(plain, picked, members=members, reward=reward, examples=examples)["members"]
    assert "sampled" not in rows["base"]["heldout"] and rows["base"]["heldout"]["passed"] == table["base"]["passed"]
