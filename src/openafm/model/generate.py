"""Batched generation with a KV cache: the reference that the native engine is held against."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from openafm.model.generation import Choice, Generation
from openafm.model.transformer import Cache, Transformer


def choose(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> Tensor:
    """One token a row of `(B, vocab)`: the likeliest at temperature 0, else drawn from the tempered softmax."""
    if temperature == 0:
        return logits.argmax(-1)
    if top_k:
        floor = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator).squeeze(1)


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    stop_ids: set[int],
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch: int = 64,
) -> list[Generation]:
    """Continue each prompt by at most `max_tokens` tokens; `batch` prompts go through the model together.

    Draws come from one generator seeded with `seed`, so equal calls give equal answers.
    """
    generator = torch.Generator().manual_seed(seed)
    answers = [Generation() for _ in prompts]
    # Prompts of like length share a batch, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        _generate_batch(
            model, [prompts[i] for i in rows], [answers[i] for i in rows],
            max_tokens, stop_ids, temperature, top_k, generator,
        )  # fmt: skip
    return answers


def _generate_batch(
    model: Transformer,
    prompts: list[list[int]],
    answers: list[Generation],
    max_tokens: int,
    stop_ids: set[int],
    temperature: float,
    top_k: int,
    generator: torch.Generator,
) -> None:
    weight = model.model.embed_tokens.weight
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(p) for p in prompts], device=weight.device)
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=weight.device)
    cache = Cache(model.config, len(prompts), longest + max_tokens, weight.dtype, weight.device)
    for _ in range(max_tokens):
        ragged = padding if bool(padding.any()) else None
        logits = model.logits(model.hidden(tokens, cache, ragged)[:, -1]).float()
        chosen = choose(logits, temperature, top_k, generator)
        logprobs = torch.log_softmax(logits, -1).gather(1, chosen.unsqueeze(1)).squeeze(1)
        going = []
        for row, (token, logprob) in enumerate(zip(chosen.tolist(), logprobs.tolist(), strict=True)):
            answers[row].logprobs.append(logprob)
            if token in stop_ids:
                answers[row].stop = token
            else:
                answers[row].tokens.append(token)
                going.append(row)
        if not going:
            return
        if len(going) < len(answers):
            rows = torch.tensor(going, device=weight.device)
            cache.select(rows)
            padding, chosen = padding[rows], chosen[rows]
            answers = [answers[row] for row in going]
        tokens = chosen.unsqueeze(1)


@torch.inference_mode()
def stream(
    model: Transformer,
    prompt: list[int],
    *,
    max_tokens: int,
    stop_ids: set[int],
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    top_logprobs: int | None = None,
) -> Iterator[Choice]:
    """Yield one answer token by token, as a chat shows it, with log-probabilities where `top_logprobs` is told."""
    generator = torch.Generator().manual_seed(seed)
    weight = model.model.embed_tokens.weight
    cache = Cache(model.config, 1, len(prompt) + max_tokens, weight.dtype, weight.device)
    tokens = torch.tensor([prompt], device=weight.device)
    for _ in range(max_tokens):
        logits = model.logits(model.hidden(tokens, cache)[:, -1]).float()
        token = int(choose(logits, temperature, top_k, generator))
        if token in stop_ids:
            return
        yield Choice(token) if top_logprobs is None else choice(token, logits[0], top_logprobs)
        tokens = torch.tensor([[token]], device=weight.device)


def choice(token: int, logits: Tensor, most: int) -> Choice:
    """A token, with what the model thought of it and of so many likely ones."""
    logprobs = torch.log_softmax(logits, -1)
    values, tokens = logprobs.topk(min(most, len(logprobs)))
    return Choice(token, float(logprobs[token]), list(zip(tokens.tolist(), values.tolist(), strict=True)))
