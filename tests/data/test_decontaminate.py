import json
import random
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import documents
from openafm.data.decontaminate import DecontaminateConfig, NgramIndex, add_item, decontaminate
from openafm.data.ngram_index import Source, normalise, without_markup, words
from openafm.data.precision import evidence_hash
from openafm.stage import Context

QUESTION = "Janet has 16 ducks. How many eggs do they lay per day, if each duck lays three and she eats two?"
SHORT = "Which planet is largest?"
FOREIGN = ["Où naît le café crème de l'été ?", "Wie groß ist die Straße nach ﬁnal?"]
PROSE = [f"prose{i}" for i in range(50)]


def index_of(*texts: str, **options: int) -> NgramIndex:
    index = NgramIndex(**options)
    for number, text in enumerate(texts):
        index.add("bench", str(number), text)
    return index


def found(index: NgramIndex, text: str) -> list[str]:
    return [index.ngram(number) for number in index.find([text])[0]]


@settings(deadline=None, max_examples=200)
@given(
    question=st.sampled_from(
        [QUESTION, SHORT, "Où naît le café crème de l'été ?", "Wie groß ist die Straße nach ﬁnal?"]
    ),
    joints=st.lists(
        st.sampled_from([" ", "\n\n", "\t", "\u00a0", " - ", "... ", "_", "”, “", "&", " \u2014 "]), min_size=1
    ),
    change=st.sampled_from([str, str.upper, str.lower, str.swapcase, str.title]),
)
def test_items_are_found_through_case_punctuation_and_white_space(question, joints, change):
    words = [part for part in re.split(r"[\W_]+", question) if part]
    spelled = "".join(change(word) + joints[i % len(joints)] for i, word in enumerate(words))
    text = f"Some page says {' '.join(PROSE)}: {spelled} {' '.join(PROSE)}"
    assert found(index_of(question), text)


@settings(deadline=None, max_examples=100)
@given(st.randoms(use_true_random=False))
def test_the_same_hits_as_sets_of_word_tuples(draw):
    vocabulary = ["alpha", "beta", "gammas", "delta", "epsilon", "zetas"]
    items = [" ".join(draw.choices(vocabulary, k=draw.randint(3, 9))) for _ in range(6)]
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(0, 400))) for _ in range(3)]
    index = index_of(*items, min_n=3, max_n=5)
    expected = []
    for text in texts:
        words = text.split()
        hits = set()
        for item in map(str.split, items):
            n = min(5, len(item))
            if n >= 3:
                grams = {tuple(item[i : i + n]) for i in range(len(item) - n + 1)}
                hits |= grams & {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
        expected.append({" ".join(hit) for hit in hits})
    assert [{index.ngram(number) for number in hits} for hits in index.find(texts)] == expected


def test_what_is_not_an_item_stays():
    index = index_of(QUESTION, SHORT)
    assert not found(index, "Janet has 16 ducks. How many geese do they see per day, if each duck sees three?")
    assert not found(index, "As to which planet is larger: Jupiter. The twhich planet is largest. Is 7 prime? Yes.")
    assert not found(index, "")
    assert found(index, "WHICH PLANET\nIS LARGEST") == ["which planet is largest"]
    assert index.add("bench", "3", "prime?") == 0  # one word
    assert index.add("bench", "4", "a b c d") == 0  # four letters


def test_short_items_are_found_as_lines_alone():
    index = index_of("Who wrote Hamlet?", "Is 7 prime?", "no")
    assert len(index) == 2
    for line in (
        "Who wrote Hamlet?",
        "  q: WHO wrote “Hamlet”",
        "12. who wrote hamlet",
        "Question 3: Who wrote Hamlet?",
    ):
        assert found(index, f"A quiz.\n{line}\nShakespeare did.") == ["who wrote hamlet"]
        assert not found(index, f"A quiz. {line} Shakespeare did.")
    assert not found(index, "Tell me who wrote Hamlet?\nHe is 7. Prime!")


UNSEEN = (
    "\u00ad",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u2060",
    "\ufe0f",
    "<b>",
    "</b>",
    "<br/>",
    "&shy;",
    "&nbsp;",
    "&#8203;",
)


@settings(deadline=None, max_examples=200)
@given(draw=st.randoms(use_true_random=False))
def test_items_are_found_through_unicode_and_markup_within_them(draw):
    item = draw.choice([QUESTION, SHORT, *FOREIGN, "地球から月までの距離はどれくらいですか"])
    decomposed = unicodedata.normalize(draw.choice(["NFC", "NFD", "NFKC", "NFKD"]), item)
    full = decomposed.translate({n: n + 0xFEE0 for n in range(0x30, 0x3A)})  # full-width digits
    text = "".join(c + draw.choice(UNSEEN) if draw.random() < 0.2 else c for c in full)
    page = f"{' '.join(PROSE)} <p class='x'>{text}</p> {' '.join(PROSE)}"
    assert found(index_of(item), page)
    assert not found(index_of(item), " ".join(PROSE))


def test_texts_without_words_are_nobodys_neighbours():
    assert index_of(SHORT).find(["", SHORT, "", "-", SHORT, ""]) == [[], [0], [], [], [0], []]


def test_entities_are_resolved_where_nothing_else_is_markup_and_only_whole_ones():
    assert found(index_of(FOREIGN[0]), "O&ugrave; na&icirc;t le caf&eacute; cr&egrave;me de l'&eacute;t&eacute; ?")
    assert without_markup("<b>R&notes of [both](x)") == " R&notes of [both "


def test_every_n_from_4_to_13_is_afm_taken_literally():
    index, listed = index_of(QUESTION, every=True), words(QUESTION)
    assert len(index) == sum(len(listed) - n + 1 for n in range(4, 14)) - len(duplicated(listed))
    hits = found(index, f"It says: {' '.join(listed[5:11])}! Or so.")
    assert set(hits) == {" ".join(listed[i : i + n]) for n in range(4, 7) for i in range(5, 12 - n)}
    with pytest.raises(ValueError, match="min_n 5 and max_n 4"):
        NgramIndex(5, 4)


def duplicated(listed: list[str]) -> list[str]:
    """N-grams that are too short to tell anything, which are left out."""
    grams = [listed[i : i + n] for n in range(4, 14) for i in range(len(listed) - n + 1)]
    return [" ".join(gram) for gram in grams if len("".join(gram)) < max(8, 2 * len(gram))]


def test_long_items_are_found_by_any_part_of_13_words():
    index = index_of(QUESTION)
    listed = QUESTION.split()
    assert len(index) == len(listed) - 12
    assert found(index, " ".join(listed[3:16])) and not found(index, " ".join(listed[3:15]))


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_words_are_letters_and_digits_alone(text):
    listed = words(text)
    assert not listed or "".join(listed).isalnum()
    assert words(f" -{text}_\n") == listed and words(text.upper().casefold()) == words(
        text.casefold().upper().casefold()
    )
    assert not re.search("[\u00ad\u200b\ufeff\u0301]", normalise(text))


def corpus() -> list[documents.Row]:
    draw = random.Random(0)
    rows = []
    for number, flow in enumerate(documents.FLOWS * 4):
        text = " ".join(draw.choices(PROSE, k=80)) + " " + str(number)
        if number < 5:
            text += "\n\n" + QUESTION.upper().replace(" ", "  ") + "\n" + text
        rows.append(documents.document(f"http://x/{number}", flow, text, planted="benchmark" if number < 5 else None))
    return rows


def contents(folder):
    """{path: bytes} of every file below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(tmp_path, rows, items, name="out", **options):
    (tmp_path / name).mkdir()
    (tmp_path / "benchmarks").mkdir(exist_ok=True)
    (tmp_path / "benchmarks" / "ducks.jsonl").write_text("\n".join(map(json.dumps, items)))
    documents.write(rows, tmp_path / f"{name}-in")
    context = Context(out=tmp_path / name, scratch=tmp_path)
    config = DecontaminateConfig(**options)
    metrics = decontaminate(config, context, documents=tmp_path / f"{name}-in", sources=tmp_path)
    ledger = [json.loads(line) for line in (tmp_path / name / "ledger.jsonl").read_text().splitlines()]
    return metrics, documents.read(tmp_path / name).to_pylist(), ledger


def test_the_stage_drops_documents_of_every_flow_and_says_why(tmp_path):
    items = [{"id": "q1", "text": QUESTION}, {"id": "q2", "text": "prose1"}]
    metrics, rows, ledger = run(tmp_path, corpus(), items)
    dropped = [row for row in rows if row["verdict"] == "drop"]
    assert sorted(row["flow"] for row in dropped) == sorted(documents.FLOWS)
    assert {row["reason"] for row in dropped} == {"benchmark.ducks"}
    assert all(row["planted"] == "benchmark" and "item q1 of ducks" in row["evidence"] for row in dropped)
    assert metrics["planted"] == {"benchmark": {"planted": 5, "caught": 5, "gone": 0, "missed": 0, "recall": 1.0}}
    assert metrics["benchmarks"] == {"ducks": {"items": 2, "ngrams": 9, "too_short": 1}}
    first = " ".join(words(QUESTION)[:13])
    assert {row["evidence"] for row in dropped} == {f'"{first}" of item q1 of ducks, and 8 more n-grams'}
    assert metrics["headline"] == "5 documents hold one of 9 benchmark n-grams"
    counted = ("ngrams", "ngrams_found", "common_phrases", "documents_with_common_phrases_only")
    assert [metrics[name] for name in counted] == [9, 9, 0, 0] and metrics["dropped"] == {"benchmark.ducks": 5}
    assert metrics["rule"] == (
        "n = min(13, words of the item), at least 4; shorter items only as lines by themselves; "
        "n-grams in 1000 documents or more drop none"
    )
    assert {entry["id"] for entry in ledger} == {row["id"] for row in dropped}
    assert all(entry["ngram"] in " ".join(re.findall(r"\w+", QUESTION.lower())) for entry in ledger)
    run(tmp_path, corpus()[::-1], items, "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_common_phrases_drop_nothing(tmp_path):
    metrics, rows, ledger = run(tmp_path, corpus(), [{"id": "q1", "text": QUESTION}], common_count=5)
    assert all(row["verdict"] == "keep" for row in rows)
    assert ledger and all(entry["common"] and entry["documents"] == 5 for entry in ledger)
    assert metrics["common_phrases"] == len({entry["ngram"] for entry in ledger}) == 9


def test_hits_in_real_documents_are_written_for_reading(tmp_path):
    question = documents.document("http://x/real", "math", f"{' '.join(PROSE)} {SHORT}")
    other = documents.document("http://x/other", "web", " ".join(PROSE))
    planted = documents.document("http://x/planted", "web", f"{SHORT} {' '.join(PROSE)}", planted="benchmark")
    metrics, _, _ = run(tmp_path, [question, other, planted], [{"id": "q1", "text": SHORT}], match="every")
    (hit,) = map(json.loads, (tmp_path / "out" / "audit.jsonl").read_text().splitlines())
    assert (hit["reason"], hit["url"], hit["flow"]) == ("benchmark.ducks", "http://x/real", "math")
    assert hit["evidence"] == '"which planet is largest" of item q1 of ducks'
    assert hit["hash"] == evidence_hash("which planet is largest")
    assert metrics["precision_on_real"]["benchmark.ducks"]["hits"] == 1 and metrics["dropped"] == {"benchmark.ducks": 2}
    assert metrics["rule"].startswith("n up to 13, at least 4; ")


def test_a_document_of_common_phrases_alone_says_so_and_one_that_tells_goes(tmp_path):
    told = "Name the longest river of all that end in any lake."
    rows = [
        documents.document(f"http://x/{n}", "web", f"{SHORT} {PROSE[n]} {told if n == 0 else ''}") for n in range(3)
    ]
    items = [{"id": "q1", "text": SHORT}, {"id": "q2", "text": told}]
    metrics, found, ledger = run(tmp_path, rows, items, common_count=3)
    by_url = {row["url"]: row for row in found}
    assert by_url["http://x/0"]["evidence"] == f'"{" ".join(words(told))}" of item q2 of ducks'
    assert by_url["http://x/1"]["verdicts"][-1]["evidence"] == 'common phrases only, as "which planet is largest"'
    assert metrics["documents_with_common_phrases_only"] == 2 and metrics["common_phrases"] == 1
    assert sorted((line["item"], line["documents"], line["common"]) for line in ledger) == [
        *[("q1", 3, True)] * 3, ("q2", 1, False),
    ]  # fmt: skip


def test_what_is_indexed_of_an_item():
    """Its questions, or else its text; of its answers those of 13 words or more, of which chance makes no copy."""
    index, long = NgramIndex(), " ".join(PROSE[:13])
    item = {"id": 7, "text": "not looked for where there are questions", "answers": [" ".join(PROSE[20:32]), long]}
    assert add_item(index, "bench", item | {"questions": [SHORT, "What is the other question here?"]}) == 3
    assert found(index, long) == [long] and not found(index, " ".join(PROSE[20:32]))
    assert not found(index, item["text"]) and found(index, SHORT)
    assert add_item(index, "bench", item) == 2 and found(index, item["text"])
    assert index.sources(0) == [Source("bench", "7")]
    with pytest.raises(ValueError, match="text must be"):
        add_item(index, "bench", {"id": 1, "text": 3})


@pytest.mark.parametrize(
    ("text", "many"),
    [
        ("ab cd ef gh", 1), ("ab cd ef g", 0),  # 8 letters and 7
        ("a b c defgh ij", 1), ("a b c defgh i", 0),  # two letters a word, and fewer
        ("word", 0), ("longword", 0), ("longword word", 1),  # one word is never enough
    ],
)  # fmt: skip
def test_what_is_too_short_to_tell(text, many):
    assert NgramIndex().add("bench", "1", text) == many
    assert len(index_of(text)) == many


def test_an_ngram_of_several_items_is_one_with_several_sources():
    index = NgramIndex()
    for benchmark, item, text in [("a", "1", QUESTION), ("b", "2", SHORT), ("a", "3", QUESTION), ("b", "4", SHORT)]:
        index.add(benchmark, item, text)
    grams = len(words(QUESTION)) - 12
    assert len(index) == grams + 1
    assert index.sources(0) == [Source("a", "1"), Source("a", "3")]
    assert index.sources(grams) == [Source("b", "2"), Source("b", "4")]
    assert [index.ngram(number) for number in range(len(index))] == [
        *(" ".join(words(QUESTION)[at : at + 13]) for at in range(grams)), " ".join(words(SHORT)),
    ]  # fmt: skip
    assert index.find([SHORT, "", f"{QUESTION} {SHORT}"]) == [[grams], [], list(range(grams + 1))]
    assert index.add("c", "5", "One more, which comes later") == 1  # what was built is built anew
    assert found(index, "one more which comes later") == ["one more which comes later"]


def test_broken_benchmarks_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"ducks\.jsonl:2"):
        run(tmp_path, corpus(), [{"id": "q1", "text": QUESTION}, {"id": "q2"}])
    (tmp_path / "benchmarks" / "ducks.jsonl").unlink()
    with pytest.raises(ValueError, match="holds no benchmark"):
        decontaminate(
            DecontaminateConfig(), Context(tmp_path, tmp_path), documents=tmp_path / "out-in", sources=tmp_path
        )
