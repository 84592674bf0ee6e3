"""Vectors of texts over HTTP: the mean of the model's last hidden states, whatever else is being made."""

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest
import torch
from tests.serving.conftest import client, listening

from openafm.engine import NativeEngine, TorchEngine
from openafm.engine.native_engine import missing
from openafm.serving.opening import open_model
from openafm.serving.server import Limits

BASE, SUMMARY = "toy-recovery", "toy-recovery:summary"
TEXTS = ["some words", "a few of them, twice over and more " * 30, "x"]


@pytest.fixture(scope="module", params=["native", "torch"])
def url(run, request):
    opened = open_model(run / "recovery")
    if request.param == "torch":
        opened = replace(opened, engine=TorchEngine.load(run / "recovery"))
    elif missing():
        pytest.skip(str(missing()))
    else:
        opened = replace(opened, engine=NativeEngine.load(run / "recovery", activations="float32", kv="float32"))
    with listening(opened) as address:
        yield address


@pytest.fixture(scope="module")
def expected(run):
    engine = TorchEngine.load(run / "recovery")

    def vectors(texts, adapter=None):
        model, tokenizer = engine.use(adapter), engine.tokenizer
        for text in texts:
            states = model.hidden(torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]]))[0, 1:]
            mean = states.mean(0).detach()
            yield (mean / mean.norm()).numpy()

    return vectors


def told(made):
    return [np.array(data.embedding) for data in made.data]


@pytest.mark.parametrize(("model", "adapter"), [(BASE, None), (SUMMARY, "summary")])
def test_a_vector_is_the_mean_of_the_last_hidden_states(url, expected, model, adapter):
    made = client(url).embeddings.create(model=model, input=TEXTS)  # base64 beneath
    assert [data.index for data in made.data] == [0, 1, 2] and made.model == model
    for vector, wanted in zip(told(made), expected(TEXTS, adapter), strict=True):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(vector, wanted, atol=2e-3)
    assert made.usage.prompt_tokens == made.usage.total_tokens > 200


def test_floats_and_base64_are_the_same(url):
    body = {"model": BASE, "input": TEXTS[0]}
    plain = httpx.post(f"{url}/v1/embeddings", json=body).json()["data"][0]["embedding"]
    coded = httpx.post(f"{url}/v1/embeddings", json=body | {"encoding_format": "base64"}).json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), np.array(plain, np.float32))


def test_texts_are_read_beside_answers(url):
    alone = told(client(url).embeddings.create(model=BASE, input=TEXTS))
    chat = {"model": BASE, "messages": [{"role": "user", "content": "words"}], "max_tokens": 60, "seed": 3}
    answer = client(url).chat.completions.create(**chat).choices[0].message.content
    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(client(url).chat.completions.create, **chat) for _ in range(2)]
        readings = [clients.submit(client(url).embeddings.create, model=BASE, input=TEXTS) for _ in range(2)]
        for reading in readings:
            np.testing.assert_allclose(told(reading.result()), alone, atol=1e-6)
        assert all(made.result().choices[0].message.content == answer for made in answers)


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"input": [[1, 2]]}, "input", "give texts"),
        ({"input": [1, 2]}, "input", "give texts"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ["a", ""]}, "input", "no vector"),
        ({"input": ["a", "a " * 5000]}, "input", "text 1 has"),
        ({"input": ["a"] * 2049}, "input", "at most 2048"),
        ({"dimensions": 8}, "dimensions", "leave it out"),
        ({"encoding_format": "int8"}, "encoding_format", "'base64'"),
        ({"model": "gpt"}, "model", "no model called"),
    ],
)
def test_a_bad_request_is_told_by_name(url, change, param, message):
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client(url).post("/embeddings", body={"model": BASE, "input": "a", **change}, cast_to=object)
    assert caught.value.param == param and caught.value.status_code in (400, 404)


def test_reading_has_its_time(run):
    with (
        listening(open_model(run / "recovery"), limits=Limits(seconds=-1)) as address,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client(address).embeddings.create(model=BASE, input="a")
    assert caught.value.code == "timeout"
