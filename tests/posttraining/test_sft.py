import json

import pytest
import torch

from openafm import jsonl
from openafm.model.checkpoint import load_model
from openafm.posttraining.examples import write_json
from openafm.posttraining.policy import Policy
from openafm.posttraining.sft import ArmsConfig, FinetuneConfig, SftConfig, finetune, sft, sft_arms

CONFIG = SftConfig(tokens=4096, batch_tokens=512, sequence_length=64, lr=0.02, snapshots=2)


def test_sft_learns_and_keeps_checkpoints(model, examples, context):
    step = context()
    metrics = sft(CONFIG, step, model=model, examples=examples)
    assert metrics["steps"] == 8
    assert metrics["arm"] == "all"
    assert sorted(path.name for path in (step.out / "snapshots").iterdir()) == ["000004", "000008"]
    last, end = (load_model(folder).state_dict() for folder in (step.out / "snapshots" / "000008", step.out))
    assert all(torch.equal(last[name], end[name]) for name in end)
    curve = jsonl.read(step.out / "metrics.jsonl")
    assert curve[-1]["loss"] < 5.7 < torch.log(torch.tensor(420.0))
    assert Policy.load(step.out).tokenizer.vocab_size == 420


def test_a_killed_sft_ends_with_the_same_bytes(model, examples, context, same_files, kill):
    whole = context("whole")
    metrics = sft(CONFIG, whole, model=model, examples=examples)
    broken = context("broken")
    killed = kill(broken, "train", 6)  # after the checkpoint of step 4, and the steps since then are lost
    with pytest.raises(killed):
        sft(CONFIG, broken, model=model, examples=examples)
    again, done = context("broken"), []
    again.report = lambda label, at, total: done.append(at) if label.startswith("train") else None
    assert sft(CONFIG, again, model=model, examples=examples) == metrics
    assert done[0] > 4  # from the start it would end the same, too
    same_files(whole.out, again.out)


def test_only_answers_are_learned(model, context):
    """Training on prompts with empty-handed targets leaves them unlearned: the loss counts answers alone."""
    example = {"messages": [{"role": "user", "content": "Say: fig"}], "answer": "7"}
    policy = Policy.load(model)
    config = FinetuneConfig(tokens=640, batch_tokens=32, sequence_length=32, lr=0.03, dropout=0.0)
    _, facts = finetune(policy, [example], config, context())
    assert facts["steps"] == 20
    assert facts["loss"] < 0.1
    answer = policy.answer([{**example, "check": None}], 24, context("x"), "x", temperature=0.0)
    assert answer[0].text == "7"


@pytest.mark.parametrize(("right", "best"), [((1, 3, 2), "b"), ((2, 1, 2), "a"), ((0, 0, 1), "c")])
def test_the_arm_with_the_most_answers_right_is_chosen(context, monkeypatch, tmp_path, right, best):
    """Ties go to the first name; neither the loss nor the examples of an arm count."""
    for name in ("validation", "train_c", "train_a", "train_b", "train"):
        jsonl.write(tmp_path / f"{name}.jsonl", [])

    def trial(config, context, model, rows, validation, name):
        place = "abc".index(name)
        return [False] * (6 - right[place]) + [True] * right[place], {"loss": place, "examples": -place}

    monkeypatch.setattr("openafm.posttraining.sft.trial", trial)
    arms = context("arms")
    metrics = sft_arms(ArmsConfig(), arms, model=tmp_path, examples=tmp_path)
    chosen = json.loads((arms.out / "chosen.json").read_text())
    assert chosen["arm"] == metrics["arm"] == best and f"chosen {best}" in metrics["headline"]
    assert {name: (arm["passed"], arm["n"]) for name, arm in chosen["arms"].items()} == {
        name: (count, 6) for name, count in zip("abc", right, strict=True)
    }


def test_arms_are_compared_and_sft_follows_the_choice(model, examples, context):
    arms = context("arms")
    config = ArmsConfig(tokens=1024, batch_tokens=512, sequence_length=64, lr=0.01, problems=12)
    metrics = sft_arms(config, arms, model=model, examples=examples)
    chosen = json.loads((arms.out / "chosen.json").read_text())
    assert set(chosen["arms"]) == {"a", "b"}
    passed = {name: arm["passed"] for name, arm in chosen["arms"].items()}
    assert chosen["arm"] == metrics["arm"] == ("b" if passed["b"] > passed["a"] else "a")
    assert all(arm["low"] <= arm["rate"] <= arm["high"] and arm["n"] == 12 for arm in chosen["arms"].values())
    write_json(arms.out / "chosen.json", {"arm": "b"})
    short = CONFIG.model_copy(update={"tokens": 512})
    followed = sft(short, context("sft"), model=model, examples=examples, arm=arms.out)
    assert followed["arm"] == "b"
    assert followed["examples"] == 40
