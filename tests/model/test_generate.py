import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.model import ModelConfig, Transformer
from openafm.model.generate import generate, stream
from openafm.model.muparam import initialise

MODEL = initialise(
    Transformer(ModelConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24)), 0
).eval()


@torch.no_grad()
def brute_force(prompt: list[int], max_tokens: int, stop: int) -> tuple[list[int], list[float]]:
    """Greedy decoding that runs the whole sequence anew for each token."""
    tokens, logprobs = list(prompt), []
    for _ in range(max_tokens):
        distribution = torch.log_softmax(MODEL(torch.tensor([tokens]))[0, -1], -1)
        token = int(distribution.argmax())
        logprobs.append(float(distribution[token]))
        if token == stop:
            break
        tokens.append(token)
    return tokens[len(prompt) :], logprobs


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(0, 31), min_size=1, max_size=9), min_size=1, max_size=5), st.integers(1, 3))
def test_batched_greedy_equals_brute_force(prompts, batch):
    answers = generate(MODEL, prompts, max_tokens=6, stop_ids={7}, temperature=0, batch=batch)
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens, logprobs = brute_force(prompt, 6, 7)
        assert answer.tokens == tokens
        torch.testing.assert_close(torch.tensor(answer.logprobs), torch.tensor(logprobs), atol=1e-4, rtol=1e-4)
        assert [choice.token for choice in stream(MODEL, prompt, max_tokens=6, stop_ids={7}, temperature=0)] == tokens


def test_draws_follow_the_distribution():
    with torch.no_grad():
        expected = torch.softmax(MODEL(torch.tensor([[3, 4]]))[0, -1] / 0.7, -1)
    answers = generate(MODEL, [[3, 4]] * 4000, max_tokens=1, stop_ids=set(), temperature=0.7, seed=1, batch=1000)
    counts = torch.bincount(torch.tensor([a.tokens[0] for a in answers]), minlength=32) / 4000
    assert float((counts - expected).abs().sum()) < 0.12
    again = generate(MODEL, [[3, 4]] * 20, max_tokens=5, stop_ids=set(), temperature=0.7, seed=9)
    assert [a.tokens for a in again] == [
        a.tokens for a in generate(MODEL, [[3, 4]] * 20, max_tokens=5, stop_ids=set(), temperature=0.7, seed=9)
    ]


def test_top_k_keeps_the_likeliest():
    with torch.no_grad():
        likeliest = set(MODEL(torch.tensor([[3, 4]]))[0, -1].topk(3).indices.tolist())
    answers = generate(MODEL, [[3, 4]] * 200, max_tokens=1, stop_ids=set(), temperature=3.0, top_k=3)
    assert {a.tokens[0] for a in answers} == likeliest
