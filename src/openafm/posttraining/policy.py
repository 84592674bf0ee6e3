"""A model being aligned, seen as a policy: its answers, their log-probabilities, and how often they are right."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.model.generate import generate
from openafm.model.generation import Generation
from openafm.model.muparam import parameter_groups
from openafm.posttraining.examples import Row, answer_row, checked, collate
from openafm.sampling.sampler import stop_tokens
from openafm.scoring import checks, intervals
from openafm.stage import Config, Context, Hardware
from openafm.tokenizer import Tokenizer
from openafm.tokenizer import load as load_tokenizer
from openafm.training.hardware import autocast
from openafm.training.losses import IGNORED
from openafm.training.optimizers import RMSPropMomentum

SAMPLE_BATCH = 64
"""Sequences that a model answers together."""


class OptimizerConfig(Config):
    """What every post-training stage tells its optimizer; the learning rate is constant (AFM, section 4.2)."""

    lr: float = 1e-3
    """Constant learning rate of RMSProp with momentum. AFM's 2e-5 moves nothing in a few hundred steps."""
    weight_decay: float = 1e-5
    """Decoupled decay a step."""
    base_width: int = 128
    """Width at which muParam leaves the learning rate as it is."""

    def optimizer(self, model: Transformer) -> RMSPropMomentum:
        """Return a fresh optimizer for all weights of `model`."""
        return RMSPropMomentum(parameter_groups(model, self.base_width), self.lr, self.weight_decay)


@dataclass(frozen=True)
class Answer:
    """One answer: `tokens` and `logprobs` end with the stop token where the model ended it itself."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    passed: bool


@dataclass(frozen=True)
class Policy:
    """A model with its tokenizer."""

    model: Transformer
    tokenizer: Tokenizer
    folder: Path

    @classmethod
    def load(cls, folder: Path, dropout: float = 0.0) -> "Policy":
        """Open a model folder."""
        return cls(load_model(folder, dropout), load_tokenizer(folder), folder)

    def prompt(self, example: Row) -> list[int]:
        """Tokens of the conversation, up to where the answer begins."""
        return self.tokenizer.render_chat(example["messages"], add_generation_prompt=True)

    def problems(self, examples: Sequence[Row], count: int, max_tokens: int, seed: str) -> list[Row]:
        """At most `count` examples with a check whose reference answer the policy could give within `max_tokens`.

        Raises ValueError where there is none.
        """
        room = self.model.config.max_length - max_tokens
        fitting = (
            example
            for example in examples
            if len(self.tokenizer.encode(example["answer"])) < max_tokens and len(self.prompt(example)) <= room
        )
        found = checked(fitting, count, seed)
        if not found:
            raise ValueError(
                f"none of {len(examples)} examples has a check and an answer within {max_tokens} tokens: "
                "raise max_tokens, or give the mixture more checked examples"
            )
        return found

    def answer(
        self, examples: Sequence[Row], max_tokens: int, context: Context, label: str, temperature: float = 1.0
    ) -> list[Answer]:
        """One answer for each example (repeat an example for several), checked by its own program.

        Temperature 1 draws from the policy itself, 0 is greedy. Draws depend on `context.seed`, `label` and the
        examples, and on nothing else.
        """
        self.model.to(context.hardware.device).eval()
        answers: list[Answer] = []
        starts = range(0, len(examples), SAMPLE_BATCH * 4)
        for start in context.track(starts, label):
            part = examples[start : start + SAMPLE_BATCH * 4]
            made = generate(
                self.model,
                [self.prompt(example) for example in part],
                max_tokens=max_tokens,
                temperature=temperature,
                stop_ids=stop_tokens(self.tokenizer),
                seed=random.Random(f"{context.seed}/{label}/{start}").getrandbits(48),
                batch=SAMPLE_BATCH,
            )
            answers += [self.checked(example, one) for example, one in zip(part, made, strict=True)]
        return answers

    def checked(self, example: Row, made: Generation) -> Answer:
        """A generation as an answer; one cut off by `max_tokens` is none, whatever a checker finds in it."""
        text = self.tokenizer.decode(made.tokens).strip()
        ended = [] if made.stop is None else [made.stop]
        return Answer(text, made.tokens + ended, made.logprobs, made.finished and passes(example, text))


def passes(example: Row, text: str) -> bool:
    """Whether the example's own check accepts `text`; without a check, nothing is verified."""
    return bool(example.get("check")) and checks.passes(example, text)


@torch.no_grad()
def token_log_probs(
    model: Transformer, pairs: Sequence[tuple[list[int], list[int]]], hardware: Hardware
) -> list[list[float]]:
    """Return log pi of each token of each answer, in nats, for pairs of prompt and answer tokens.

    Dropout is off, and the precision is the training loop's, so that a ratio to them starts at 1.
    """
    model.to(hardware.device).eval()
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]) + len(pairs[i][1]), i))
    found: list[list[float]] = [[] for _ in pairs]
    for start in range(0, len(order), SAMPLE_BATCH):
        rows = order[start : start + SAMPLE_BATCH]
        batch = {name: x.to(hardware.device) for name, x in collate([answer_row(*pairs[i]) for i in rows]).items()}
        with autocast(hardware):
            logits = model(batch["inputs"])
        log_probs = torch.log_softmax(logits.float(), -1)
        picked = log_probs.gather(-1, batch["targets"].clamp(min=0).unsqueeze(-1)).squeeze(-1)
        for i, values, targets in zip(rows, picked, batch["targets"], strict=True):
            found[i] = values[targets != IGNORED].tolist()
    return found


def rate(passed: int, n: int) -> dict[str, Any]:
    """A success rate with its 95% Wilson interval, as {"passed", "n", "rate", "low", "high"}; n may be 0."""
    if n == 0:
        return {"passed": 0, "n": 0, "rate": None, "low": 0.0, "high": 1.0}
    low, high = intervals.wilson(passed, n)
    return {"passed": passed, "n": n, "rate": round(passed / n, 4), "low": round(low, 4), "high": round(high, 4)}
