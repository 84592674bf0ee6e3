import copy

import pytest
import torch

from openafm.engine import TorchEngine
from openafm.model.checkpoint import save_model
from openafm.sampling.sampler import EngineSampler, TorchSampler, prompt_tokens, stop_tokens

CHAT = [{"role": "user", "content": "the cat"}]
PROMPTS = ["the dog", CHAT, "the cat sat on"]


def brute_force(model, tokens, start):
    """log p of tokens[start:] by one forward pass a token, nothing shared or padded."""
    total = 0.0
    for end in range(start, len(tokens)):
        logits = model(torch.tensor([tokens[:end]]))[0, -1].double()
        total += float(logits[tokens[end]] - torch.logsumexp(logits, 0))
    return total


def test_scores_are_those_of_token_by_token_prefill(model, tokenizer):
    options = [" mat", " the dog ran far", " a", "Yes"]
    scores = TorchSampler(model, tokenizer, batch=3).score(PROMPTS, options)
    with torch.inference_mode():
        for prompt, row in zip(PROMPTS, scores, strict=True):
            for option, score in zip(options, row, strict=True):
                prefix = prompt_tokens(tokenizer, prompt)
                expected = brute_force(model, prefix + tokenizer.encode(option), len(prefix))
                assert score == pytest.approx(expected, abs=1e-4)


def test_scores_do_not_depend_on_the_batch(model, tokenizer):
    options = [" mat", " the dog ran"]
    one, many = (TorchSampler(model, tokenizer, batch=b).score(PROMPTS, options) for b in (1, 8))
    assert torch.allclose(torch.tensor(one), torch.tensor(many), atol=1e-5)


def test_samples_carry_their_log_probabilities(model, tokenizer):
    found = TorchSampler(model, tokenizer).sample(PROMPTS, 3, max_tokens=6, seed=5)
    assert [len(row) for row in found] == [3, 3, 3]
    with torch.inference_mode():
        for prompt, row in zip(PROMPTS, found, strict=True):
            prefix = prompt_tokens(tokenizer, prompt)
            for made in row:
                assert made.text == tokenizer.decode(made.tokens)
                expected = brute_force(model, prefix + made.tokens, len(prefix))
                assert sum(made.logprobs[: len(made.tokens)]) == pytest.approx(expected, abs=1e-3)
                assert len(made.logprobs) == len(made.tokens) + made.finished


def test_equal_seeds_give_equal_answers_and_others_differ(model, tokenizer):
    sampler = TorchSampler(model, tokenizer)
    assert sampler.sample(PROMPTS, 2, max_tokens=8, seed=1) == sampler.sample(PROMPTS, 2, max_tokens=8, seed=1)
    assert sampler.sample(PROMPTS, 2, max_tokens=8, seed=1) != sampler.sample(PROMPTS, 2, max_tokens=8, seed=2)


def test_an_engine_answers_as_torch_does(model, tokenizer, tokenizer_folder, tmp_path):
    save_model(model, tmp_path, tokenizer_folder)
    engine = EngineSampler(TorchEngine.load(tmp_path))
    expected = TorchSampler.load(tmp_path).sample(PROMPTS, 2, max_tokens=5, temperature=0)
    assert engine.sample(PROMPTS, 2, max_tokens=5, temperature=0) == expected
    with pytest.raises(ValueError, match=r"TorchSampler\.load"):
        engine.score(PROMPTS, ["a"])


def test_nothing_cannot_be_scored(model, tokenizer):
    with pytest.raises(ValueError, match="empty"):
        TorchSampler(model, tokenizer).score(["a"], [""])
    assert stop_tokens(tokenizer) == {tokenizer.eos_id, tokenizer.end_of_turn_id}


def test_bfloat16_scores_are_fine_enough_to_rank(model, tokenizer):
    coarse = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        coarse.model.embed_tokens.weight *= 16  # logits of tens, as of a trained model: bfloat16's steps are 1/8 there
    options = [" mat", "Y", "N"]
    rows = TorchSampler(coarse, tokenizer, batch=1).score(PROMPTS, options)
    with torch.inference_mode():
        for prompt, row in zip(PROMPTS, rows, strict=True):
            hidden = coarse.hidden(torch.tensor([prompt_tokens(tokenizer, prompt)]))[0, -1].double()
            expected = torch.log_softmax(coarse.model.embed_tokens.weight.double() @ hidden, 0)
            for option, score in zip(options, row, strict=True):
                (token,) = tokenizer.encode(option)
                assert score == pytest.approx(float(expected[token]), abs=1e-4)
