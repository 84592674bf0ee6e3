import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.model import PRESETS, Cache, ModelConfig, Transformer, transformer
from openafm.model.muparam import initialise
from openafm.model.transformer import SHORT, RMSNorm, attend, rope_angles, rotate, short_attention, visible


@pytest.mark.parametrize("qk_norm", [True, False])
def test_logits_equal_transformers(tiny_config, qk_norm):
    """The whole forward pass against Hugging Face's Qwen3 and Llama."""
    transformers = pytest.importorskip("transformers")
    config = tiny_config.model_copy(update={"qk_norm": qk_norm})
    ours = initialise(Transformer(config), 3).eval()
    shape = {
        "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 24, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "max_position_embeddings": 32,
    }  # fmt: skip
    kind = transformers.Qwen3Config if qk_norm else transformers.LlamaConfig
    model = transformers.Qwen3ForCausalLM if qk_norm else transformers.LlamaForCausalLM
    theirs = model(kind(**shape)).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    tokens = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=2e-5, rtol=1e-4)


def test_cache_and_padding_change_nothing(tiny_model):
    tokens = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = tiny_model(tokens)
        cache = Cache(tiny_model.config, 3, 12, torch.float32, torch.device("cpu"))
        parts = [
            tiny_model(tokens[:, :5], cache),
            tiny_model(tokens[:, 5:11], cache),
            tiny_model(tokens[:, 11:], cache),
        ]
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)
        padded = torch.cat((torch.zeros(3, 4, dtype=torch.long), tokens), 1)
        shifted = tiny_model(padded, padding=torch.full((3,), 4))
        torch.testing.assert_close(shifted[:, 4:], whole, atol=1e-5, rtol=1e-4)


def test_no_token_sees_the_future(tiny_model):
    tokens = torch.randint(0, 64, (1, 16), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 64
    with torch.no_grad():
        before, after = tiny_model(tokens), tiny_model(changed)
    assert torch.equal(before[:, :10], after[:, :10]) and not torch.equal(before[:, 10:], after[:, 10:])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 1000), st.floats(10, 1e6))
def test_rope_depends_on_distance_only(first, second, shift, base):
    generator = torch.Generator().manual_seed(first)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator)

    def score(i: int, j: int) -> float:
        turned = [rotate(x, *rope_angles(torch.tensor([p]), 8, base)) for x, p in ((query, i), (key, j))]
        return float((turned[0] * turned[1]).sum())

    assert math.isclose(score(first, second), score(first + shift, second + shift), abs_tol=2e-3)


def test_rms_norm_is_its_formula():
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    norm = RMSNorm(7, 1e-5)
    norm.weight.data = torch.arange(7.0)
    expected = [
        [v / math.sqrt(sum(u * u for u in row) / 7 + 1e-5) * i for i, v in enumerate(row)] for row in x.tolist()
    ]
    torch.testing.assert_close(norm(x), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def position_by_position(query, key, value, documents):
    """Softmax attention of each query over the keys at its position and before, in its document, in float64."""
    rows, heads, length, width = query.shape
    query, key, value = (x.double() for x in (query, key, value))
    group, mixed = heads // key.shape[1], []
    for row, head, at in ((r, h, i) for r in range(rows) for h in range(heads) for i in range(length)):
        seen = [j for j in range(at + 1) if documents[row][j] == documents[row][at]]
        weights = (key[row, head // group, seen] @ query[row, head, at] / math.sqrt(width)).exp()
        mixed.append(weights / weights.sum() @ value[row, head // group, seen])
    return torch.stack(mixed).view(rows, heads, length, width)


@pytest.mark.parametrize(("length", "documents"), [(1, None), (7, None), (7, [[0, 0, 1, 1, 1, 2, 2], [0] * 7])])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_in_training_is_its_formula(length, documents, dtype, monkeypatch):
    """Outputs and gradients of `attend`, and of `short_attention` where it is meant: bfloat16, causal, one document."""
    generator = torch.Generator().manual_seed(length)
    leaves, (gradient,) = (
        [torch.randn(2, heads, length, 6, generator=generator).to(dtype) for heads in counts]
        for counts in ((6, 2, 2), (6,))
    )
    for leaf in leaves:
        leaf.requires_grad_()
    mask, at = None, torch.arange(length)
    if documents is not None:
        mask = visible(at, at, torch.tensor(documents), torch.tensor(documents))
    wanted = position_by_position(*leaves, documents or [[0] * length] * 2)
    reached = []
    monkeypatch.setattr(transformer, "short_attention", lambda *args: reached.append(1) or short_attention(*args))
    mixed = [attend(*leaves, mask)] + [short_attention(*leaves)] * (mask is None)
    assert len(reached) == (mask is None and dtype == torch.bfloat16)
    tolerance = {"atol": 1e-12, "rtol": 1e-12} if dtype == torch.float64 else {"atol": 0.05, "rtol": 0.02}
    right = torch.autograd.grad(wanted, leaves, gradient.double())
    for found in mixed:
        torch.testing.assert_close(found.double(), wanted, **tolerance)
        for one, other in zip(torch.autograd.grad(found, leaves, gradient), right, strict=True):
            torch.testing.assert_close(one, other, check_dtype=False, **tolerance)


def test_attention_is_short_up_to_512_tokens(monkeypatch):
    """There, too, it is that of float64; beyond, and over more keys than queries, it is not asked."""
    reached = []
    monkeypatch.setattr(transformer, "short_attention", lambda *args: reached.append(1) or short_attention(*args))
    for length, keys, short in ((SHORT, SHORT, 1), (SHORT + 1, SHORT + 1, 0), (1, SHORT, 0)):
        query, key, value = (
            torch.randn(1, h, n, 4, generator=torch.Generator().manual_seed(h)).bfloat16()
            for h, n in ((2, length), (1, keys), (1, keys))
        )
        mixed = attend(query.requires_grad_(), key, value, None)
        assert len(reached) == short
        reached.clear()
        if length == keys:
            wanted = position_by_position(query, key, value, [[0] * length])
            torch.testing.assert_close(mixed.double(), wanted, atol=0.03, rtol=0.02)


def test_parameter_counts_are_the_reports():
    """AFM report, table 1: 2.58B + 0.15B on device; and the teacher's 6.4B."""
    device, teacher = PRESETS["afm-on-device"], PRESETS["afm-teacher"]
    assert device.parameters - device.embedding_parameters == pytest.approx(2.58e9, rel=0.004)
    assert round(device.embedding_parameters / 1e9, 2) == 0.15
    assert round(teacher.parameters / 1e9, 1) == 6.4
    for name in ("nano", "nano-teacher"):
        assert sum(p.numel() for p in Transformer(PRESETS[name]).parameters()) == PRESETS[name].parameters


def test_heads_must_group():
    with pytest.raises(ValueError, match="multiple"):
        ModelConfig(vocab_size=8, d_model=8, n_layers=1, n_heads=3, n_kv_heads=2, head_dim=4, d_ff=8)
