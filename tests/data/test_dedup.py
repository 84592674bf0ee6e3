import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import dedup as dedup_module
from openafm.data import documents, linking
from openafm.data.dedup import DedupConfig, dedup, near_duplicates
from openafm.data.minhash import BANDS, ROWS, signatures
from openafm.data.ngrams import shingles, word_hashes, words
from openafm.data.precision import evidence_hash
from openafm.stage import Context

VOCABULARY = [f"word{i}" for i in range(3000)]


def edited_copies(seed: int, originals: int, copies: int, edits: tuple[int, int] = (0, 12)) -> list[str]:
    """Random texts of 60 to 300 words and copies of each with a few words replaced, inserted or cut."""
    draw, texts = random.Random(seed), []
    for _ in range(originals):
        listed = draw.choices(VOCABULARY, k=draw.randint(60, 300))
        texts.append(" ".join(listed))
        for _ in range(copies):
            copy = list(listed)
            for _ in range(draw.randint(*edits)):
                place = draw.randrange(len(copy))
                copy[place : place + draw.randint(0, 2)] = draw.choices(VOCABULARY, k=draw.randint(0, 2))
            texts.append(" ".join(copy))
    draw.shuffle(texts)
    return texts


def grams(text: str) -> set[tuple[str, ...]]:
    listed = text.split()
    return {tuple(listed[i : i + 5]) for i in range(max(1, len(listed) - 4))}


def brute_jaccard(texts: list[str]) -> dict[tuple[int, int], float]:
    """The similarity of each pair of texts."""
    sets = list(map(grams, texts))
    both = itertools.combinations(range(len(texts)), 2)
    return {(a, b): len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in both}


def test_recall_and_precision_against_brute_force():
    texts = edited_copies(1, 60, 5)
    groups = near_duplicates(texts)
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
        listed, sketch = text.split(), datasketch.MinHash(num_perm=BANDS * ROWS, seed=1)
        sketch.update_batch([" ".join(listed[i : i + 5]).encode() for i in range(len(listed) - 4)])
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


def run(tmp_path, rows, name="out", **options):
    for folder in (name, f"{name}-scratch"):
        (tmp_path / folder).mkdir()
    documents.write(rows, tmp_path / f"{name}-in")
    context = Context(out=tmp_path / name, scratch=tmp_path / f"{name}-scratch")
    metrics = dedup(DedupConfig(**options), context, documents=tmp_path / f"{name}-in")
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
    assert found["http://c/3"]["verdicts"][-1]["evidence"] == "the best of 3 copies"
    assert metrics["planted"] == {"exact_copy": {"planted": 1, "found": 1}}
    assert metrics["headline"] == "4 documents, duplicate.near 2"
    assert [metrics[name] for name in ("documents", "groups", "largest_group", "across_flows")] == [4, 1, 3, 1]
    group = json.loads((tmp_path / "out" / "groups.jsonl").read_text())
    dropped = sorted((found["http://a/1"]["id"], found["http://b/2"]["id"]))
    assert group == {"kept": found["http://c/3"]["id"], "dropped": dropped}
    (hit,) = map(json.loads, (tmp_path / "out" / "audit.jsonl").read_text().splitlines())  # the planted one is not real
    assert (hit["reason"], hit["url"], hit["flow"]) == ("duplicate.near", "http://a/1", "web")
    assert hit["evidence"] == found["http://a/1"]["evidence"] and hit["text"] == text[:200]
    assert hit["hash"] == evidence_hash(text, near)
    assert metrics["precision_on_real"]["duplicate.near"]["hits"] == 1
    run(tmp_path, rows[::-1], "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_the_longest_of_equal_standing_is_kept_then_the_one_of_the_smallest_id(tmp_path):
    long, same = edited_copies(8, 2, 0)
    rows = pages([long, long + " end", *[same] * 3], licence="MIT")
    metrics, found = run(tmp_path, rows)
    assert not found["http://a/1"]["reason"] and found["http://a/0"]["reason"] == "duplicate.near"
    equal = sorted((row for url, row in found.items() if url > "http://a/1"), key=lambda row: row["id"])
    assert [row["evidence"] for row in equal] == ["", *[f"the text of {equal[0]['url']}"] * 2]
    assert metrics["dropped"] == {"duplicate.exact": 2, "duplicate.near": 1}
    assert (metrics["groups"], metrics["largest_group"], metrics["across_flows"]) == (2, 3, 0)


def test_planted_copies_are_counted_over_all_parts(tmp_path):
    texts = edited_copies(10, 6, 0)
    metrics, found = run(tmp_path, [*pages(texts), *pages(texts[:5], "b", planted="exact_copy")])
    assert len({row["id"][0] for row in found.values() if row["planted"]}) > 1
    assert metrics["planted"] == {"exact_copy": {"planted": 5, "found": 5}}
    assert "earlier_documents" not in metrics


def test_copies_to_read_are_taken_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(dedup_module, "_AUDITED", 3)
    _, found = run(tmp_path, pages([edited_copies(9, 1, 0)[0]] * 10))
    dropped = [row["url"] for row in sorted(found.values(), key=lambda row: row["id"]) if row["reason"]]
    hits = [json.loads(line)["url"] for line in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    assert sorted(hits) == sorted(dropped[at] for at in (0, 4, 8))


@pytest.mark.parametrize("changed", [{"ngram": 4}, {"bands": 20}])
def test_an_index_of_other_n_grams_is_refused(tmp_path, changed):
    run(tmp_path, pages(edited_copies(5, 2, 0)), "one", index=True)
    told = tmp_path / "one" / "index" / "index.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | changed))
    with pytest.raises(ValueError, match="one: its index is of other n-grams or bands"):
        run(tmp_path, pages(edited_copies(5, 2, 0)), "two", against=[str(tmp_path / "one")])


def test_no_documents_at_all(tmp_path):
    metrics, found = run(tmp_path, [])
    assert metrics["documents"] == 0 and not found
    assert metrics["groups"] == metrics["largest_group"] == metrics["across_flows"] == 0


def pages(texts, host="a", **columns):
    return [documents.document(f"http://{host}/{n}", "web", text, **columns) for n, text in enumerate(texts)]


def test_the_disk_finds_what_memory_finds_in_however_many_pieces(tmp_path, monkeypatch):
    rows = pages(edited_copies(4, 40, 4, edits=(0, 20)))
    by_id = {row["id"]: at for at, row in enumerate(rows)}
    metrics, whole = run(tmp_path, rows)
    groups = [json.loads(line) for line in (tmp_path / "out" / "groups.jsonl").read_text().splitlines()]
    found = {frozenset(by_id[i] for i in (group["kept"], *group["dropped"])) for group in groups}
    assert found == set(map(frozenset, near_duplicates([row["text"] for row in rows], 0.75))) and len(found) > 20
    monkeypatch.setattr(linking, "RANGE_BYTES", 5000)  # many ranges of keys
    monkeypatch.setattr(linking, "_AT_ONCE", 3)
    assert run(tmp_path, rows, "pieces") == (metrics, whole)
    assert contents(tmp_path / "out") == contents(tmp_path / "pieces")
    assert metrics["dropped"].get("duplicate.exact", 0) == sum(
        row["reason"] == "duplicate.exact" for row in whole.values()
    )


def test_a_new_crawl_loses_what_is_in_already_and_the_earlier_one_nothing(tmp_path):
    texts = edited_copies(5, 30, 0)
    near = [text.replace(text.split()[40], "changed", 1) + " and one more" for text in texts]
    first, second, third = texts[:15], [*texts[5:20], *near[:5]], [*texts[18:25], near[19]]
    metrics, _ = run(tmp_path, pages([*first, first[0]], "one"), "one", index=True)
    assert metrics["dropped"] == {"duplicate.exact": 1}
    metrics, found = run(tmp_path, pages(second, "two"), "two", index=True, against=[str(tmp_path / "one")])
    assert metrics["dropped"] == {"duplicate.exact": 10, "duplicate.near": 5}
    assert (metrics["documents"], metrics["earlier_documents"]) == (20, 16)
    assert {url for url, row in found.items() if not row["reason"]} == {f"http://two/{n}" for n in range(10, 15)}
    assert "http://one/5 of an earlier run" in found["http://two/0"]["evidence"]
    groups = [json.loads(line) for line in (tmp_path / "two" / "groups.jsonl").read_text().splitlines()]
    dropped = sorted(row["id"] for row in found.values() if row["reason"])
    assert dropped[0] == min(row["id"] for row in found.values())
    assert sorted(itertools.chain(*(group["dropped"] for group in groups))) == dropped
    earlier = [str(tmp_path / name) for name in ("one", "two")]
    _, found = run(tmp_path, pages(third, "three"), "three", against=earlier)
    assert {url for url, row in found.items() if not row["reason"]} == {f"http://three/{n}" for n in range(2, 7)}
    assert DedupConfig(against=earlier).files()[0].is_file()
    with pytest.raises(ValueError, match="index: true"):
        run(tmp_path, pages(third), "four", against=[str(tmp_path / "three")])


def test_paragraphs_that_stand_in_an_earlier_document_are_cut_from_prose(tmp_path):
    notice = "Subscribe to our letter, and never miss a word of what we write on this site."
    bodies = edited_copies(6, 4, 0)
    rows = pages([f"{body}\n\n{notice.upper() if n % 2 else notice}\n\nShort end." for n, body in enumerate(bodies)])
    rows += [documents.document("http://b/code", "code", f"{bodies[0][:40]}\n\n{notice}")]
    rows += [documents.document("http://b/all", "web", f"A title\n\n{notice}")]
    metrics, found = run(tmp_path, rows, paragraph_words=10)
    holders = sorted(url for url, row in found.items() if notice.casefold() in row["text"].casefold())
    prose = sorted((row for row in found.values() if row["flow"] == "web"), key=lambda row: row["id"])
    for row in prose[1:]:
        if row["url"] == "http://b/all":
            assert row["reason"] == "duplicate.paragraphs"
        else:
            assert row["text"].endswith("Short end.") and notice.casefold() not in row["text"].casefold()
            assert [said["verdict"] for said in row["verdicts"]] == ["redact", "keep"]
            assert row["bytes"] == len(row["text"].encode())
            assert row["verdicts"][0]["evidence"] == "1 of 3 paragraphs stand in other documents"
    assert {prose[0]["url"], "http://b/code"} <= set(holders)
    assert metrics["dropped"].keys() <= {"duplicate.paragraphs"}


def test_paragraphs_of_dropped_copies_stand_in_no_document(tmp_path):
    bodies, notices = edited_copies(11, 24, 0), [" ".join(VOCABULARY[12 * n : 12 * n + 12]) for n in range(12)]
    rows = []
    for number, (notice, body, other) in enumerate(zip(notices, bodies[:12], bodies[12:], strict=True)):
        rows += pages([f"{body}\n\n{notice}"], f"kept{number}", licence="MIT")
        rows += pages([f"{body} end\n\n{notice}"], f"copy{number}")
        rows += pages([f"{other}\n\n{notice}"], f"other{number}", licence="MIT")
    _, found = run(tmp_path, rows, paragraph_words=10)
    for number, notice in enumerate(notices):
        assert found[f"http://copy{number}/0"]["reason"] == "duplicate.near"
        assert sum(notice in found[f"http://{kind}{number}/0"]["text"] for kind in ("kept", "other")) == 1


def test_copies_of_the_first_part_are_found(tmp_path):
    text = edited_copies(12, 1, 0)[0]
    rows = [row for row in pages([text] * 10_000) if row["id"][0] == "0"]
    metrics, _ = run(tmp_path, [rows[0], rows[1] | {"text": text + " end"}])
    assert metrics["dropped"] == {"duplicate.near": 1}
    metrics, _ = run(tmp_path, rows, "many")
    assert 512 < metrics["dropped"]["duplicate.exact"] == len(rows) - 1


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(alphabet=st.sampled_from("aBß_1 .-é京\n\u0301\ud800")), max_size=6))
def test_words_hashed_at_once_are_the_words_of_each_text(texts):
    hashes, offsets = word_hashes(texts)
    listed = [words(text) for text in texts]
    assert np.diff(offsets).tolist() == list(map(len, listed))
    number = dict(zip(itertools.chain(*listed), hashes.tolist(), strict=False))
    assert [number[word] for word in itertools.chain(*listed)] == hashes.tolist()
    assert len(set(number.values())) == len(number)
    found, starts = shingles(texts, 2)
    for at, mine in enumerate(listed):
        sets = {tuple(mine[i : i + 2]) for i in range(max(len(mine) - 1, min(len(mine), 1)))}
        part = found[starts[at] : starts[at + 1]]
        assert len(sets) == len(part) and (np.diff(part.astype(np.int64)) > 0).all()
