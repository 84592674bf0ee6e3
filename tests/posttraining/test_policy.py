import numpy as np
import pytest
import torch

from openafm import jsonl
from openafm.posttraining.policy import Policy, passes, rate, token_log_probs
from openafm.stage import Hardware


def test_trainer_and_sampler_agree_on_the_samplers_tokens(model, examples, context):
    policy = Policy.load(model)
    problems = jsonl.read(examples / "train.jsonl")[:40]
    answers = policy.answer(problems, 12, context(), "answers")
    pairs = [(policy.prompt(p), a.tokens) for p, a in zip(problems, answers, strict=True)]
    trainers = token_log_probs(policy.model, pairs, Hardware())
    for answer, own in zip(answers, trainers, strict=True):
        np.testing.assert_allclose(answer.logprobs, own, atol=1e-4)


def test_token_log_probs_one_sequence_at_a_time(model):
    policy = Policy.load(model)
    pairs = [([1, 5, 9], [11, 12]), ([1], [3]), ([1, 2, 3, 4, 5, 6], [7])]
    expected = []
    for prompt, answer in pairs:
        logits = policy.model(torch.tensor([prompt + answer]))[0].double()
        table = logits - logits.exp().sum(-1, keepdim=True).log()
        expected.append([table[len(prompt) + i - 1, token].item() for i, token in enumerate(answer)])
    for found, wanted in zip(token_log_probs(policy.model, pairs, Hardware()), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_draws_repeat_and_differ_by_label(model, examples, context):
    policy = Policy.load(model)
    problems = jsonl.read(examples / "train.jsonl")[:8]
    one, two, other = (policy.answer(problems, 6, context(name), label) for name, label in ("ab", "cb", "dx"))
    assert one == two
    assert one != other


def test_problems_fit_and_are_checked(model, examples):
    policy = Policy.load(model)
    rows = jsonl.read(examples / "train.jsonl")
    found = policy.problems(rows, 1000, 4, "seed")
    assert 0 < len(found) < len(rows)
    assert all(len(policy.tokenizer.encode(row["answer"])) < 4 for row in found)
    with pytest.raises(ValueError, match=r"raise max_tokens"):
        policy.problems(rows, 10, 0, "seed")


def test_without_a_check_nothing_passes():
    assert not passes({"id": "x", "answer": "yes", "check": None}, "yes")
    assert passes({"id": "x", "answer": "4", "check": {"kind": "number", "answer": "4"}}, "It is 4.")


def test_rates_hold_their_interval_and_bear_no_trials():
    assert rate(0, 0)["rate"] is None
    half = rate(50, 100)
    assert half["low"] < half["rate"] < half["high"]
    assert half["low"] == pytest.approx(0.4038, abs=1e-4)  # Wilson's interval of 50 in 100, from published tables
