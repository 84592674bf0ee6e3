import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from openafm.sampling.embedding import Embedder, character_vectors, similarities

TEXTS = ["add two numbers", "the sum of two whole numbers and three more", "a cat", "add two numbers"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny BERT made by transformers, and transformers' own answer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word for text in TEXTS for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(words) + 2, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config).eval()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder, model, tokenizer


def test_vectors_are_those_of_transformers(encoder):
    folder, model, tokenizer = encoder
    found = Embedder.load(folder).embed(TEXTS, batch=3)
    for text, row in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0].mean(0)
        assert row == pytest.approx((hidden / hidden.norm()).numpy(), abs=1e-5)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_without_an_encoder_spellings_are_compared(tmp_path, encoder):
    cosines, kind = similarities(["add numbers"], ["add_numbers now", "a wooden elephant"], tmp_path)
    assert kind == "spelling" and cosines[0, 0] > 0.5 > cosines[0, 1]
    cosines, kind = similarities(TEXTS, TEXTS, encoder[0])
    assert kind == "meaning" and np.allclose(np.diag(cosines), 1, atol=1e-5)
    assert character_vectors([""]).sum() == 0


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="all-MiniLM-L6-v2"):
        Embedder.load(tmp_path)
