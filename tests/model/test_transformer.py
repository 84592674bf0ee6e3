import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.model import PRESETS, Cache, ModelConfig, Transformer
from openafm.model.muparam import initialise
from openafm.model.transformer import RMSNorm, rope_angles, rotate


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
