"""Speculation changes no answer: greedy ones stay the same, drawn ones keep their distribution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.random_models import SHAPE, TEXT, follow, packed, random_model

from openafm.engine import NativeEngine, open_engine
from openafm.engine.guidance import regex
from openafm.engine.native_engine import kernels, missing
from openafm.engine.speculation import MOST, LookUp
from openafm.model.checkpoint import save_model
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def small(tokenizer, tmp_path_factory):
    """A draft model: one layer, other weights, the same tokenizer."""
    shape = SHAPE.model_copy(update={"n_layers": 1, "d_model": 48})
    return packed(shape, tmp_path_factory.mktemp("small") / "model.afm", tokenizer, (4,))


def answers(engine, prompts, **options):
    return [list(engine.generate(prompt, max_tokens=40, temperature=0.0, **options)) for prompt in prompts]


PROMPTS = [TEXT, TEXT[:7] * 4, [2, 9], [*TEXT[:20], *TEXT[:19]]]


@pytest.mark.parametrize("name", kernels())
def test_greedy_answers_stay_the_same(package, small, name):
    options = {"kernels": name, "threads": 2}
    plain = NativeEngine.load(package, **options)
    for draft in ("lookup", NativeEngine.load(small, **options), NativeEngine.load(package, **options)):
        guessing = NativeEngine.load(package, draft=draft, **options)
        for adapter in (None, "mail"):
            assert answers(guessing, PROMPTS, adapter=adapter) == answers(plain, PROMPTS, adapter=adapter)
    punished = {"repetition_penalty": 1.2, "presence_penalty": 0.3}
    assert answers(guessing, PROMPTS, **punished) == answers(plain, PROMPTS, **punished)


def test_a_draft_ends_with_the_first_token_that_it_is_unsure_of(tokenizer, tmp_path):
    from openafm.engine import _native

    model = random_model(SHAPE)
    model.model.norm.weight.data *= 6.0  # sure of about half of its tokens
    save_model(model, tmp_path, tokenizer)
    engine, sampler, lengths = NativeEngine.load(tmp_path, threads=1), _native.Sampler(temperature=0.0), set()
    for start in range(len(TEXT) - 8):
        text, sequence = TEXT[start : start + 8], engine.model.create()
        found = engine.model.draft(sequence, text, None, sampler, 4).tokens
        logits = engine.logits([*text, *found], None)[7:-1].astype(np.float64)
        chances = np.exp(logits.max(1) - np.logaddexp.reduce(logits, 1))
        assert (chances[:-1] > 0.499).all() and (len(found) == 4 or chances[-1] < 0.501)
        lengths.add(len(found))
    assert lengths >= {1, 4}, "the test needs sure and unsure tokens"


def test_guesses_that_are_right_save_steps(package):
    """Else the answers above would be compared with themselves."""
    again = {"grammar": regex("(abcd){9}")}  # random weights repeat nothing by themselves
    for draft, options in (("lookup", again), (NativeEngine.load(package, threads=1), {})):
        batch = NativeEngine.load(package, threads=1, draft=draft).together()
        row, steps = batch.add(TEXT, max_tokens=30, temperature=0.0, **options), []
        while not row.over:
            steps += [len(made) for _, made in batch.step()]
        batch.remove(row)
        assert max(steps) > 1


def test_what_is_told_beside_a_token_stays_the_same(package):
    told = {"max_tokens": 40, "temperature": 0.0, "top_logprobs": 5, "repetition_penalty": 1.1}
    plain, guessing = NativeEngine.load(package, threads=1), NativeEngine.load(package, threads=1, draft="lookup")
    for prompt in PROMPTS:
        found = list(guessing.choices(prompt, **told))
        assert found == list(plain.choices(prompt, **told)) and {len(choice.likeliest) for choice in found} == {5}


@pytest.mark.parametrize("name", kernels())
def test_a_tokens_logits_do_not_depend_on_its_steps(package, tokenizer, tmp_path, name):
    """To the bit, or greedy answers might differ where two tokens are equally likely."""
    save_model(random_model(SHAPE), tmp_path, tokenizer)
    for folder, kv in ((package, "float16"), (package, "int8"), (tmp_path, "float16")):
        engine = NativeEngine.load(folder, kernels=name, threads=2, kv=kv)
        adapter = "notes" if folder == package else None
        whole = engine.logits(TEXT, adapter)
        sequence, start = engine.model.create(), 0
        for size in (1, 17, 1, 3, 2, 8, 5, 16, 7):
            part = engine.model.logits([sequence], [TEXT[start : start + size]], [adapter], every=True)
            assert np.array_equal(part, whole[start : start + size])
            start += size


@pytest.mark.parametrize("most", [1, 3])
def test_draws_keep_their_distribution(package, most):
    """First and second tokens of 4,000 draws against the model's own chances; a warmer draft is often wrong."""
    from openafm.engine import _native

    target, draft = (NativeEngine.load(package, threads=1) for _ in range(2))
    settings = {"temperature": 0.6, "top_k": 12}
    first = _native.Sampler(**settings).chances(target.model, target.logits(TEXT)[-1])
    likely = int(first.argmax())
    second = _native.Sampler(**settings).chances(target.model, target.logits([*TEXT, likely])[-1])
    here, there = target.model.create(), draft.model.create()
    target.model.logits([here], [TEXT[:-1]], [None])
    draft.model.logits([there], [TEXT[:-1]], [None])
    n, firsts, seconds, taken = 4000, np.zeros(SHAPE.vocab_size), np.zeros(SHAPE.vocab_size), 0
    for seed in range(n):
        target.model.truncate(here, len(TEXT) - 1)
        draft.model.truncate(there, len(TEXT) - 1)
        proposed = draft.model.draft(there, TEXT[-1:], None, _native.Sampler(temperature=1.4, seed=seed + 2**63), most)
        sampler = _native.Sampler(seed=seed, **settings)
        chosen = target.model.take(here, TEXT[-1:], None, sampler, proposed)
        assert target.model.length(here) == len(TEXT) - 1 + len(chosen)
        taken += len(chosen) - 1
        if len(chosen) == 1 and chosen[0][0] == likely:
            chosen += target.model.take(here, [likely], None, sampler, _native.Proposal([]))
        firsts[chosen[0][0]] += 1
        if chosen[0][0] == likely:
            seconds[chosen[1][0]] += 1
    assert 0 < taken < n * most
    for counts, chances in ((firsts, first), (seconds, second)):
        assert not counts[chances == 0].any()
        assert follow(counts, chances)


def test_certain_proposals_keep_the_distribution_too(package):
    from openafm.engine import _native

    engine = NativeEngine.load(package, threads=1)
    chances = _native.Sampler(temperature=0.8).chances(engine.model, engine.logits(TEXT)[-1])
    guess = int(np.argsort(-chances)[1])
    sequence = engine.model.create()
    engine.model.logits([sequence], [TEXT[:-1]], [None])
    counts = np.zeros(SHAPE.vocab_size)
    for seed in range(3000):
        engine.model.truncate(sequence, len(TEXT) - 1)
        sampler = _native.Sampler(temperature=0.8, seed=seed)
        counts[engine.model.take(sequence, TEXT[-1:], None, sampler, _native.Proposal([guess]))[0][0]] += 1
    assert follow(counts, chances, least=5)


def test_a_model_takes_what_it_proposed_itself(package):
    from openafm.engine import _native

    engine = NativeEngine.load(package, threads=1)
    for seed in range(20):
        a, b = engine.model.create(), engine.model.create()
        proposed = engine.model.draft(a, TEXT, None, _native.Sampler(temperature=1.0, seed=seed), 5)
        sampler = _native.Sampler(temperature=1.0, seed=seed + 1000)
        chosen = engine.model.take(b, TEXT, None, sampler, proposed)
        assert [token for token, _, _ in chosen[:-1]] == proposed.tokens


@given(tokens=st.lists(st.integers(0, 4), min_size=1, max_size=60), pieces=st.lists(st.integers(1, 9), max_size=30))
@settings(max_examples=100, deadline=None)
def test_look_up_proposes_what_followed_the_last_time(tokens, pieces):
    look_up, end = LookUp(), 1
    for piece in [*pieces, 99]:
        seen = tokens[:end]
        found = look_up.propose(seen, 20).tokens
        wanted = []
        for n in (3, 2):
            places = [i + n for i in range(len(seen) - n) if seen[i : i + n] == seen[-n:]]
            if places and not wanted:
                wanted = seen[places[-1] : places[-1] + MOST]
        assert found == wanted
        end = min(len(tokens), end + piece)


def test_limits_hold(package, tokenizer, tmp_path):
    """Of answers, and of both models' contexts."""
    for most in (1, 2, 5, 9):
        engine = NativeEngine.load(package, threads=1, draft=NativeEngine.load(package, threads=1))
        plain = NativeEngine.load(package, threads=1)
        for temperature in (0.0, 1.0):
            given_ = list(engine.generate(TEXT, max_tokens=most, temperature=temperature))
            assert 1 <= len(given_) <= most
        assert list(engine.generate(TEXT, max_tokens=most, temperature=0.0)) == list(
            plain.generate(TEXT, max_tokens=most, temperature=0.0)
        )
    short = packed(SHAPE.model_copy(update={"max_length": 70}), tmp_path / "model.afm", tokenizer, (4,))
    for target, draft in ((package, short), (short, package)):
        engine = NativeEngine.load(target, threads=1, draft=NativeEngine.load(draft, threads=1))
        limit = 40 if target == package else 70 - len(TEXT)
        plain = NativeEngine.load(target, threads=1)
        expected = list(plain.generate(TEXT, max_tokens=limit, temperature=0.0))
        assert list(engine.generate(TEXT, max_tokens=limit, temperature=0.0)) == expected


def test_drafts_come_from_the_environment(package, small, tmp_path, monkeypatch):
    for value in ("lookup", str(small)):
        monkeypatch.setenv("OPENAFM_DRAFT", value)
        assert open_engine(package)._draft is not None
    monkeypatch.setenv("OPENAFM_DRAFT", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="use lookup, or the folder"):
        open_engine(package)
    write_tokenizer(tmp_path, train_sentencepiece(["quite another text about other things, twice over"] * 4, 300))
    other = packed(SHAPE, tmp_path / "model.afm", tmp_path, (4,))
    with pytest.raises(ValueError, match="another tokenizer"):
        NativeEngine.load(package, draft=NativeEngine.load(other))
