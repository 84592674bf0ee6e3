"""One way to ask any model for text: the samplers that synthesis, post-training and evaluation share.

`TorchSampler` runs a model folder in this process, `EngineSampler` a decoder behind the `Engine` interface, and
`openafm.sampling.endpoint.EndpointSampler` anything that speaks the OpenAI protocol. All take the same call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from openafm.engine import Engine
from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.model.generate import generate
from openafm.model.generation import Generation
from openafm.tokenizer import Message, Tokenizer
from openafm.tokenizer import load as load_tokenizer

Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    text: str
    tokens: list[int] = field(default_factory=list)
    """Without the stop token."""
    logprobs: list[float] = field(default_factory=list)
    """Nats under the untempered model, one a token; where `finished`, one more for the stop token. Empty where the
    backend does not tell them."""
    finished: bool = True
    """Whether the model ended the answer itself, before `max_tokens`."""


class Sampler(Protocol):
    """What every stage asks of a model. A prompt is plain text to continue, or a chat that the model answers."""

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, max_tokens: int, temperature: float = 1.0, seed: int = 0
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt."""
        ...

    def score(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[list[float]]:
        """Return log p(option | prompt) in nats, a row a prompt, a column an option."""
        ...


def prompt_tokens(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Tokens a model reads before it answers: a rendered chat, or the text after the beginning-of-text token."""
    if not isinstance(prompt, str):
        return tokenizer.render_chat(prompt, add_generation_prompt=True)
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


def stop_tokens(tokenizer: Tokenizer) -> set[int]:
    """Tokens that end an answer."""
    return {tokenizer.eos_id, tokenizer.end_of_turn_id}


class TorchSampler:
    """Samples from a `Transformer` in this process, batched, with a key-value cache."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, batch: int = 32):
        self.model, self.tokenizer, self.batch = model.eval(), tokenizer, batch

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, batch: int = 32) -> "TorchSampler":
        """Open a model folder, which carries its tokenizer."""
        return cls(load_model(folder, dtype=dtype), load_tokenizer(folder), batch)

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, max_tokens: int, temperature: float = 1.0, seed: int = 0
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt; temperature 0 is greedy."""
        ids = [prompt_tokens(self.tokenizer, prompt) for prompt in prompts for _ in range(n)]
        stop = stop_tokens(self.tokenizer)
        found = generate(
            self.model, ids, max_tokens=max_tokens, temperature=temperature, seed=seed, stop_ids=stop, batch=self.batch
        )
        return _grouped(found, self.tokenizer, n)

    def score(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[list[float]]:
        """Return log p(option | prompt) by batched prefill; options of one token share a single forward pass."""
        rendered = [prompt_tokens(self.tokenizer, prompt) for prompt in prompts]
        encoded = [self.tokenizer.encode(option) for option in options]
        if not all(encoded) or not all(rendered):
            raise ValueError("cannot score an empty prompt or option; give each at least one token")
        pairs = [(prompt, option) for prompt in rendered for option in encoded]
        scores = continuation_logprobs(self.model, pairs, self.batch)
        return [scores[start : start + len(options)] for start in range(0, len(scores), len(options))]


@torch.inference_mode()
def continuation_logprobs(model: Transformer, pairs: list[tuple[list[int], list[int]]], batch: int = 32) -> list[float]:
    """Return log p(continuation | prompt) in nats for each (prompt, continuation) of token lists.

    Sequences are padded on the right: under causal attention what follows cannot change what precedes. Equal inputs
    run once, so several one-token continuations of a prompt cost one forward pass. Logits are taken in float32 whatever
    the model's precision: bfloat16 knows steps of 1/8 where logits are tens, and scores that are to rank would tie.
    """
    head = model.model.embed_tokens.weight.float()
    inputs = [tuple(prompt + continuation[:-1]) for prompt, continuation in pairs]
    distinct = sorted(set(inputs), key=lambda tokens: (len(tokens), tokens))
    wanted: dict[tuple[int, ...], list[int]] = {tokens: [] for tokens in distinct}
    for index, tokens in enumerate(inputs):
        wanted[tokens].append(index)
    scores = [0.0] * len(pairs)
    for start in range(0, len(distinct), batch):
        rows = distinct[start : start + batch]
        hidden = model.hidden(_pad_right(rows).to(next(model.parameters()).device))  # (rows, longest, d_model)
        for row, tokens in enumerate(rows):
            for index in wanted[tokens]:
                prompt, continuation = pairs[index]
                logits = F.linear(hidden[row, len(prompt) - 1 : len(tokens)].float(), head)  # (continuation, vocab)
                targets = torch.tensor(continuation, device=logits.device)[:, None]
                scores[index] = float(logits.log_softmax(-1).gather(1, targets).sum())
    return scores


def _pad_right(rows: Sequence[Sequence[int]]) -> Tensor:
    """Stack token lists as (rows, longest) int64, zeros after each."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, tokens in enumerate(rows):
        padded[row, : len(tokens)] = torch.tensor(tokens)
    return padded


class EngineSampler:
    """Samples through the `Engine` interface, with one of its adapters or none."""

    def __init__(self, engine: Engine, adapter: str | None = None):
        self.engine, self.adapter = engine, adapter

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, max_tokens: int, temperature: float = 1.0, seed: int = 0
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt; temperature 0 is greedy."""
        ids = [prompt_tokens(self.engine.tokenizer, prompt) for prompt in prompts for _ in range(n)]
        found = self.engine.batch(ids, max_tokens=max_tokens, temperature=temperature, seed=seed, adapter=self.adapter)
        return _grouped(found, self.engine.tokenizer, n)

    def score(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[list[float]]:
        """Engines decode and do not score: ValueError with the remedy."""
        raise ValueError("an engine cannot score options: open the model folder with TorchSampler.load")


def _grouped(found: Sequence[Generation], tokenizer: Tokenizer, n: int) -> list[list[Completion]]:
    """Completions of a flat list of generations, `n` a prompt."""
    made = [Completion(tokenizer.decode(g.tokens), g.tokens, g.logprobs, g.finished) for g in found]
    return [made[start : start + n] for start in range(0, len(made), n)]
