from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.tokenizer import load
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

SAMPLE = [Path(__file__).read_text(), "In 1984 the café served 250 naïve guests, 3.5 each.\n\tdone\n" * 20]
SPECIAL = ["<bos>", "<eos>", "<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>", "<|tool|>"]
MARKS = [*SPECIAL, "\u2581", "<0x41>", "\u2585", "  ", "\t", "\r\n", "\0"]
HOSTILE = st.lists(st.one_of(st.text(), st.sampled_from(MARKS)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, train_sentencepiece(SAMPLE, 400))
    return load(folder)


@settings(deadline=None, max_examples=200)
@given(parts=HOSTILE)
def test_any_text_comes_back_and_makes_no_special_token(tokenizer, parts):
    text = "".join(parts)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert min(tokens, default=9) >= 9  # pad, unk, bos, eos, four roles and end come first in the vocabulary


@settings(deadline=None, max_examples=50)
@given(text=st.text(alphabet="0123456789 .x", min_size=1))
def test_every_digit_is_its_own_token(tokenizer, text):
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    assert all(len(piece) == 1 for piece in pieces if any(c.isdigit() for c in piece))


def test_special_tokens_are_left_out_of_text(tokenizer):
    tokens = [tokenizer.bos_id, *tokenizer.encode("a b"), tokenizer.end_of_turn_id, tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(tokens) == "a b"
    assert len({tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_of_turn_id, tokenizer.pad_id}) == 4


def test_unknown_folders_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="tokenizer folder or a model folder"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"kind": "other"}')
    with pytest.raises(ValueError, match="other"):
        load(tmp_path)
