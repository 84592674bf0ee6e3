"""Keys and values in int8: how far they are from float16, on every instruction set, and that sequences share them."""

import numpy as np
import pytest
from tests.engine.random_models import TEXT, distance, divergence

from openafm.engine import NativeEngine
from openafm.engine.native_engine import kernels, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.mark.parametrize("name", kernels())
def test_int8_stays_near_float16(package, name):
    exact, halves, bytes_, portable = (
        NativeEngine.load(package, kernels=kernels, threads=1, activations="float32", kv=kv).logits(TEXT, "notes")
        for kernels, kv in ((name, "float32"), (name, "float16"), (name, "int8"), ("portable", "int8"))
    )
    assert divergence(exact, halves) < 1e-6
    assert 0 < divergence(halves, bytes_) < 1e-3
    assert distance(bytes_, portable) < 1e-4


def test_one_token_is_off_by_half_a_step(package):
    """Attention returns its value then: the int8 form is off by at most half of its largest part's 127th."""
    exact, bytes_ = (
        NativeEngine.load(package, threads=1, activations="float32", kv=kv).logits([7]) for kv in ("float32", "int8")
    )
    assert 0 < distance(bytes_, exact) < 1 / 127


def test_forks_share_int8_pages_and_copy_what_they_write(package):
    engine = NativeEngine.load(package, threads=2, kv="int8")
    model, whole = engine.model, engine.logits(TEXT)
    first = model.create()
    model.logits([first], [TEXT[:40]], [None])
    used = model.cache_bytes
    second = model.fork(first)
    assert model.cache_bytes == used  # three pages, once
    model.logits([first], [[9] * 4], [None])
    assert model.cache_bytes == used * 4 // 3  # the page that both had begun is there twice
    assert np.array_equal(model.logits([second], [TEXT[40:]], [None])[0], whole[-1])
    model.truncate(second, 11)
    assert np.array_equal(model.logits([second], [TEXT[11:50]], [None])[0], whole[49])
    halves = NativeEngine.load(package, threads=1).model
    halves.logits([halves.create()], [TEXT[:40]], [None])
    assert 0.5 < used / halves.cache_bytes < 0.7  # at 16 numbers a head the scales are an eighth


def test_prompts_of_a_batch_share_their_beginning(package, monkeypatch):
    engine = NativeEngine.load(package, threads=2, kv="int8")
    computed, model = [], engine.model

    class Watched:
        """Notes how much of a prompt each step computes: the last feed, where it has no sampler."""

        def __getattr__(self, name):
            return getattr(model, name)

        def choose(self, sequences, feeds, adapters, samplers, masks):
            computed.extend(map(len, feeds[len(samplers) :]))
            return model.choose(sequences, feeds, adapters, samplers, masks)

    monkeypatch.setattr(engine, "model", Watched())
    prompts = [[*TEXT[:40], 5], [*TEXT[:40], 6, 7], [*TEXT[:20], 8]]
    together = engine.batch(prompts, max_tokens=6, temperature=0.0)
    assert computed == [40, 1]  # and the last token of each with its first choice
    alone = [
        NativeEngine.load(package, threads=1, kv="int8").batch([p], max_tokens=6, temperature=0.0) for p in prompts
    ]
    assert together == [answer for (answer,) in alone]


def test_other_types_are_refused(package, monkeypatch):
    with pytest.raises(ValueError, match="float32, float16 or int8"):
        NativeEngine.load(package, kv="int4")
    monkeypatch.setenv("OPENAFM_KV", "int8")
    by_name, told = NativeEngine.load(package, threads=1), NativeEngine.load(package, threads=1, kv="int8")
    assert np.array_equal(by_name.logits(TEXT), told.logits(TEXT))
