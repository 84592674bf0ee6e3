import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import documents
from openafm.data.shards import ShardsConfig, held_out, shards, token_type
from openafm.stage import Context
from openafm.tokenizer import load
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

DIGESTS = st.binary(min_size=8, max_size=8)
TEXT = "The quick brown fox jumps over the lazy dog, café {}.\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, train_sentencepiece([TEXT * 40], 320))
    return folder


def corpus() -> list[documents.Row]:
    rows = [
        documents.document(f"http://{flow}/{number}", flow, TEXT.format(number) * (1 + number % 3))
        for flow in ("web", "math")
        for number in range(30)
    ]
    return [*rows, documents.drop(documents.document("http://web/x", "web", "dropped"), "clean", "adult")]


def run(tmp_path, rows, tokenizer, name="out", **options):
    (tmp_path / name).mkdir()
    documents.write(rows, tmp_path / f"{name}-in")
    context = Context(out=tmp_path / name, scratch=tmp_path)
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
    first, later = held_out(names, 0.3), held_out(grown, 0.3)
    assert first and (len(first) == 1 or first <= later)
    assert held_out(names, 0.0) == set() and held_out(["5" * 16], 1e-12) == set()


def test_large_vocabularies_take_four_bytes():
    assert token_type(65536).itemsize == 2 and token_type(65537).itemsize == 4
