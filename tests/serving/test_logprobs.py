"""Log-probabilities over HTTP: the model's own, the same from both engines, in whole answers and in streams."""

import math

import numpy as np
import openai
import pytest
import torch
from tests.serving.conftest import client, listening

from openafm.engine import NativeEngine, TorchEngine
from openafm.engine.native_engine import missing
from openafm.sampling.endpoint import EndpointSampler
from openafm.sampling.sampler import EngineSampler, TorchSampler
from openafm.serving.logprobs import Teller
from openafm.serving.opening import Opened

native = pytest.mark.skipif(missing() is not None, reason=str(missing()))
WORDS = [{"role": "user", "content": "words"}]
ASKED = {"model": "toy", "max_tokens": 30, "temperature": 1.3, "seed": 3}


def engines(run):
    if missing() is None:
        yield NativeEngine.load(run / "recovery", activations="float32", kv="float32")
    yield TorchEngine.load(run / "recovery")


@pytest.fixture(scope="module", params=["native", "torch"])
def served(run, request):
    if request.param == "native" and missing():
        pytest.skip(str(missing()))
    folder = run / "recovery"
    made = {"native": lambda: NativeEngine.load(folder, activations="float32", kv="float32")}
    engine = made.get(request.param, lambda: TorchEngine.load(folder))()
    with listening(Opened(folder, "toy", engine, True)) as url:
        yield engine, url


@pytest.fixture(scope="module")
def reference(run):
    """Torch's log-probabilities `(tokens, vocab)` after each token of a text."""
    model = TorchEngine.load(run / "recovery").use(None)
    return lambda tokens: torch.log_softmax(model(torch.tensor([tokens]))[0].detach().double(), -1).numpy()


def test_a_chats_are_the_models_own_whatever_was_cut_from_them(served, reference):
    engine, url = served
    cuts = {"top_p": 0.9, "presence_penalty": 1.0} if isinstance(engine, NativeEngine) else {}
    made = client(url).chat.completions.create(messages=WORDS, logprobs=True, top_logprobs=5, **ASKED, **cuts)
    content = made.choices[0].logprobs.content
    assert len(content) == made.usage.completion_tokens
    prompt = engine.tokenizer.render_chat(WORDS)
    sampling = {name: ASKED[name] for name in ("max_tokens", "temperature", "seed")}
    answer = list(engine.generate(prompt, **sampling, **cuts))
    for entry, token, row in zip(content, answer, reference([*prompt, *answer])[len(prompt) - 1 : -1], strict=True):
        assert bytes(entry.bytes) == engine.tokenizer.piece(token)
        assert entry.logprob == pytest.approx(row[token], abs=2e-3)
        told = [top.logprob for top in entry.top_logprobs]
        assert told == pytest.approx(np.sort(row)[::-1][:5], abs=2e-3) and told == sorted(told, reverse=True)
        assert bytes(entry.top_logprobs[0].bytes) == engine.tokenizer.piece(int(row.argmax()))


@native
def test_both_engines_tell_the_same(run):
    prompt = [5, 6, 7, 8]
    first, second = (
        list(engine.choices(prompt, max_tokens=20, temperature=0.0, top_logprobs=20)) for engine in engines(run)
    )
    for one, other in zip(first, second, strict=True):
        assert one.token == other.token and one.logprob == pytest.approx(other.logprob, abs=2e-3)
        assert dict(one.likeliest) == pytest.approx(dict(other.likeliest), abs=2e-3) and len(one.likeliest) == 20
    (silent,) = NativeEngine.load(run / "recovery").choices(prompt, max_tokens=1)
    assert silent.likeliest == []


@pytest.mark.parametrize("top", [0, 3])
def test_streams_tell_what_whole_answers_do(served, top):
    _, url = served
    chat = client(url).chat.completions.create
    options = {**ASKED, "messages": WORDS, "logprobs": True, "top_logprobs": top}
    whole = chat(**options).choices[0]
    chunks = [chunk.choices[0] for chunk in chat(stream=True, **options)]
    told = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content]
    assert told == whole.logprobs.content and all(len(entry.top_logprobs) == top for entry in told)
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content


def test_a_text_has_them_in_columns(served):
    _, url = served
    create = client(url).completions.create
    whole = create(prompt="some", logprobs=2, **ASKED).choices[0]
    told = whole.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
    before = ""
    for token, logprob, top, offset in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset, strict=True
    ):
        assert top[token] == logprob and 2 <= len(top) <= 3
        if not any(part.startswith(("bytes:", "<")) for part in (before, token)):
            assert whole.text[offset:].startswith(token)
        before = token
    streamed = [chunk.choices[0].logprobs for chunk in create(prompt="some", logprobs=2, stream=True, **ASKED)]
    for column in ("tokens", "token_logprobs", "text_offset"):
        parts = [value for part in streamed if part for value in getattr(part, column)]
        assert parts == getattr(told, column)


def test_each_of_several_answers_has_its_own(served):
    engine, url = served
    made = client(url).chat.completions.create(messages=WORDS, n=1 + isinstance(engine, NativeEngine), logprobs=True,
                                               **ASKED)  # fmt: skip
    assert sum(len(choice.logprobs.content) for choice in made.choices) == made.usage.completion_tokens


def test_nobody_asked(served):
    _, url = served
    assert client(url).chat.completions.create(messages=WORDS, **ASKED).choices[0].logprobs is None


def test_parts_of_characters_are_named_by_their_bytes(run):
    from openafm.model.generation import Choice

    tokenizer = TorchEngine.load(run / "sft").tokenizer
    tokens = [*tokenizer.encode("é"), *tokenizer.encode("a"), tokenizer.end_of_turn_id]
    told = Teller(tokenizer, chat=False).tell([Choice(token, -1.0) for token in tokens])
    assert told["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "a", "<|end|>"] and told["text_offset"] == [0, 0, 1, 2]
    content = Teller(tokenizer, chat=True).tell([Choice(token, -1.0) for token in tokens])["content"]
    assert [entry["bytes"] for entry in content[:3]] == [[0xC3], [0xA9], [97]]


@pytest.mark.parametrize("prompt", ["some words", WORDS])
def test_the_endpoint_sampler_reads_them(served, prompt):
    engine, url = served
    sampler = EndpointSampler(f"{url}/v1", "toy", concurrency=1)
    ((told,),) = sampler.sample([prompt], max_tokens=20, temperature=0.0)
    ((own,),) = EngineSampler(engine).sample([prompt], max_tokens=20, temperature=0.0)
    assert sampler.logprobs and (told.text, told.finished) == (own.text, own.finished)
    assert told.logprobs == pytest.approx(own.logprobs, abs=2e-3) and all(map(math.isfinite, told.logprobs))


def test_a_prompt_is_scored_by_echo(served, reference):
    engine, url = served
    text = "some words to learn from " * 5
    made = client(url).completions.create(model="toy", prompt=text, max_tokens=0, echo=True, logprobs=2)
    (choice,) = made.choices
    tokens = [engine.tokenizer.bos_id, *engine.tokenizer.encode(text)]
    rows = reference(tokens)
    expected = [row[token] for row, token in zip(rows, tokens[1:], strict=False)]
    assert choice.text == text and choice.logprobs.token_logprobs == pytest.approx(expected, abs=2e-3)
    assert made.usage.prompt_tokens == len(tokens) and made.usage.completion_tokens == 0
    for at, token, top, row in zip(
        choice.logprobs.text_offset, choice.logprobs.tokens, choice.logprobs.top_logprobs, rows, strict=False
    ):
        assert text[at:].startswith(token) and max(top.values()) == pytest.approx(row.max(), abs=2e-3)


def test_the_endpoint_sampler_scores(served, run):
    engine, url = served
    prompts, options = ["some", "a few of"], [" words", " them", "x"]
    found = EndpointSampler(f"{url}/v1", "toy").score(prompts, options)
    own = TorchSampler(TorchEngine.load(run / "recovery").model, engine.tokenizer).score(prompts, options)
    for row, wanted in zip(found, own, strict=True):
        assert row == pytest.approx(wanted, abs=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"echo": True}, "echo goes with max_tokens=0"),
        ({"max_tokens": 0}, "echo goes with max_tokens=0"),
        ({"echo": True, "max_tokens": 0}, "give a prompt and logprobs"),
        ({"echo": True, "max_tokens": 0, "logprobs": 1, "stream": True}, "without stream and n"),
        ({"echo": True, "max_tokens": 0, "logprobs": 1, "prompt": "a " * 5000}, "more tokens than"),
    ],
)
def test_what_is_no_echo_is_refused(served, change, message):
    _, url = served
    with pytest.raises(openai.BadRequestError, match=message):
        client(url).post("/completions", body={"model": "toy", "prompt": "some", **change}, cast_to=object)
