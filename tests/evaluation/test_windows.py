import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.evaluation import windows as module
from openafm.evaluation.windows import (
    held_out,
    held_out_flows,
    loss_by_position,
    measure,
    read_windows,
    windows,
    write_windows,
)
from openafm.model.checkpoint import load_model
from openafm.tokenizer import load


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 12))
def test_windows_are_distinct_pieces_of_the_shard(size, length, count):
    tokens = np.arange(size, dtype=np.uint16)
    rows = windows(tokens, length, count)
    starts = rows[:, 0].tolist()
    assert len(rows) <= count
    assert len(set(starts)) == len(starts)
    assert all(row.tolist() == list(range(row[0], row[0] + rows.shape[1])) for row in rows)
    assert rows.max() < size


def test_measure_agrees_with_one_token_at_a_time(world):
    model, tokenizer = load_model(world / "model"), load(world / "model")
    rows = windows(held_out(world / "shards", "web"), 24, 3)
    for window, row in zip(measure(model, tokenizer, "web", rows), rows, strict=True):
        nats, hits = 0.0, 0
        for i in range(24):
            probabilities = torch.softmax(model(row[None, : i + 1])[0, -1], -1)
            nats -= math.log(probabilities.detach()[row[i + 1]])
            hits += int(probabilities.argmax() == row[i + 1])
        assert window.nats == pytest.approx(nats, abs=1e-3)
        assert (window.correct, window.tokens) == (hits, 24)
        assert window.bytes == len(tokenizer.decode(row[1:].tolist()).encode())


def test_windows_come_back_from_disk(world, tmp_path):
    model, tokenizer = load_model(world / "model"), load(world / "model")
    found = measure(model, tokenizer, "code", windows(held_out(world / "shards", "code"), 16, 4))
    write_windows(found, tmp_path / "windows.jsonl")
    assert read_windows(tmp_path / "windows.jsonl") == found


def test_loss_by_position_averages_to_the_loss(world):
    model = load_model(world / "model")
    rows = windows(held_out(world / "shards", "web"), 150, 3)
    buckets = loss_by_position(model, rows)
    assert list(buckets) == ["0000-0064", "0064-0128", "0128-0150"]
    logits = model(rows[:, :-1]).transpose(1, 2)
    whole = torch.nn.functional.cross_entropy(logits, rows[:, 1:], reduction="none").mean(1)
    mixed = [(64 * a + 64 * b + 22 * c) / 150 for a, b, c in zip(*buckets.values(), strict=True)]
    assert mixed == pytest.approx(whole.tolist(), abs=1e-4)


def test_flows_are_those_with_text(world):
    assert held_out_flows(world / "shards") == ["code", "web"]


def test_a_long_row_is_judged_in_pieces(world, monkeypatch):
    """One row over a budget of ten positions' logits, against whole rows."""
    model = load_model(world / "model")
    rows = windows(held_out(world / "shards", "web"), 64, 2)
    whole = torch.cat([nats for nats, _ in module.predictions(model, rows)])
    monkeypatch.setattr(module, "LOGITS", 10 * model.config.vocab_size)
    parts = torch.cat([nats for nats, _ in module.predictions(model, rows)])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
