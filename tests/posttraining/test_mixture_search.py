import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm import jsonl
from openafm.posttraining.mixture_search import SearchConfig, gain, mixture_search, moved, normal, search
from openafm.posttraining.sft import SftConfig, sft

CONFIG = SearchConfig(delta=0.1, rounds=4)
N = 400


def world(right):
    """A trial in which a mixture gets a share of the problems right, always the same ones first; and its log."""
    asked = []

    def measured(weights):
        assert sum(weights.values()) == pytest.approx(1) and min(weights.values()) >= 0
        asked.append(weights)
        return [problem < right(weights) * N for problem in range(N)]

    return measured, asked


def test_the_search_climbs_to_the_best_mixture():
    """Right answers fall with the distance from 0.5, 0.3, 0.2; every part matters, so none is dropped."""
    best = {"math": 0.5, "tools": 0.3, "code": 0.2}
    measured, _ = world(lambda w: 0.9 - sum(abs(w[part] - best[part]) for part in best))
    found, rounds = search(normal({"math": 0.2, "tools": 0.3, "code": 0.5}), measured, CONFIG)
    assert sum(abs(found[part] - best[part]) for part in best) < 0.25
    assert rounds[0]["taken"] and rounds[0]["parts"]["math"]["verdict"] == "moved"
    assert rounds[0]["parts"]["math"]["to"] == pytest.approx(0.3)


def test_a_part_without_impact_is_dropped_unless_it_is_kept():
    def right(weights):  # the share of tools among the useful parts decides; noise changes nothing
        useful = weights["math"] + weights["tools"]
        return 0.80125 - abs(weights["tools"] / useful - 0.4) if useful else 0.0

    start = {"math": 0.48, "tools": 0.32, "noise": 0.2}
    found, rounds = search(start, world(right)[0], SearchConfig(rounds=1))
    assert rounds[0]["parts"]["noise"]["verdict"] == "dropped"
    assert found == pytest.approx({"math": 0.6, "tools": 0.4, "noise": 0.0})
    kept, rounds = search(start, world(right)[0], SearchConfig(rounds=1, keep=("noise",)))
    assert rounds[0]["parts"]["noise"]["verdict"] == "stays" and kept == start


def test_a_part_of_which_a_little_is_enough_is_not_dropped():
    measured, asked = world(lambda w: 0.6 if w["manners"] > 0 else 0.2)
    found, rounds = search({"math": 0.7, "manners": 0.3}, measured, SearchConfig(rounds=1))
    assert rounds[0]["parts"]["manners"]["verdict"] == "needed" and found["manners"] > 0
    assert any(weights["manners"] == 0 for weights in asked)


def test_what_does_not_hold_together_is_not_taken():
    """Each part alone looks superfluous, both together are not: all dropped is never a mixture, and nothing changes."""
    measured, _ = world(lambda w: 0.6)
    found, rounds = search({"a": 0.5, "b": 0.5}, measured, CONFIG)
    assert found == {"a": 0.5, "b": 0.5} and not rounds[0]["taken"] and len(rounds) == 1
    start = {"a": 0.1, "b": 0.1, "c": 0.8}  # without a or without b as good, without both not
    measured, asked = world(lambda w: 0.6 if w["c"] and (w["a"] or w["b"]) else 0.2)
    found, rounds = search(start, measured, CONFIG)
    assert asked[-1] == {"a": 0, "b": 0, "c": 1} and found == start and not rounds[0]["taken"] and len(rounds) == 1


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=5), st.floats(0, 0.95))
def test_moved_weights_sum_to_one_and_keep_their_ratios(values, to):
    weights = normal({str(i): value for i, value in enumerate(values)})
    found = moved(weights, "0", to)
    assert found["0"] == to and sum(found.values()) == pytest.approx(1)
    others = [found[name] / weights[name] for name in weights if name != "0"]
    np.testing.assert_allclose(others, others[0])


def test_gain_is_the_paired_difference_with_its_standard_error():
    """McNemar's: of 10 problems 4 turn right and 1 wrong."""
    before = [True] * 3 + [False] * 7
    after = [False, True, True] + [True] * 4 + [False] * 3
    share, error = gain(before, after)
    assert share == pytest.approx(0.3)
    assert error == pytest.approx(np.sqrt((4 + 1) / 10 - 0.3**2) / np.sqrt(10), abs=1e-5)
    assert gain(before, before) == (0.0, 0.0)


def test_the_stage_leaves_examples_that_sft_reads(model, examples, context, tmp_path, same_files):
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("train", "validation", "heldout"):
        rows = [{**row, "part": "odd" if row["task"] == "parity" else "rest", "origin": "synthetic"}
                for row in jsonl.read(examples / f"{name}.jsonl")]  # fmt: skip
        jsonl.write(parts / f"{name}.jsonl", rows)
    config = SearchConfig(tokens=1024, batch_tokens=256, sequence_length=64, problems=8, max_tokens=4, lr=0.003)
    step, again = context("one"), context("two")
    metrics = mixture_search(config, step, model=model, examples=parts)
    assert metrics["trials"] == len(json.loads((step.out / "search.json").read_text())["trials"]) >= 5
    assert sum(metrics["weights"].values()) == pytest.approx(1)
    mixture_search(config, again, model=model, examples=parts)
    same_files(step.out, again.out)
    tuned = SftConfig(tokens=1024, batch_tokens=256, sequence_length=64, snapshots=1)
    assert sft(tuned, context("sft"), model=model, examples=step.out, arm=step.out)["arm"] == "searched"
    jsonl.write(parts / "train.jsonl", [row for row in jsonl.read(parts / "train.jsonl") if row["part"] == "odd"])
    with pytest.raises(ValueError, match="no mixture"):
        mixture_search(config, context("alone"), model=model, examples=parts)
