import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import documents
from openafm.data import shards as module
from openafm.data.shards import NGRAM, ShardsConfig, held_out, seen, shards, token_type
from openafm.stage import Context
from openafm.tokenizer import load
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

DIGESTS = st.binary(min_size=8, max_size=8)
TEXT = "The quick brown fox jumps over the lazy dog, café {}.\n"


def text(number: int, sentences: int = 3) -> str:
    """Words of the tokenizer's text in an order of their own for each number."""
    words, rng = TEXT.format(number).split(), random.Random(number)
    return "\n".join(" ".join(rng.choices(words, k=12)) for _ in range(sentences)) + "\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, train_sentencepiece([TEXT * 40], 320))
    return folder


def corpus() -> list[documents.Row]:
    rows = [
        documents.document(f"http://{flow}/{number}", flow, text(number + shift, 1 + number % 3))
        for flow, shift in (("web", 0), ("math", 100))
        for number in range(30)
    ]
    return [*rows, documents.drop(documents.document("http://web/x", "web", "dropped"), "clean", "adult")]


def run(tmp_path, rows, tokenizer, name="out", report=lambda *_: None, **options):
    (tmp_path / name).mkdir()
    documents.write(rows, tmp_path / f"{name}-in")
    context = Context(out=tmp_path / name, scratch=tmp_path / "scratch", report=report)
    return shards(ShardsConfig(**options), context, documents=tmp_path / f"{name}-in", tokenizer=tokenizer)


def test_shards_hold_every_kept_document_once(tmp_path, tokenizer):
    rows, model = corpus(), load(tokenizer)
    metrics = run(tmp_path, rows, tokenizer, heldout_share=0.2)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["splits"] == metrics["splits"] and index["dtype"] == "uint16" and index["vocab_size"] == 320
    assert index["absent"] == metrics["absent"] == ["code", "licensed", "public"]
    assert "no text of code, licensed, public" in metrics["headline"]
    for flow in ("web", "math"):
        texts = {split: [] for split in ("train", "heldout")}
        for split, found in texts.items():
            tokens = np.fromfile(tmp_path / "out" / split / f"{flow}.bin", "<u2")
            offsets = np.load(tmp_path / "out" / split / f"{flow}.offsets.npy")
            assert offsets.dtype == np.int64 and offsets[0] == 0 and offsets[-1] == len(tokens)
            for start, end in itertools.pairwise(offsets):
                assert tokens[end - 1] == model.eos_id and model.eos_id not in tokens[start : end - 1]
                found.append(model.decode(tokens[start : end - 1].tolist()))
            count = index["splits"][split][flow]
            assert count == {"tokens": len(tokens), "documents": len(found), "bytes": len("".join(found).encode())}
        assert texts["train"] and texts["heldout"] and not set(texts["train"]) & set(texts["heldout"])
        everything = [row["text"] for row in rows if row["flow"] == flow and row["verdict"] == "keep"]
        assert sorted(texts["train"] + texts["heldout"]) == sorted(everything)
    run(tmp_path, rows[::-1], tokenizer, "again", heldout_share=0.2)
    for path in sorted((tmp_path / "out").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes()


@settings(deadline=None, max_examples=50)
@given(ids=st.sets(DIGESTS, min_size=2), more=st.sets(DIGESTS))
def test_a_document_stays_in_its_split_when_others_come(ids, more):
    names, grown = ([digest.hex() for digest in sorted(part)] for part in (ids, ids | more))
    first, later = held_out(names, 0.3, 0), held_out(grown, 0.3, 0)
    assert first and (len(first) == 1 or first <= later)
    assert held_out(names, 0.0, 0) == set() and held_out(["5" * 16], 1e-12, 0) == set()


def test_large_vocabularies_take_four_bytes():
    assert token_type(65536).itemsize == 2 and token_type(65537).itemsize == 4


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=60), max_size=4),
    st.lists(st.lists(st.integers(0, 3), max_size=60), max_size=4),
    st.integers(0, 40),
)
def test_seen_is_the_share_of_ngrams_in_training(held, train, shared):
    train = [*train, *(document[:shared] for document in held)]

    def grams(document):
        return {tuple(document[i : i + NGRAM]) for i in range(len(document) - NGRAM + 1)}

    known = set().union(*map(grams, train)) if train else set()
    wanted = [len(grams(one) & known) / len(grams(one)) if grams(one) else 0.0 for one in held]
    arrays = ([np.array(document, np.uint32) for document in part] for part in (held, train))
    assert seen(*arrays) == pytest.approx(wanted)


def test_a_held_out_document_within_a_longer_one_is_left_out(tmp_path, tokenizer):
    rows = [documents.document(f"http://web/{n}", "web", text(n, 6)) for n in range(40)]
    (chosen, *_) = sorted(held_out([row["id"] for row in rows], 0.2, 0))
    part = next(row["text"] for row in rows if row["id"] == chosen)
    ids = (f"http://web/whole{n}" for n in itertools.count())
    url = next(
        url for url in ids if documents.document_id(url) not in held_out([documents.document_id(url), chosen], 0.2, 0)
    )
    metrics = run(tmp_path, [*rows, documents.document(url, "web", text(99, 9) + part)], tokenizer, heldout_share=0.2)
    assert metrics["left_out_as_seen"] == {"web": 1}
    counts = [metrics["splits"][split]["web"]["documents"] for split in ("train", "heldout")]
    assert sum(counts) == len(rows) and counts[1] >= 1


def test_small_files_and_parts_hold_the_same_tokens_in_the_same_order(tmp_path, tokenizer, monkeypatch):
    rows = corpus()
    run(tmp_path, rows, tokenizer, "whole")
    monkeypatch.setattr(module, "MOST_TOKENS", 500)
    monkeypatch.setattr(module, "PART_BYTES", 1_000)  # the flows hold more: 16 parts
    metrics = run(tmp_path, rows, tokenizer, "cut")
    assert metrics["splits"]["train"]["web"]["files"] > 2
    for split in ("train", "heldout"):
        for flow in ("web", "math"):
            whole, cut = (
                list(module.read_shard(tmp_path / name / split, flow, np.dtype("<u2"))) for name in ("whole", "cut")
            )
            assert len(whole) == len(cut) > 0 and all(map(np.array_equal, whole, cut))


def test_a_killed_step_goes_on_behind_the_last_whole_flow(tmp_path, tokenizer, monkeypatch):
    rows = corpus()
    run(tmp_path, rows, tokenizer, "whole")

    def killed(label, done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, rows, tokenizer, "killed", report=killed)
    for path in (tmp_path / "killed").iterdir():
        path.unlink()
    (tmp_path / "killed").rmdir()
    writes, write = [], module.write_shard
    monkeypatch.setattr(module, "write_shard", lambda *given: writes.append(given[1]) or write(*given))
    run(tmp_path, rows, tokenizer, "killed")
    assert set(writes) == {"web"}  # math was whole
    for path in sorted((tmp_path / "whole").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()
