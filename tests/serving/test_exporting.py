"""Exports against transformers and PEFT themselves."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.adapters.lora import load_adapter
from openafm.adapters.store import Adapter
from openafm.engine import Package, TorchEngine
from openafm.model import Transformer
from openafm.model.checkpoint import load_model, save_model
from openafm.serving.exporting import _targets, export, export_hf, export_peft
from openafm.serving.tokenizer_export import byte_fallback_bpe
from openafm.tokenizer import load

TEXTS = ["Hello  world 1987\n\tx =  1", "Größe ▁ 日本語 🙂", "       words twice", "<0x41> <|end"]


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_transformers_computes_the_same_logits(run, tmp_path, qk_norm):
    model = load_model(run / "teacher").requires_grad_(False)
    folder = run / "teacher"
    if not qk_norm:
        plain = Transformer(model.config.model_copy(update={"qk_norm": False})).requires_grad_(False)
        plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
        model, folder = plain.eval(), tmp_path / "plain"
        save_model(model, folder, run / "teacher")
    export_hf(folder, tmp_path / "hf", kind="f32")
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    exported = theirs(tmp_path / "hf")
    assert type(exported).__name__ == ("Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM")
    torch.testing.assert_close(exported(tokens).logits, model(tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [("q_proj",), ("down_proj", "v_proj"), None])
def test_peft_computes_the_adapter_on_the_dequantized_package(run, tmp_path, layers):
    """With an alpha that is not the rank, on all or some of the layers."""
    shutil.copytree(run / "recovery", tmp_path / "recovery")
    engine = TorchEngine.load(tmp_path / "recovery")
    found = engine._adapters["recovery"]
    kept = {key: 0.3 * value for key, value in found.state.items() if layers is None or key.split(".")[-2] in layers}
    Package(tmp_path / "recovery" / "model.afm").adapters.save("part", Adapter(kept, 2, 7.0))
    export_hf(tmp_path / "recovery", tmp_path / "hf", kind="f32")
    export_peft(tmp_path / "recovery", tmp_path / "peft", "part")
    export_hf(tmp_path / "recovery", tmp_path / "merged", "part", kind="f32")
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    model = engine.use(None)
    bare = model(tokens).detach()
    load_adapter(model, kept, 7.0)
    expected = model(tokens).detach()
    assert (expected - bare).abs().max() > 0.1
    torch.testing.assert_close(theirs(tmp_path / "merged")(tokens).logits, expected, atol=2e-4, rtol=1e-3)
    adapted = peft.PeftModel.from_pretrained(theirs(tmp_path / "hf"), tmp_path / "peft").eval()
    torch.testing.assert_close(adapted(tokens).logits.detach(), expected, atol=2e-4, rtol=1e-3)
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(tokens).logits.detach(), bare, atol=2e-4, rtol=1e-3)


def test_an_adapter_of_few_layers_names_them_alone():
    """Else PEFT would put fresh matrices on the others of that kind."""
    every = {f"model.layers.{i}.self_attn.{kind}" for i in range(3) for kind in ("q_proj", "k_proj")}
    assert _targets(every, every) == ["k_proj", "q_proj"]
    some = {"model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.q_proj"}
    assert _targets(some, every) == sorted(some)


def test_transformers_makes_the_same_tokens_and_conversations(run, tmp_path):
    export_hf(run / "teacher", tmp_path / "hf")
    ours, exported = load(run / "teacher"), transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in TEXTS:
        assert exported.encode(text, add_special_tokens=False) == ours.encode(text)
        assert exported.encode(text) == [ours.bos_id, *ours.encode(text)]
        assert exported.decode(exported.encode(text), skip_special_tokens=True) == text
    messages = [{"role": "user", "content": "some words"}, {"role": "assistant", "content": "a few  of them"}]
    tokens = exported.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tokens == ours.render_chat(messages)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("aefhimorstw  ,.0▁é日\n\t<x"), max_size=60))
def test_byte_fallback_bpe_is_sentencepiece(run, text):
    ours = load(run / "teacher")
    exported = byte_fallback_bpe(ours._model, "<bos>")
    assert exported.encode(text, add_special_tokens=False).ids == ours.encode(text)


def test_what_cannot_be_is_said(run, tmp_path):
    with pytest.raises(ValueError, match="takes bf16, f16, f32"):
        export(run / "teacher", tmp_path / "x", "hf", kind="q4_0")
    with pytest.raises(ValueError, match="leave --type out"):
        export(run / "recovery", tmp_path / "x", "peft", kind="f32")
    with pytest.raises(ValueError, match="no adapter 'none'"):
        export(run / "recovery", tmp_path / "x", "hf", adapter="none")
    assert not (tmp_path / "x").exists()


def test_config_names_the_stored_type(run, tmp_path):
    for kind, name in (("bf16", "bfloat16"), ("f16", "float16")):
        export_hf(run / "teacher", tmp_path / kind, kind=kind)
        assert json.loads((tmp_path / kind / "config.json").read_text())["torch_dtype"] == name


def test_weights_beyond_float16_are_refused(run, tmp_path):
    model = load_model(run / "teacher").requires_grad_(False)
    model.model.norm.weight[3] = 1e6
    save_model(model, tmp_path / "large", run / "teacher")
    with pytest.raises(ValueError, match=r"model\.norm\.weight has weights that f16 cannot hold"):
        export_hf(tmp_path / "large", tmp_path / "x", kind="f16")
    assert not (tmp_path / "x").exists()
