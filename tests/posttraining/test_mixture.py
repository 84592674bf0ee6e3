import json

import pytest

from openafm import jsonl
from openafm.posttraining.mixture import MixtureConfig, mix, problem, sft_mixture
from openafm.synthesis import tasks

LONG = "the slow package installs many small files into a folder that nobody reads twice in one year"


def human(number, text, answer):
    message = {"role": "user", "content": text}
    return {
        "id": f"h{number}", "task": "synopsis", "messages": [message], "answer": answer, "check": None,
        "origin": "human", "lineage": "package",
    }  # fmt: skip


@pytest.fixture
def parts(tmp_path):
    math = [e for task in ("addition", "sorting", "parity") for e in tasks.draw(task, 60, 0)]
    wrong = {**math[0], "id": "wrong", "answer": "1234", "messages": [{"role": "user", "content": "1 + 1 = ?"}]}
    people = [human(i, f"Describe package {i} of {i * 7} in one line.", f"tool {i * 3} for {i}") for i in range(60)]
    people += [
        human(100, people[0]["messages"][0]["content"].upper() + " ", "again"),
        human(101, f"Sum up: {LONG}", "Installs files."),
        human(102, f"Sum  up: {LONG}!", "Installs files."),
        human(103, "Sum up: who ate the last of the seven green apples yesterday", "Someone."),
        human(104, "What?", " "),
        human(105, "Say something new.", "word word word " * 20),
        human(106, "Say something odd.", "bro\ufffdken"),
        human(107, " ", "Nothing was asked."),
    ]
    folders = {}
    for name, rows in (("math", [*math, wrong]), ("human", people)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        jsonl.write(folders[name] / "examples.jsonl", rows)
    (tmp_path / "sources" / "benchmarks").mkdir(parents=True)
    item = {"id": "1", "text": "Who ate the last of the seven green apples yesterday?"}
    jsonl.write(tmp_path / "sources" / "benchmarks" / "quiz.jsonl", [item])
    return folders, tmp_path / "sources"


CONFIG = MixtureConfig(
    arms={"a": {"math": 1, "human": 1}, "b": {"math": 4, "human": 1}}, arm_examples=400, heldout_percent=15,
    validation_percent=15,
)  # fmt: skip


def test_every_planted_fault_is_rejected_with_its_reason(parts, context):
    folders, sources = parts
    step = context()
    metrics = sft_mixture(CONFIG, step, parts=folders, sources=sources)
    rejected = {row["id"]: row["reason"] for row in jsonl.read(step.out / "rejected.jsonl")}
    assert rejected == {
        "wrong": "wrong_answer", "h100": "exact_copies", "h102": "near_copies", "h103": "contaminated",
        "h104": "no_answer", "h105": "repetition", "h106": "broken_text", "h107": "no_question",
    }  # fmt: skip
    assert metrics["parts"]["human"] == {
        "kept": 61, "exact_copies": 1, "near_copies": 1, "contaminated": 1, "no_answer": 1, "repetition": 1,
        "broken_text": 1, "no_question": 1,
    }  # fmt: skip


def test_splits_share_no_problem_and_lose_nothing(parts, context):
    folders, sources = parts
    step = context()
    metrics = sft_mixture(CONFIG, step, parts=folders, sources=sources)
    splits = {name: jsonl.read(step.out / f"{name}.jsonl") for name in ("train", "validation", "heldout")}
    problems = {name: {problem(row) for row in rows} for name, rows in splits.items()}
    assert not problems["train"] & problems["heldout"]
    assert not problems["train"] & problems["validation"]
    assert not problems["validation"] & problems["heldout"]
    assert min(map(len, splits.values())) > 10
    kept = sum(part["kept"] for part in metrics["parts"].values())
    assert sum(map(len, splits.values())) == kept
    for arm in "ab":
        assert {row["id"] for row in jsonl.read(step.out / f"train_{arm}.jsonl")} <= {r["id"] for r in splits["train"]}


def test_arms_have_the_shares_they_ask_for(parts, context):
    folders, sources = parts
    metrics = sft_mixture(CONFIG, context(), parts=folders, sources=sources)
    assert metrics["arms"]["a"]["parts"] == {"human": 0.5, "math": 0.5}
    assert metrics["arms"]["b"]["human_share"] == 0.2
    assert metrics["arms"]["b"]["synthetic_share"] == 0.8
    assert metrics["arms"]["b"]["examples"] == 400
    alone = sft_mixture(MixtureConfig(), context("alone"), parts=folders, sources=sources)
    assert alone["arms"]["all"]["examples"] == alone["train"]["examples"]


def test_repeats_are_whole_passes():
    rows = [{"id": i, "part": "x"} for i in range(7)]
    mixed = [row["id"] for row in mix(rows, {"x": 2.0}, 17, "seed")]
    assert sorted(mixed.count(i) for i in range(7)) == [2, 2, 2, 2, 3, 3, 3]
    with pytest.raises(ValueError, match="take it out of `arms`"):
        mix(rows, {"x": 1, "y": 1}, 4, "seed")


def test_the_mixture_is_the_same_every_time(parts, context, same_files):
    folders, sources = parts
    one, two = context("one"), context("two")
    assert sft_mixture(CONFIG, one, parts=folders, sources=sources) == sft_mixture(
        CONFIG, two, parts=folders, sources=sources
    )
    same_files(one.out, two.out)
    assert json.loads((one.out / "mixture.json").read_text())["arms"]


def test_rewordings_share_a_problem_and_weights_are_checked():
    lineages = ("programmatic/addition/3+4", "writer-rephrase/math_rephrase/3+4")
    one, two = ({"lineage": lineage, "origin": "synthetic"} for lineage in lineages)
    assert problem(one) == problem(two) == "3+4"
    with pytest.raises(ValueError, match="above 0"):
        MixtureConfig(arms={"a": {"math": 0}})
