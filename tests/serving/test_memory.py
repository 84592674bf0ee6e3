"""A server whose keys and values fill their limit: requests that do not fit get 503, and the others go on."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import openai
import pytest
import torch
from tests.serving.conftest import client, listening

from openafm.engine import NativeEngine, TorchEngine
from openafm.engine.native_engine import KEPT, KV_BYTES, missing
from openafm.serving.opening import open_model

native = pytest.mark.skipif(missing() is not None, reason=str(missing()))
MODEL = "toy-recovery"
SCHEMA = {"type": "string", "minLength": 500}
LONG = {"type": "json_schema", "json_schema": {"name": "long", "schema": SCHEMA}}


@pytest.fixture
def opened(run):
    return open_model(run / "recovery")


def page(engine):
    """Bytes of the keys and values of 16 tokens."""
    sequence = engine.model.create()
    before = engine.model.cache_bytes
    engine.model.logits([sequence], [[5]], [None])
    taken = engine.model.cache_bytes - before
    engine.model.release(sequence)
    return int(taken)


def chat(url, words, **options):
    messages = [{"role": "user", "content": "words " * words}]
    asked = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 8, **options}
    return client(url).chat.completions.create(**asked)


@native
def test_an_answer_that_does_not_fit_gets_503_and_the_server_lives(opened):
    opened.engine.limit(20 * page(opened.engine))
    with listening(opened) as url:
        expected = chat(url, 3).choices
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="no memory is left") as caught:
                chat(url, 200, stream=stream)
            assert (caught.value.status_code, caught.value.code) == (503, "out_of_memory")
            assert chat(url, 3).choices == expected
        with pytest.raises(openai.InternalServerError, match="no memory is left"):
            client(url).embeddings.create(model=MODEL, input="words " * 200)
        assert client(url).embeddings.create(model=MODEL, input="words").data
        with pytest.raises(openai.APIError, match="no memory is left"):  # in the middle of its stream
            list(chat(url, 20, max_tokens=600, stream=True, response_format=LONG))
        assert chat(url, 3).choices == expected


@native
def test_what_is_kept_gives_way_to_what_is_made(opened):
    engine = opened.engine
    engine.limit(24 * page(engine))
    alone = [list(engine.generate([5 + i] * 90, max_tokens=8, temperature=0.0)) for i in range(KEPT + 3)]
    assert engine.model.cache_bytes <= 24 * page(engine)
    plain = NativeEngine.load(opened.path)
    assert alone == [list(plain.generate([5 + i] * 90, max_tokens=8, temperature=0.0)) for i in range(KEPT + 3)]


@native
def test_many_at_once_are_right_or_refused(opened):
    opened.engine.limit(40 * page(opened.engine))
    with listening(opened) as url:
        expected = [chat(url, 1 + i % 5).choices[0].message.content for i in range(16)]

        def ask(i):
            try:
                return chat(url, 1 + i % 5).choices[0].message.content
            except openai.InternalServerError as error:
                assert error.code == "out_of_memory"
                return None

        with ThreadPoolExecutor(16) as clients:
            found = list(clients.map(ask, range(16)))
        assert all(text in (wanted, None) for text, wanted in zip(found, expected, strict=True)) and any(found)
        assert [chat(url, 1 + i % 5).choices[0].message.content for i in range(5)] == expected[:5]


@native
def test_a_page_that_was_left_empty_is_not_taken_for_the_one_that_is_written(opened):
    """A step that runs out of memory leaves pages behind; forks of what it left must not write in one another."""
    model, most = opened.engine.model, page(opened.engine)
    first = model.create()
    model.logits([first], [[5] * 20], [None])
    opened.engine.limit(4 * most)
    with pytest.raises(MemoryError):
        model.logits([first], [[6] * 100], [None])
    opened.engine.limit(100 * most)
    fork = model.fork(first)
    model.truncate(fork, 20)
    model.logits([first], [[7]], [None])
    model.logits([fork], [[8]], [None])
    fresh = model.create()
    model.logits([fresh], [[5] * 20 + [7]], [None])
    found, wanted = (model.logits([sequence], [[9]], [None]) for sequence in (first, fresh))
    assert (found == wanted).all()


@native
def test_the_limit_is_the_environments(run, monkeypatch):
    monkeypatch.setenv(KV_BYTES, "1")
    engine = NativeEngine.load(run / "recovery")
    with pytest.raises(MemoryError):
        list(engine.generate([5], max_tokens=1))
    monkeypatch.setenv(KV_BYTES, "-1")
    with pytest.raises(ValueError, match="give a number of bytes"):
        NativeEngine.load(run / "recovery")


def test_torchs_own_error_is_a_503_too(run, monkeypatch):
    opened = replace(open_model(run / "recovery"), engine=TorchEngine.load(run / "recovery"))
    original = opened.engine.model.hidden

    def greedy_for_memory(tokens, *options):
        if tokens.shape[1] > 30:
            torch.empty(1 << 60, dtype=torch.uint8)
        return original(tokens, *options)

    monkeypatch.setattr(opened.engine.model, "hidden", greedy_for_memory)
    with listening(opened) as url:
        with pytest.raises(openai.InternalServerError, match="no memory is left"):
            chat(url, 60)
        assert chat(url, 2).usage.completion_tokens > 0
