"""Tokens to text in whole characters, and stop strings, whatever the pieces."""

from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.engine import TorchEngine
from openafm.serving.answer import Answer, Characters, StopStrings
from openafm.tokenizer import Tokenizer, load
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

TEXT = "some words to learn from, a few of them twice"


@pytest.fixture(scope="module", params=["sentencepiece", "tokenizers"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    """Both kinds; the second a byte-level BPE, whose every non-ASCII character is several tokens."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, train_sentencepiece([TEXT] * 4, 300))
    if request.param == "tokenizers":
        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<pad>", "<bos>", "<eos>", "<|end|>"], initial_alphabet=alphabet
        )
        model.train_from_iterator([TEXT] * 4, trainer)
        model.save(str(folder / "tokenizer.json"))
        config = folder / "tokenizer_config.json"
        config.write_text(config.read_text().replace('"kind": "sentencepiece"', '"kind": "tokenizers"'))
    return load(folder)


def pieces(tokenizer, tokens):
    characters = Characters(tokenizer)
    return [characters.push(token) for token in tokens] + [characters.rest()]


@pytest.mark.parametrize("text", ["naïve – 東京 👩‍👩‍👧 é", "some  words\n\tof them ", "\u2581x", "a\ufffdb"])
def test_characters_come_whole(tokenizer, text):
    tokens = tokenizer.encode(text)
    told = pieces(tokenizer, tokens)
    assert "".join(told) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in told) and len(tokens) > 3


@settings(deadline=None)
@given(st.data())
def test_pieces_are_the_decoded_tokens(tokenizer, data):
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


def cut(text, stops):
    """The text before the stop string that is complete first: the definition, tried character by character."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - len(max(complete, key=len))], True
    return text, False


def split(text, marks):
    ends = sorted({mark % (len(text) + 1) for mark in marks} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@settings(deadline=None)
@given(
    st.text("ab\n", max_size=20),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 20)),
)
def test_a_stop_string_cuts_wherever_the_pieces_break(text, stops, marks):
    strings, said = StopStrings(stops), ""
    for piece in split(text, marks):
        said += strings.push(piece)
        assert cut(text, stops)[0].startswith(said)  # nothing is ever shown that must be taken back
        if strings.met:
            break
    said += strings.rest()
    assert (said, strings.met) == cut(text, stops)


@settings(deadline=None)
@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_begin_a_stop_string(text, stop):
    strings = StopStrings([stop])
    said = strings.push(text)
    if not strings.met:
        assert stop.startswith(text[len(said) :])


@pytest.fixture(scope="module")
def engine(run):
    return TorchEngine.load(run / "sft")


def made(engine, **options):
    options = {"max_tokens": 40, "temperature": 1.5, "seed": 3, **options}
    answer = Answer(engine.tokenizer, engine.tokenizer.render_chat([{"role": "user", "content": "words"}]), **options)
    return list(answer.by(engine)), answer


def test_an_answer_stops_at_a_string_that_spans_tokens(engine):
    told, whole = made(engine)
    text = "".join(told)
    assert len(told) == whole.tokens + 1  # a piece a token and the rest
    pairs = [a[-1:] + b[:1] for a, b in pairwise(told)]
    stop = next(pair for pair in pairs if len(pair) == 2 and not any(pair in piece for piece in told))
    cut_short, answer = made(engine, stop=["never said", stop])
    assert "".join(cut_short) == text[: text.index(stop)]
    assert (answer.finish, whole.finish) == ("stop", "length") and answer.tokens < whole.tokens


def test_an_answer_ends_with_the_models_stop_token(engine):
    for seed in range(60):
        told, answer = made(engine, seed=seed, max_tokens=30, stop=["\n\n"])
        if answer.finish == "stop":
            break
    assert answer.tokens < 30 and "<|end|>" not in "".join(told)


def test_an_answer_is_cut_by_its_time(engine):
    whole, _ = made(engine)
    answer = Answer(
        engine.tokenizer, engine.tokenizer.render_chat([{"role": "user", "content": "words"}]),
        max_tokens=40, temperature=1.5, seed=3, stop=["".join(whole)[:2] + "never"],
    )  # fmt: skip
    told = []
    for piece in answer.by(engine):
        told.append(piece)
        if answer.tokens == 10:
            answer._until = 0.0
    assert (answer.tokens, answer.finish) == (10, "length") and "".join(whole).startswith(
        "".join(told).rstrip("\ufffd")
    )
