"""The native sampler against a plain account of what each parameter does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.random_models import follow

from openafm.engine import NativeEngine
from openafm.engine.native_engine import missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def model(package):
    return NativeEngine.load(package, threads=1).model


def sampler(**parameters):
    from openafm.engine import _native

    return _native.Sampler(**{"temperature": 1.0, **parameters})


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def expected(logits, *, temperature, top_k, top_p, min_p, prompt, made, presence, frequency, repetition, allowed):
    """The distribution, one step after another, in double precision."""
    logits = logits.astype(np.float64).copy()
    for token in set(prompt) | set(made):
        logits[token] *= 1 / repetition if logits[token] > 0 else repetition
    for token in set(made):
        logits[token] -= presence + frequency * made.count(token)
    logits[~allowed] = -np.inf
    chances = softmax(logits / temperature)
    chances[chances < min_p * chances.max() * (1 - 1e-6)] = 0
    order = np.argsort(-chances, kind="stable")
    if top_k:
        chances[order[top_k:]] = 0
    if top_p < 1:
        reached = np.cumsum(chances[order]) / chances.sum()
        chances[order[int(np.searchsorted(reached, top_p - 1e-7)) + 1 :]] = 0
    return chances / chances.sum()


@given(
    seed=st.integers(0, 10**6), size=st.integers(1, 3000), temperature=st.sampled_from([0.3, 0.8, 1.0, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 5, 200]), top_p=st.sampled_from([1.0, 1.0, 0.2, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.5]), presence=st.sampled_from([0.0, 1.5, -0.5]),
    frequency=st.sampled_from([0.0, 0.7]), repetition=st.sampled_from([1.0, 1.3, 0.8]), masked=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_the_distribution_is_the_references(
    model, seed, size, temperature, top_k, top_p, min_p, presence, frequency, repetition, masked
):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, size).astype(np.float32)
    share = np.repeat(rng.choice([0.0, 0.4, 1.0], -(-size // 32)), 32)[:size]  # words of zeros, of both, of ones
    allowed = rng.random(size) < share if masked else np.ones(size, bool)
    allowed[rng.integers(size)] = True
    mask = np.zeros(-(-size // 32) * 32, np.uint8)
    mask[:size] = allowed
    bits = np.packbits(mask, bitorder="little").view(np.uint32)
    drawn = sampler(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, presence_penalty=presence,
        frequency_penalty=frequency, repetition_penalty=repetition, seed=seed,
    )  # fmt: skip
    prompt = [int(token) for token in rng.integers(size, size=5)]
    drawn.read(prompt)
    made = [] if (presence, frequency, repetition) == (0, 0, 1) else [int(t) for t in rng.integers(size, size=3)]
    for token in made:  # let it make them: only one token allowed
        only = np.zeros(-(-size // 32), np.uint32)
        only[token // 32] = 1 << (token % 32)
        drawn.chances(model, logits, only)
    found = drawn.chances(model, logits, bits if masked else None)
    wanted = expected(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, prompt=prompt, made=made,
        presence=presence, frequency=frequency, repetition=repetition, allowed=allowed,
    )  # fmt: skip
    assert found.sum() == pytest.approx(1, abs=1e-4)
    assert np.abs(found - wanted).sum() < 1e-3


def test_draws_have_the_distribution_and_seeds_fix_them(model, package):
    tokens = [2, 9, 40]
    engine = NativeEngine.load(package, threads=1)
    logits = engine.logits(tokens)[-1]
    for cuts in ({}, {"top_k": 20}, {"top_p": 0.8}):
        chances = sampler(**cuts).chances(engine.model, logits)
        sequence = engine.model.create()
        engine.model.logits([sequence], [tokens[:-1]], [None])
        counts = np.zeros(len(logits))
        again = []
        for seed in range(1500):
            engine.model.truncate(sequence, 2)
            drawn = sampler(seed=seed, **cuts)
            ((token, logprob, _),) = engine.model.choose([sequence], [tokens[-1:]], [None], [drawn])
            counts[token] += 1
            again.append(token)
            assert logprob == pytest.approx(float(np.log(softmax(logits)[token])), abs=1e-3)
        assert not counts[chances == 0].any()
        assert follow(counts, chances, least=5)
        engine.model.truncate(sequence, 2)
        ((token, _, _),) = engine.model.choose([sequence], [tokens[-1:]], [None], [sampler(seed=7, **cuts)])
        assert token == again[7]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5},
     {"min_p": -0.1}, {"repetition_penalty": 0.0}, {"presence_penalty": float("inf")}],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sampler(**wrong)
