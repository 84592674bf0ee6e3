import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm import jsonl
from openafm.posttraining.examples import RowBatches, answer_row, checked, share


def test_rows_survive_the_disk_and_bad_lines_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "ä\u2028\n"}, {"n": 1.25}]
    jsonl.write(path, rows)
    assert jsonl.read(path) == rows
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2 is not a JSON object"):
        jsonl.read(path)
    path.write_text('{"a": \n')
    with pytest.raises(ValueError, match=r"rows.jsonl:1 is not JSON"):
        jsonl.read(path)
    with pytest.raises(ValueError, match="missing"):
        jsonl.read(tmp_path / "none.jsonl")


def test_shares_are_uniform_and_seeded():
    values = [share(0, str(i)) for i in range(2000)]
    assert min(values) >= 0
    assert max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.03
    assert share(1, "0") != share(0, "0")


def test_checked_examples_are_spread_over_tasks_whatever_their_order():
    rows = [
        {"id": f"{task}{i}", "task": task, "messages": [{"role": "user", "content": str(i)}], "check": check}
        for task, check in (("a", {"kind": "text"}), ("b", {"kind": "text"}), ("c", None))
        for i in range(10)
    ]
    found = checked(rows, 6, 0)
    assert sorted(row["task"] for row in found) == ["a"] * 3 + ["b"] * 3
    assert checked(rows[::-1], 6, 0) == found
    assert len(checked(rows, 99, 0)) == 20


def test_an_answers_targets_are_its_own_tokens():
    row = answer_row([1, 2, 3], [7, 8])
    assert row == {"inputs": [1, 2, 3, 7], "targets": [-100, -100, 7, 8]}


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 12))
def test_row_batches_use_every_row_equally_often(count, size, steps):
    rows = [{"inputs": [i] * (i + 1), "targets": [i] * (i + 1), "weight": float(i)} for i in range(count)]
    batches = RowBatches(rows, rows_per_batch=size, steps=steps, seed=3)
    seen = [int(n) for step in range(len(batches)) for n in batches[step]["weight"]]
    counts = [seen.count(i) for i in range(count)]
    assert max(counts) - min(counts) <= 1
    batch = batches[0]
    assert torch.equal(batch["inputs"], RowBatches(rows, rows_per_batch=size, steps=steps, seed=3)[0]["inputs"])
    for row, n in enumerate(batch["weight"].int().tolist()):
        assert batch["targets"][row].tolist()[n + 1 :] == [-100] * (batch["targets"].shape[1] - n - 1)


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(ValueError, match="nothing to train on"):
        RowBatches([], rows_per_batch=1, steps=1, seed=0)
