"""A planted paraphrase of a benchmark's item is found by meaning; the same question with other numbers is not one."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from openafm.data.meanings import Meanings, asked, numbers, questions
from openafm.data.screen import ScreenConfig, screen
from openafm.stage import Context

MEANINGS = [
    "calculate work out compute", "factorial", "leap", "year", "is was", "area size", "circle disc", "president head",
    "country state", "name tell", "who", "radius", "with of whose", "the a", "[UNK]",
]  # fmt: skip
"""Words of a line mean the same to the encoder below."""
ITEMS = [
    {"id": "quiz/0", "text": "Calculate the area of a circle with radius 7"},
    {"id": "quiz/1", "text": "Tell the president of the country"},
    {"id": "code/2", "text": 'def f(n):\n    """Compute the factorial of n\n    >>> f(5)\n    120\n    """\n'},
]
PARAPHRASE = "Work out a size of the disc whose radius is seven"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Benchmarks and an encoder without layers: a text's vector is the mean of its words', and synonyms share one."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (folder / "words").mkdir()
    encoder = folder / "models" / "embedder"
    encoder.mkdir(parents=True)
    words = {word: line for line, listed in enumerate(MEANINGS) for word in listed.split()}
    ids = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(encoder / "tokenizer.json"))
    width = len(MEANINGS)
    vectors = torch.eye(width)[list(words.values())]
    vectors[ids["[UNK]"]] = 1 / width  # what LayerNorm maps to zero: an unknown word says nothing
    weights = {
        "embeddings.word_embeddings.weight": vectors,
        "embeddings.position_embeddings.weight": torch.zeros(64, width),
        "embeddings.token_type_embeddings.weight": torch.zeros(2, width),
        "embeddings.LayerNorm.weight": torch.ones(width),
        "embeddings.LayerNorm.bias": torch.zeros(width),
    }
    save_file(weights, encoder / "model.safetensors")
    config = {"model_type": "bert", "hidden_act": "gelu", "num_hidden_layers": 0, "num_attention_heads": 1}
    (encoder / "config.json").write_text(json.dumps(config))
    return folder


def example(number, text):
    turn = [{"role": "user", "content": text}]
    return {"id": f"e-{number}", "task": "t", "messages": turn, "answer": "An answer.", "check": None,
            "origin": "synthetic", "lineage": "writer/t/k"}  # fmt: skip


def test_a_planted_paraphrase_is_rejected_and_listed(sources, tmp_path):
    texts = {
        PARAPHRASE: "benchmark_meaning.quiz",
        "Work out a size of the disc whose radius is eight": "",
        "Name the head of a state": "benchmark_meaning.quiz",
        "Tools: add(a, b)\nName the head of a state": "benchmark_meaning.quiz",
        "Work out a factorial of n": "benchmark_meaning.quiz",
        "Who is it?": "",
    }
    part, out = tmp_path / "part", tmp_path / "out"
    part.mkdir(), out.mkdir()
    rows = [example(number, text) for number, text in enumerate(texts)]
    (part / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = screen(ScreenConfig(listed=4), Context(out, tmp_path), parts={"mine": part}, sources=sources)
    kept = [json.loads(line)["id"] for line in (out / "mine" / "examples.jsonl").read_text().splitlines()]
    rejected = {row["id"]: row for row in map(json.loads, (out / "mine" / "rejected.jsonl").read_text().splitlines())}
    assert kept == [f"e-{n}" for n, reason in enumerate(texts.values()) if not reason]
    assert {key: row["reason"] for key, row in rejected.items()} == {
        f"e-{n}": reason for n, reason in enumerate(texts.values()) if reason
    }
    assert "to quiz/0: Calculate the area of a circle with radius 7" in rejected["e-0"]["evidence"]
    listed = [json.loads(line) for line in (out / "near_benchmarks.jsonl").read_text().splitlines()]
    assert [row["rejected"] for row in listed] == [True, True, True, False]  # the tool's request is a known question
    assert {row["asked"] for row in listed[:3]} >= {PARAPHRASE, "Name the head of a state"}
    assert listed[3]["text"] == ITEMS[0]["text"] and not listed[3]["same_numbers"]
    assert metrics["meanings"] == {"compared": 5, "items": 4, "near": 3}


def test_without_an_encoder_nothing_is_compared_and_that_is_said(sources, tmp_path):
    bare = tmp_path / "bare"
    for name in ("benchmarks", "words"):
        (bare / name).mkdir(parents=True)
    (bare / "benchmarks" / "quiz.jsonl").write_text((sources / "benchmarks" / "quiz.jsonl").read_text())
    part, out = tmp_path / "part", tmp_path / "out"
    part.mkdir(), out.mkdir()
    (part / "examples.jsonl").write_text(json.dumps(example(0, PARAPHRASE)) + "\n")
    metrics = screen(ScreenConfig(), Context(out, tmp_path), parts={"mine": part}, sources=bare)
    assert metrics["meanings"]["compared"] == 0 and "no sentence encoder" in metrics["meanings"]["because"]
    assert (out / "mine" / "examples.jsonl").read_text() and not (out / "near_benchmarks.jsonl").exists()


def test_the_nearest_item_is_that_of_a_plain_search(sources):
    meanings = Meanings.open(sources)
    texts = [PARAPHRASE, "who is president", "the year"]
    vectors = meanings.embedder.embed([*texts, *(text for _, _, text in meanings.items)])
    for place, (near, same) in enumerate(meanings.nearest(texts)):
        cosines = [float(vectors[place] @ other) for other in vectors[len(texts) :]]
        assert near.similarity == pytest.approx(max(cosines), abs=1e-4)
        alike = [
            c for c, (_, _, text) in zip(cosines, meanings.items, strict=True) if numbers(text) == numbers(texts[place])
        ]
        assert same is not None and same.similarity == pytest.approx(max(alike), abs=1e-4)


def test_code_is_compared_by_its_docstring_too():
    assert questions(ITEMS[2])[1] == "Compute the factorial of n"
    assert questions({"id": "x", "text": "t", "questions": ["a", "b"]}) == ["a", "b"]


def test_what_is_asked_is_every_turn_of_people():
    row = {"messages": [{"role": "system", "content": "Tools: []"}, {"role": "user", "content": "Tools: add\nOne?"},
                        {"role": "assistant", "content": "1"}, {"role": "user", "content": "Two?"}]}  # fmt: skip
    assert asked(row) == ["One?", "Two?"]
    assert asked({"text": "long", "questions": [{"question": "Code?", "answer": "1"}]}) == ["Code?"]


@given(st.lists(st.integers(0, 10**6), max_size=5), st.randoms())
def test_numbers_are_the_same_in_any_order_and_spelling(values, rng):
    shuffled = rng.sample(values, len(values))
    spelled = {2: "two", 7: "Seven", 12: "twelve"}
    one = "; ".join(f"word {value:,}" for value in values)
    other = " and ".join(spelled.get(value, str(value)) for value in shuffled)
    assert numbers(one) == numbers(other) and len(numbers(one)) == len(values)
