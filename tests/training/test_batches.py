import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.training.batches import ExampleBatches, TokenBatches, _interleave


def test_windows_are_cut_from_the_shards(token_shards):
    batches = TokenBatches(
        token_shards, {"web": 3, "code": 1}, sequence_length=16, batch_tokens=64, tokens=2000, seed=0
    )
    assert len(batches) == 31 and batches.rows == 4
    for step in range(len(batches)):
        batch = batches[step]
        assert torch.equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
        strides = (batch["targets"] - batch["inputs"]) % 60
        assert all(len(set(row.tolist())) == 1 for row in strides)
        assert sorted(strides[:, 0].tolist()) == [1, 1, 1, 3]
    assert torch.equal(batches[5]["inputs"], batches[5]["inputs"])
    assert batches.epochs["web"] == round(93 / (5999 // 16), 3)


def test_every_window_once_an_epoch(token_shards):
    batches = TokenBatches(token_shards, {"web": 1}, sequence_length=100, batch_tokens=100, tokens=11800, seed=3)
    source = batches.sources[0]
    assert source.windows == 59
    starts = [source._place(number)[1] for _, number in batches.draws.tolist()]
    first, second = starts[:59], starts[59:]
    assert sorted(first) == sorted(second) == list(range(0, 5900, 100)) and first != second


def test_missing_source_is_named(token_shards):
    with pytest.raises(ValueError, match=r"no poems\.bin .*these sources: code, web"):
        TokenBatches(token_shards, {"poems": 1}, sequence_length=8, batch_tokens=8, tokens=80, seed=0)


def test_a_source_that_the_machine_cannot_have_leaves_its_share_to_the_others(token_shards):
    index = json.loads((token_shards / "index.json").read_text())
    (token_shards / "index.json").write_text(json.dumps(index | {"absent": ["public"]}))
    shape = {"sequence_length": 16, "batch_tokens": 64, "tokens": 2000, "seed": 0}
    without = TokenBatches(token_shards, {"web": 3, "code": 1, "public": 1}, **shape)
    assert without.absent == ["public"] and [source.name for source in without.sources] == ["code", "web"]
    plain = TokenBatches(token_shards, {"web": 3, "code": 1}, **shape)
    assert plain.absent == [] and np.array_equal(without.draws, plain.draws)
    with pytest.raises(ValueError, match="none of this mixture's sources: public"):
        TokenBatches(token_shards, {"public": 1}, **shape)
    with pytest.raises(ValueError, match=r"no publik\.bin"):
        TokenBatches(token_shards, {"publik": 1}, **shape)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=5), st.integers(1, 200))
def test_the_mixture_holds_at_every_point(weights, count):
    shares = np.array(weights) / sum(weights)
    draws = _interleave(shares, count)
    for end in range(1, count + 1):
        counts = np.bincount(draws[:end, 0], minlength=len(shares))
        assert np.all(np.abs(counts - shares * end) <= len(shares))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0.1, 1), st.integers(1, 80)), min_size=1, max_size=5), st.integers(1, 200))
def test_a_source_at_its_cap_leaves_its_share_to_the_others(sources, count):
    shares = np.array([share for share, _ in sources])
    limits = np.array([float(limit) for _, limit in sources])
    shares, count = shares / shares.sum(), min(count, int(limits.sum()))
    draws = _interleave(shares, count, limits)
    drawn = np.bincount(draws[:, 0], minlength=len(sources))
    assert np.all(drawn <= limits) and drawn.sum() == count
    free = drawn < limits
    if free.sum() > 1:  # those that are not at their cap keep their ratio
        ratio = drawn[free] / shares[free]
        assert np.ptp(ratio) <= 2 / shares[free].min()
    for source in range(len(sources)):
        assert draws[draws[:, 0] == source, 1].tolist() == list(range(drawn[source]))


def test_caps_are_epochs_and_too_little_text_is_an_error(token_shards):
    shape = {"sequence_length": 16, "batch_tokens": 64, "seed": 0}
    plain = TokenBatches(token_shards, {"web": 1, "code": 1}, tokens=6000, **shape)
    capped = TokenBatches(token_shards, {"web": 1, "code": 1}, tokens=6000, max_epochs={"code": 0.25}, **shape)
    assert plain.epochs["code"] > 0.25 >= capped.epochs["code"] > 0.2 and capped.epochs["web"] > plain.epochs["web"]
    loose = TokenBatches(token_shards, {"web": 1, "code": 1}, tokens=6000, max_epochs=1000, **shape)
    assert np.array_equal(loose.draws, plain.draws)
    with pytest.raises(ValueError, match=r"max_epochs allows .* tokens of code, web, fewer than the 59,968"):
        TokenBatches(token_shards, {"web": 1, "code": 1}, tokens=60_000, max_epochs=0.1, **shape)


def test_documents_number_the_tokens_of_a_row_by_the_offsets(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [rng.integers(1, 30, 40), rng.integers(1, 30, 25)]
    (tmp_path / "train").mkdir()
    (tmp_path / "index.json").write_text(json.dumps({"dtype": "uint16", "splits": {"train": {"web": {}}}}))
    start, where = 0, []
    for number, lengths in enumerate(sizes):  # every token is its document's number
        tokens = np.repeat(np.arange(start, start + len(lengths)), lengths).astype("<u2")
        name = f"web.{number}" if number else "web"
        tokens.tofile(tmp_path / "train" / f"{name}.bin")
        np.save(tmp_path / "train" / f"{name}.offsets.npy", np.cumsum([0, *lengths]))
        start += len(lengths)
        where += [tokens[at : at + 16].tolist() for at in range(0, (len(tokens) - 1) // 16 * 16, 16)]
    shape = {"sequence_length": 16, "batch_tokens": 32, "tokens": 16 * len(where), "seed": 0}
    batches = TokenBatches(tmp_path, {"web": 1}, documents=True, **shape)
    seen = []
    for step in range(len(batches)):
        batch = batches[step]
        assert batch["documents"].shape == batch["inputs"].shape and batch["documents"].dtype == torch.int64
        assert torch.equal(batch["documents"], batch["inputs"] - batch["inputs"][:, :1])
        seen += batch["inputs"].tolist()
    assert len(seen) >= len(where) - 1 and all(row in where for row in seen)  # each once, none across two files
    assert len({tuple(row) for row in seen}) == len(seen)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=20),
    st.integers(15, 40),
    st.integers(0, 5),
)
def test_packing_keeps_examples_whole(sizes, length, seed):
    examples = [([100 + i] * prompt, [200 + i] * answer) for i, (prompt, answer) in enumerate(sizes)]
    batches = ExampleBatches(
        examples, sequence_length=length, batch_tokens=2 * length, tokens=8 * length, seed=seed, pad_id=0
    )
    for step in range(len(batches)):
        batch = batches[step]
        assert batch["inputs"].shape == batch["targets"].shape == (2, length)
        shifted = batch["targets"][:, :-1]
        assert torch.equal(shifted[shifted != -100], batch["inputs"][:, 1:][shifted != -100])
        targets = batch["targets"][batch["targets"] != -100]
        assert bool((targets >= 200).all())
        for number, count in zip(*np.unique(targets.numpy(), return_counts=True), strict=True):
            assert count % sizes[int(number) - 200][1] == 0


def test_too_long_examples_are_refused():
    with pytest.raises(ValueError, match="longest has 12"):
        ExampleBatches([([1] * 6, [2] * 6)], sequence_length=8, batch_tokens=8, tokens=80, seed=0, pad_id=0)


def test_index_is_read(token_shards):
    shape = {"sequence_length": 16, "batch_tokens": 64, "tokens": 64, "seed": 0}
    narrow = TokenBatches(token_shards, {"web": 1}, **shape)[0]
    index, path = token_shards / "index.json", token_shards / "train/web.bin"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"dtype": "uint32"}))
    np.fromfile(path, "uint16").astype("uint32").tofile(path)
    assert torch.equal(TokenBatches(token_shards, {"web": 1}, **shape)[0]["inputs"], narrow["inputs"])
