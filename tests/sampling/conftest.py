import pytest

from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise
from openafm.tokenizer import load
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, train_sentencepiece(["the cat sat on the mat and the dog ran far away " * 20], 310))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return load(tokenizer_folder)


@pytest.fixture(scope="session")
def model(tokenizer):
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24,
        rope_base=500.0, max_length=128,
    )  # fmt: skip
    return initialise(Transformer(config), 0).eval()
