"""A tokenizer and a package that the tests of the engines share; tests only read them."""

import pytest
from tests.engine.random_models import SHAPE, packed

from openafm.tokenizer.train import train_sentencepiece, write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, train_sentencepiece(["some words to learn from, a few of them twice"] * 4, 300))
    return folder


@pytest.fixture(scope="session")
def package(tokenizer, tmp_path_factory):
    return packed(SHAPE, tmp_path_factory.mktemp("package") / "model.afm", tokenizer, (4, 2, 4, 1))
