import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm import jsonl
from openafm.posttraining.labelling import (
    Labels,
    LabelsConfig,
    Pair,
    agreement,
    alpha,
    labelled,
    labels,
    pairs_of_run,
    pairs_to_label,
    preference,
)
from openafm.posttraining.preferences import PreferencesConfig, preferences

ONES = [[1, 1, 1, 1], [1, 1, 1, 1]]


def asked(number):
    return Pair(f"q{number}/x", "t", [{"role": "user", "content": f"Question {number}?"}], ("a", "b"))


def rollout(prompt, member, texts):
    completions = [{"text": t, "tokens": [1], "logprobs": [0.0], "reward": 0.0, "passed": False} for t in texts]
    return {"id": prompt, "task": "t", "messages": [{"role": "user", "content": prompt}], "prompt_tokens": [1],
            "member": member, "completions": completions}  # fmt: skip


def test_one_pair_a_prompt_of_two_members_in_an_order_of_its_own(tmp_path):
    rows = []
    for n in range(30):
        rows += [rollout(f"q{n}", "sft", ["same", "one"]), rollout(f"q{n}", "rl", ["two"])]
    jsonl.write(tmp_path / "rollouts.jsonl", [*rows, rollout("silent", "sft", ["x", "x"])])
    pairs = pairs_to_label(tmp_path, seed=0)
    assert sorted(p.id.partition("/")[0] for p in pairs) == sorted(f"q{n}" for n in range(30))
    assert all("two" in p.answers and p.answers[0] < p.answers[1] for p in pairs)
    assert pairs == pairs_to_label(tmp_path, seed=0)
    assert [p.id for p in pairs] != [p.id for p in pairs_to_label(tmp_path, seed=1)]
    jsonl.write(tmp_path / "rollouts.jsonl", [rollout("silent", "sft", ["x", "x"])])
    with pytest.raises(ValueError, match="more samples"):
        pairs_to_label(tmp_path, seed=0)


def test_preferences_of_programs_can_be_labelled_anew(model, examples, context):
    made = context()
    preferences(PreferencesConfig(prompts=8, heldout_prompts=4), made, model=model, examples=examples)
    (made.out / "manifest.json").write_text(json.dumps({"step": "step", "stage": "preferences"}))
    texts = {frozenset((row["chosen"], row["rejected"])) for row in jsonl.read(made.out / "train.jsonl")}
    assert {frozenset(p.answers) for p in pairs_of_run(made.out.parent, None, 0)} == texts


def test_labels_survive_a_kill_and_the_last_line_counts(tmp_path):
    book = Labels(tmp_path, "ada")
    book.add(preference(asked(0), "ada", 0, 3, ONES))
    book.add({"id": "q1/x", "labeller": "ada", "skipped": True})
    book.add(preference(asked(2), "ada", 1, 0, ONES))
    book.undo()
    with pytest.raises(ValueError, match="already"):
        Labels(tmp_path, "ada")
    book.close()
    with book.path.open("ab") as file:
        file.write(b'{"id": "q3/x", "lab')  # cut by a kill
    book = Labels(tmp_path, "ada")
    assert list(book.current) == ["q0/x", "q1/x"]
    book.add(preference(asked(0), "ada", 1, 1, ONES))
    book.close()
    (row,) = labelled(tmp_path)
    assert (row["chosen"], row["rejected"], row["strength"]) == ("b", "a", 1)


@pytest.mark.parametrize("name", ["", "../ada", "a/b", ".hidden", "x" * 41])
def test_a_labellers_name_is_no_path(tmp_path, name):
    with pytest.raises(ValueError, match="--labeller"):
        Labels(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_alpha_is_krippendorffs_own_example():
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), example C: nominal 0.743, ordinal 0.815."""
    data = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]  # fmt: skip
    units: dict[str, dict[str, int]] = {}
    for name, row in enumerate(data):
        for unit, value in enumerate(row.split()):
            if value != ".":
                units.setdefault(str(unit), {})[str(name)] = int(value)
    assert alpha(units, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert alpha(units, "ordinal") == pytest.approx(0.815, abs=5e-4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=12))
def test_nominal_alpha_is_one_less_observed_over_expected_disagreement(pairs):
    """For two labellers without gaps, by counting (Hayes and Krippendorff, 2007)."""
    values = np.array(pairs)
    found = alpha({str(i): {"a": a, "b": b} for i, (a, b) in enumerate(pairs)}, "nominal")
    counts = np.bincount(values.ravel(), minlength=3)
    n = counts.sum()
    expected = 1 - (counts * (counts - 1)).sum() / (n * (n - 1))
    if expected == 0:
        assert found is None
    else:
        assert found == pytest.approx(1 - (values[:, 0] != values[:, 1]).mean() / expected, abs=1e-4)


def test_agreement_sees_through_the_order_of_the_answers(tmp_path):
    rows = [
        preference(asked(n), who, n % 2, 3 - n % 4, [[n % 3, 1, 2, 0], [2, n % 3, 1, 1]])
        for n in range(6)
        for who in ("ada", "bob")
    ]
    found = agreement(rows)
    assert found["labels"] == {"ada": 6, "bob": 6} and found["pairs_of_several"] == 6
    assert set(found["alpha"].values()) == {1.0}
    for row in rows[1::2]:  # bob now always says the opposite
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        row["grades_chosen"], row["grades_rejected"] = row["grades_rejected"], row["grades_chosen"]
    assert agreement(rows)["alpha"]["better answer"] < 0
    assert agreement(rows)["alpha"]["truthfulness"] == 1.0
    assert set(agreement(rows[::2])["alpha"].values()) == {None}


def test_the_step_splits_by_prompt_and_keeps_the_format(context, tmp_path):
    rows = [preference(asked(n), who, 0, 3, ONES) for n in range(40) for who in ("ada", "bob")]
    jsonl.write(tmp_path / "labels.jsonl", rows)
    step = context()
    metrics = labels(LabelsConfig(data=str(tmp_path / "labels.jsonl"), heldout_percent=25), step)
    train, heldout = (jsonl.read(step.out / f"{name}.jsonl") for name in ("train", "heldout"))
    assert len(train) + len(heldout) == 80 and 4 <= len(heldout) <= 36
    assert not {row["id"] for row in train} & {row["id"] for row in heldout}
    assert train[0].keys() >= {
        "messages",
        "chosen",
        "rejected",
        "strength",
        "grades_chosen",
        "grades_rejected",
        "margin",
    }
    assert metrics["train"]["strengths"]["significant"] == len(train)
    assert LabelsConfig(data=str(tmp_path / "labels.jsonl")).files() == [Path(tmp_path / "labels.jsonl")]


def test_what_step_preferences_writes_is_read_as_it_is(model, examples, context):
    made, read = context("made"), context("read")
    preferences(PreferencesConfig(prompts=8, heldout_prompts=4), made, model=model, examples=examples)
    labels(LabelsConfig(data=str(made.out / "train.jsonl")), read)
    kept = [row for name in ("train", "heldout") for row in jsonl.read(read.out / f"{name}.jsonl")]
    before = jsonl.read(made.out / "train.jsonl")
    assert sorted(row["id"] for row in kept) == sorted(row["id"] for row in before)
    assert {row["margin"] for row in kept} == {row["margin"] for row in before}


@pytest.mark.parametrize(
    ("change", "told"),
    [({"strength": 4}, "strength"), ({"grades_chosen": [0, 1, 2]}, "grades_chosen"), ({"rejected": "a"}, "same text"),
     ({"messages": []}, "messages"), ({"grades_rejected": [0, 1, 2, 3]}, "grades_rejected.3")],
)  # fmt: skip
def test_a_wrong_line_is_named(context, tmp_path, change, told):
    rows = [preference(asked(n), "ada", 0, 3, ONES) for n in range(3)]
    jsonl.write(tmp_path / "labels.jsonl", [*rows[:2], rows[2] | change])
    with pytest.raises(ValueError, match=rf"labels\.jsonl:3: .*{told}"):
        labels(LabelsConfig(data=str(tmp_path / "labels.jsonl")), context())
