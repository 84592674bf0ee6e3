"""The native engine against torch on the dequantized weights: every instruction set this processor runs."""

import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.random_models import (
    SHAPE,
    TEXT,
    distance,
    divergence,
    exact_reference,
    packed,
    random_adapter,
    random_model,
    reference,
)

from openafm.engine import NativeEngine, Package, TorchEngine, open_engine
from openafm.engine.native_engine import kernels, missing
from openafm.model import ModelConfig
from openafm.model.checkpoint import save_model

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.mark.parametrize("adapter", [None, "mail", "notes"])
@pytest.mark.parametrize("name", kernels())
def test_logits_are_torchs(package, name, adapter):
    expected = reference(package, TEXT, adapter)
    exact = NativeEngine.load(package, kernels=name, threads=2, activations="float32").logits(TEXT, adapter)
    assert distance(exact, expected) < 1e-3
    rounded = NativeEngine.load(package, kernels=name, threads=2).logits(TEXT, adapter)
    assert 0 < divergence(expected, rounded) < 1e-3
    finely = NativeEngine.load(package, kernels=name, threads=2, activations="int16", kv="float32")
    assert distance(finely.logits(TEXT, adapter), expected) < 2e-3  # float16 rounds what a table's code stands for


shapes = st.builds(
    lambda d, layers, groups, keys, head, ff, vocab, norm: ModelConfig(
        vocab_size=vocab, d_model=d, n_layers=layers, n_heads=groups * keys, n_kv_heads=keys, head_dim=head, d_ff=ff,
        qk_norm=norm,
    ),
    st.integers(8, 150), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.sampled_from([16, 32, 48]),
    st.integers(5, 200), st.integers(280, 330), st.booleans(),
)  # fmt: skip


@given(
    shape=shapes, bits=st.sampled_from([(4,), (2,), (4, 2, 1), (8, 4)]), group=st.sampled_from([16, 16, 32, 5]),
    length=st.integers(1, 70), threads=st.integers(1, 5), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_shape_and_any_number_of_threads(tokenizer, tmp_path_factory, shape, bits, group, length, threads, seed):
    folder = packed(shape, tmp_path_factory.mktemp("fuzzed") / "model.afm", tokenizer, bits, group)
    tokens = [int(t) for t in np.random.default_rng(seed).integers(0, 280, length)]
    expected, on_grid = reference(folder, tokens).numpy(), exact_reference(folder, tokens)
    rounded = []
    for name in kernels():
        exact = NativeEngine.load(folder, kernels=name, threads=threads, activations="float32").logits(tokens)
        assert distance(exact, expected) < 1e-3
        rounded.append(NativeEngine.load(folder, kernels=name, threads=threads).logits(tokens))
        finely = NativeEngine.load(folder, kernels=name, threads=threads, activations="int16", kv="float32")
        assert distance(finely.logits(tokens), on_grid) < 2e-3
    for other in rounded:  # integer sums are the same on all of them
        assert distance(other, rounded[0]) < 2e-2
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_model_folders_without_compression(tokenizer, tmp_path, dtype, qk_norm):
    model = random_model(SHAPE.model_copy(update={"qk_norm": qk_norm})).to(dtype)
    save_model(model, tmp_path, tokenizer)
    expected = reference(tmp_path, TEXT).numpy()
    for name in kernels():
        logits = NativeEngine.load(tmp_path, kernels=name, threads=2).logits(TEXT)
        assert distance(logits, expected) < 1e-3


@pytest.mark.parametrize("qk_norm", [True, False])
def test_model_folders_rounded_to_int8(tokenizer, tmp_path, qk_norm):
    """Against torch on the rounded weights; and a folder's bytes become a quarter of float32's."""
    model = random_model(SHAPE.model_copy(update={"qk_norm": qk_norm}))
    save_model(model, tmp_path, tokenizer)
    engine, whole = NativeEngine.load(tmp_path, int8=True, threads=2), NativeEngine.load(tmp_path, threads=1)
    assert engine.model.weight_bytes < 0.35 * whole.model.weight_bytes  # columns are padded to 64
    for tensor in model.state_dict().values():
        if tensor.ndim == 2:
            scales = tensor.abs().amax(1, keepdim=True) / 127
            tensor.copy_((tensor / scales).round() * scales)
    save_model(model, tmp_path, tokenizer)
    expected = reference(tmp_path, TEXT)
    assert 0 < divergence(expected, engine.logits(TEXT)) < 1e-3
    exact = NativeEngine.load(tmp_path, int8=True, threads=1, activations="float32")
    assert distance(exact.logits(TEXT), expected.numpy()) < 1e-3


def test_steps_of_any_size_give_the_same(package):
    engine = NativeEngine.load(package, threads=2, activations="float32")
    whole = engine.logits(TEXT, "mail")
    sequence = engine.model.create()
    pieces, start = [], 0
    for size in (1, 17, 1, 3, 30, 9):
        pieces.append(engine.model.logits([sequence], [TEXT[start : start + size]], ["mail"], every=True))
        start += size
    assert start == len(TEXT) == engine.model.length(sequence)
    assert np.allclose(np.concatenate(pieces), whole, atol=1e-4 * np.abs(whole).max())


def test_sequences_with_different_adapters_share_a_step(package):
    engine = NativeEngine.load(package, threads=2, activations="float32")
    texts, adapters = [TEXT[:5], TEXT[7:30], TEXT[3:4], TEXT[40:]], ["mail", None, "notes", "mail"]
    alone = [engine.logits(text, adapter)[-1] for text, adapter in zip(texts, adapters, strict=True)]
    together = engine.model.logits([engine.model.create() for _ in texts], texts, adapters)
    assert np.allclose(together, alone, atol=1e-4 * np.abs(together).max())


def test_forks_share_their_beginning_and_nothing_else(package):
    engine = NativeEngine.load(package, threads=2, activations="float32")
    model, whole = engine.model, engine.logits(TEXT)
    first = model.create()
    model.logits([first], [TEXT[:40]], [None])
    used = model.cache_bytes
    second = model.fork(first)
    assert model.cache_bytes == used
    model.logits([first], [[9] * 20], [None])  # must not reach the pages that the other reads
    assert np.allclose(model.logits([second], [TEXT[40:]], [None])[0], whole[-1], atol=1e-4 * np.abs(whole).max())
    model.truncate(second, 11)
    assert np.allclose(model.logits([second], [TEXT[11:50]], [None])[0], whole[49], atol=1e-4 * np.abs(whole).max())
    for sequence in (first, second):
        model.release(sequence)
    assert model.cache_bytes == 0


def greedy(engine, prompt, **options):
    return list(engine.generate(prompt, max_tokens=24, temperature=0.0, **options))


@pytest.mark.parametrize("adapter", [None, "notes"])
def test_greedy_decoding_is_torchs(package, adapter):
    native = NativeEngine.load(package, threads=2, activations="float32")
    assert greedy(native, TEXT, adapter=adapter) == greedy(TorchEngine.load(package), TEXT, adapter=adapter)
    again = [*TEXT, *greedy(native, TEXT, adapter=adapter), 7, 8]  # goes on from what is kept
    assert greedy(native, again, adapter=adapter) == greedy(TorchEngine.load(package), again, adapter=adapter)


@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_a_batch_is_its_answers_one_by_one(package, activations):
    engine = NativeEngine.load(package, threads=2, activations=activations)
    prompts = [TEXT[:n] for n in range(3, 23)]
    answers = engine.batch(prompts, max_tokens=9, temperature=0.0)
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = list(engine.generate(prompt, max_tokens=9, temperature=0.0))
        assert alone == answer.tokens + ([answer.stop] if answer.finished else [])
        assert len(answer.logprobs) == len(answer.tokens) + answer.finished
    logits = torch.from_numpy(engine.logits([*prompts[5], *answers[5].tokens]))
    expected = torch.log_softmax(logits[len(prompts[5]) - 1 :], -1)
    for i, token in enumerate(answers[5].tokens):
        assert answers[5].logprobs[i] == pytest.approx(float(expected[i, token]), abs=0.05)
    drawn = engine.batch(prompts, max_tokens=9, temperature=1.0, seed=4)
    assert drawn == engine.batch(prompts, max_tokens=9, temperature=1.0, seed=4) != answers


def test_draws_follow_the_softmax_and_its_cuts(package):
    engine = NativeEngine.load(package, threads=2)
    chances = torch.softmax(torch.from_numpy(engine.logits(TEXT)[-1]) / 0.7, -1).numpy()
    order = np.argsort(-chances)

    def drawn(n=1500, **cuts):
        counts = np.zeros(300)
        for seed in range(n):
            counts[next(engine.generate(TEXT, max_tokens=1, temperature=0.7, seed=seed, **cuts))] += 1
        return counts

    counts = drawn()
    assert np.abs(counts / 1500 - chances).sum() < 0.5 and np.argmax(counts) in order[:3]
    assert set(np.nonzero(drawn(100, top_k=3))[0]) == set(order[:3])
    nucleus = order[: int(np.searchsorted(np.cumsum(chances[order]), 0.5)) + 1]
    assert set(np.nonzero(drawn(200, top_p=0.5))[0]) <= set(nucleus)
    assert chances[np.nonzero(drawn(200, min_p=0.3))[0]].min() >= 0.3 * chances.max() * 0.999
    plain, punished = (
        list(engine.generate(TEXT, max_tokens=30, temperature=0.0, repetition_penalty=p)) for p in (1.0, 50.0)
    )
    assert len(set(punished)) == len(punished) or len(set(punished)) > len(set(plain))


def test_masks_are_kept_to(package):
    from openafm.engine import _native

    model = NativeEngine.load(package, threads=1).model
    mask = np.zeros((1, 10), np.uint32)
    mask[0, 4] = 1 << 7  # token 135

    def chosen(masks):
        return model.choose([model.create()], [TEXT], [None], [_native.Sampler(temperature=1.0)], masks)

    assert chosen(lambda: mask)[0][0] == 135 and chosen(lambda: mask)[0][1] < 0
    with pytest.raises(ValueError, match="no token is allowed"):
        chosen(lambda: mask * 0)
    with pytest.raises(ValueError, match="masks do not fit"):
        chosen(lambda: mask[:, :9])


def test_masks_are_asked_for_when_the_step_is_done(package):
    from openafm.engine import _native

    model = NativeEngine.load(package, threads=1).model
    computed = []

    def nothing():
        computed.append(model.length(sequence))
        raise KeyError("no masks")

    sequence = model.create()
    sampler, guess = _native.Sampler(temperature=0.0), _native.Proposal([5, 6])
    with pytest.raises(KeyError, match="no masks"):
        model.take(sequence, TEXT, None, sampler, guess, nothing)
    assert computed == [len(TEXT) + 2] and model.length(sequence) == len(TEXT)  # the guesses are taken back


def test_what_does_not_fit_is_refused(package, tokenizer, tmp_path):
    engine = NativeEngine.load(package, threads=1)
    model = engine.model
    sequence = model.create()
    for tokens in ([300], [-1], [], [3] * 600):
        with pytest.raises(ValueError):
            model.logits([sequence], [tokens], [None])
    with pytest.raises(ValueError, match="no such sequence"):
        model.logits([99], [[3]], [None])
    with pytest.raises(ValueError, match="there are mail, notes"):
        engine.logits([3], "nobody")
    other = random_adapter(random_model(SHAPE.model_copy(update={"d_ff": 64})), 1, 2)
    with pytest.raises(ValueError, match="made for another model"):
        engine.put_adapter("other", ({key: tensor.half().numpy() for key, tensor in other.state.items()}, other.alpha))
    with pytest.raises(ValueError, match="asks for 300 x 96"):
        model.set_float("model.embed_tokens", np.zeros((3, 96), np.float32))
    with pytest.raises(ValueError, match="no place"):
        model.set_norm("model.layers.7.input_layernorm.weight", np.zeros(96, np.float32))
    with pytest.raises(ValueError, match="it runs"):
        NativeEngine.load(package, kernels="mmx")
    copy = tmp_path / "model.afm"
    shutil.copytree(package, copy)
    weights = copy / "weights.safetensors"
    for damaged in (weights.read_bytes()[:-9], weights.read_bytes()[:-1] + b"\0", b"", b"\xff" * 64):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            NativeEngine.load(copy)


def test_adapters_come_and_go(package):
    engine = NativeEngine.load(package, threads=2)
    before, said = engine.logits(TEXT, "mail"), greedy(engine, TEXT, adapter="mail")
    engine.remove_adapter("mail")
    assert engine.adapters() == ["notes"]
    store = Package(package).adapters
    engine.put_adapter("mail", engine.read_adapter(store, "notes"))
    fresh = greedy(NativeEngine.load(package, threads=2), TEXT, adapter="notes")
    assert greedy(engine, TEXT, adapter="mail") == fresh != said  # nothing that the old one computed is kept
    engine.put_adapter("mail", engine.read_adapter(store, "mail"))
    assert np.array_equal(engine.logits(TEXT, "mail"), before)


def test_which_engine_is_opened(package, monkeypatch, capsys):
    assert isinstance(open_engine(package), NativeEngine)
    monkeypatch.setenv("OPENAFM_ENGINE", "torch")
    assert isinstance(open_engine(package), TorchEngine)
    monkeypatch.setenv("OPENAFM_ENGINE", "jax")
    with pytest.raises(ValueError, match="native or torch"):
        open_engine(package)


def test_without_a_compiler_torch_decodes_and_says_so(package, monkeypatch, capsys):
    monkeypatch.setattr("openafm.engine.native_engine._native", None)
    assert isinstance(open_engine(package), TorchEngine)
    assert "install a C++ compiler" in capsys.readouterr().err
    monkeypatch.setenv("OPENAFM_ENGINE", "native")
    with pytest.raises(ValueError, match=r"install a C\+\+ compiler"):
        open_engine(package)


def test_a_late_thread_changes_nothing(package):
    """More threads than cores: some are always off their core, and their pieces are computed by others."""
    engine = NativeEngine.load(package, threads=4 * (os.cpu_count() or 1))
    expected = NativeEngine.load(package, threads=1).batch([TEXT[:9]] * 3, max_tokens=40, temperature=0.0)
    for _ in range(3):
        assert engine.batch([TEXT[:9]] * 3, max_tokens=40, temperature=0.0) == expected


def test_the_environment_forces_kernels(package, monkeypatch):
    for name in kernels():
        monkeypatch.setenv("OPENAFM_KERNELS", name)
        assert NativeEngine.load(package, threads=1).model.kernels == name
