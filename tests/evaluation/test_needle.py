import random

import pytest

from openafm.evaluation.needle import FACTS, _question, _scores, retrieval
from openafm.evaluation.windows import held_out
from openafm.model.checkpoint import load_model
from openafm.sampling.sampler import continuation_logprobs
from openafm.tokenizer import load


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_needle_lies_at_its_depth_and_every_code_is_in_the_text(world, depth):
    tokenizer, hay = load(world / "model"), held_out(world / "shards", "web")
    prompt, options = _question(tokenizer, hay, 420, depth, random.Random(1))
    text, codes = tokenizer.decode(prompt), [tokenizer.decode(code) for code in options]
    asked = text.rsplit("The code of the ", 1)[1].removesuffix(" is")
    needle = text.index(f"The code of the {asked} is{codes[0]}.")
    body = text.index("\nQuestion:")
    assert needle / body == pytest.approx(depth, abs=0.25)
    assert all(f"is{code}.\n" in text for code in codes) and len(set(codes)) == FACTS
    assert len(prompt) + len(options[0]) <= 420


def test_scores_from_one_cache_are_those_of_whole_sequences(world):
    model, prompt, options = load_model(world / "model"), [5, 6, 7, 8], [[9], [10, 11, 12], [13, 14]]
    whole = continuation_logprobs(model, [(prompt, option) for option in options])
    assert _scores(model, prompt, options).tolist() == pytest.approx(whole, abs=1e-4)


def test_an_untrained_model_guesses(world):
    found = retrieval(
        load_model(world / "model"), load(world / "model"), held_out(world / "shards", "web"),
        length=420, depths=(0.5,), questions=40, seed=0,
    )  # fmt: skip
    assert found[0.5].low < 0.25 < found[0.5].high


def test_too_short_a_context_is_refused(world):
    with pytest.raises(ValueError, match="20 tokens leave no room"):
        _question(load(world / "model"), held_out(world / "shards", "web"), 20, 0.5, random.Random(0))
