import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import documents
from openafm.data.dedup import DedupConfig, dedup, near_duplicates
from openafm.data.minhash import BANDS, ROWS, signatures
from openafm.data.ngrams import shingles
from openafm.stage import Context

VOCABULARY = [f"word{i}" for i in range(3000)]


def edited_copies(seed: int, originals: int, copies: int, edits: tuple[int, int] = (0, 12)) -> list[str]:
    """Random texts of 60 to 300 words and copies of each with a few words replaced, inserted or cut."""
    draw, texts = random.Random(seed), []
    for _ in range(originals):
        words = draw.choices(VOCABULARY, k=draw.randint(60, 300))
        texts.append(" ".join(words))
        for _ in range(copies):
            copy = list(words)
            for _ in range(draw.randint(*edits)):
                place = draw.randrange(len(copy))
                copy[place : place + draw.randint(0, 2)] = draw.choices(VOCABULARY, k=draw.randint(0, 2))
            texts.append(" ".join(copy))
    draw.shuffle(texts)
    return texts


def grams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def brute_jaccard(texts: list[str]) -> dict[tuple[int, int], float]:
    """The similarity of each pair of texts."""
    sets = list(map(grams, texts))
    pairs = itertools.combinations(range(len(texts)), 2)
    return {(a, b): len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in pairs}


def test_recall_and_precision_against_brute_force():
    texts = edited_copies(1, 60, 5)
    groups = near_duplicates(texts, 0.8)
    group_of = {i: number for number, group in enumerate(groups) for i in group}
    similar = {pair for pair, true in brute_jaccard(texts).items() if true >= 0.8}
    found = [(a, b) for a, b in similar if a in group_of and group_of[a] == group_of.get(b)]
    assert len(similar) > 200
    assert len(found) / len(similar) >= 0.98
    for members in groups:  # each member is tied to its group by a pair that is similar enough
        assert all(any((min(i, j), max(i, j)) in similar for j in members - {i}) for i in members)


def test_the_estimate_is_as_good_as_datasketch():
    datasketch = pytest.importorskip("datasketch")
    texts = edited_copies(2, 40, 1, edits=(0, 25))
    ours = signatures(*shingles(texts, 5))
    theirs = []
    for text in texts:
        words, sketch = text.split(), datasketch.MinHash(num_perm=BANDS * ROWS, seed=1)
        sketch.update_batch([" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)])
        theirs.append(sketch)
    true, our_error, their_error = [], [], []
    for (a, b), exact in brute_jaccard(texts).items():
        if exact > 0.1:
            true.append(exact)
            our_error.append((ours[a] == ours[b]).mean() - exact)
            their_error.append(theirs[a].jaccard(theirs[b]) - exact)
    deviation = np.mean([j * (1 - j) / (BANDS * ROWS) for j in true]) ** 0.5  # of a mean of Bernoulli(J) draws
    assert len(true) >= 30
    assert abs(np.mean(our_error)) < 4 * deviation / len(true) ** 0.5
    assert np.std(our_error) < 1.3 * max(deviation, np.std(their_error))


@settings(deadline=None, max_examples=20)
@given(st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_order(draw):
    texts = [*edited_copies(3, 6, 3), "", "", "Same  text.\n", "same text.", "-- ++", "++ --", "short"]
    order = list(range(len(texts)))
    draw.shuffle(order)
    groups = near_duplicates([texts[i] for i in order], 0.8)
    assert {frozenset(order[i] for i in group) for group in groups} == set(map(frozenset, near_duplicates(texts, 0.8)))
    assert {len(texts) - 5, len(texts) - 4} in near_duplicates(texts, 0.8)  # case and white space


def contents(folder):
    """{path: bytes} of every file below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(tmp_path, rows, name="out"):
    (tmp_path / name).mkdir()
    documents.write(rows, tmp_path / f"{name}-in")
    context = Context(out=tmp_path / name, scratch=tmp_path)
    metrics = dedup(DedupConfig(), context, documents=tmp_path / f"{name}-in")
    return metrics, {row["url"]: row for row in documents.read(tmp_path / name).to_pylist()}


def test_the_stage_keeps_the_best_copy_across_flows(tmp_path):
    text = " ".join(random.Random(5).choices(VOCABULARY, k=200))
    near = text.replace(text.split()[90], "changed", 1)
    rows = [
        documents.document("http://a/1", "web", text),
        documents.document("http://b/2", "web", text.upper(), planted="exact_copy"),
        documents.document("http://c/3", "licensed", near, licence="MIT"),
        documents.document("http://d/4", "math", "something else altogether, and only here"),
        documents.drop(documents.document("http://e/5", "web", text), "pii", "pii.card"),
    ]
    metrics, found = run(tmp_path, rows)
    assert {url: row["reason"] for url, row in found.items()} == {
        "http://a/1": "duplicate.near",
        "http://b/2": "duplicate.near",
        "http://c/3": "",
        "http://d/4": "",
        "http://e/5": "pii.card",
    }
    assert found["http://a/1"]["evidence"].startswith("Jaccard 0.9")
    assert "http://c/3" in found["http://a/1"]["evidence"]
    assert metrics["dropped"] == {"duplicate.near": 2}
    assert metrics["planted"] == {"exact_copy": {"planted": 1, "found": 1}}
    group = json.loads((tmp_path / "out" / "groups.jsonl").read_text())
    assert group["kept"] == found["http://c/3"]["id"]
    run(tmp_path, rows[::-1], "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_no_documents_at_all(tmp_path):
    metrics, found = run(tmp_path, [])
    assert metrics["documents"] == 0 and not found
