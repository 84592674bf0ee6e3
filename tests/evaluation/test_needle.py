import random

import pytest

from openafm.evaluation.needle import _question, retrieval
from openafm.evaluation.windows import held_out
from openafm.model.checkpoint import load_model
from openafm.tokenizer import load


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_needle_lies_at_its_depth_and_fits(world, depth):
    tokenizer, hay = load(world / "model"), held_out(world / "shards", "web")
    prompt, options = _question(tokenizer, hay, 200, depth, random.Random(1))
    text, code = tokenizer.decode(prompt), tokenizer.decode(options[0])
    needle = text.index(f"door is{code}.")
    start = text.index("The code of the")
    assert needle < len(text) and len({tokenizer.decode(option) for option in options}) == 4
    assert start / len(text) == pytest.approx(depth, abs=0.3)
    assert len(prompt) + max(map(len, options)) <= 200
    assert text.endswith("door is")


def test_an_untrained_model_guesses(world):
    found = retrieval(
        load_model(world / "model"), load(world / "model"), held_out(world / "shards", "web"),
        length=160, depths=(0.5,), questions=40, seed=0,
    )  # fmt: skip
    assert found[0.5].low < 0.25 < found[0.5].high


def test_too_short_a_context_is_refused(world):
    with pytest.raises(ValueError, match="long_length 20 is too short"):
        _question(load(world / "model"), held_out(world / "shards", "web"), 20, 0.5, random.Random(0))
