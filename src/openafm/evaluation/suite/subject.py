"""The model that is measured: opened when a task first needs it, asked the way it was trained to be asked."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from openafm.engine import open_engine
from openafm.engine.package import find_package
from openafm.evaluation.evaluate import open_model
from openafm.files import digest
from openafm.model import Transformer
from openafm.model.generate import generate
from openafm.sampling.sampler import Completion, EngineSampler, Prompt, Sampler, TorchSampler, prompt_tokens
from openafm.tokenizer import Message, Tokenizer

NOT_THE_MODEL = ("manifest.json", "metrics.jsonl", "card.json")
"""Files of a model folder that change nothing it computes."""
TOKENS = 8192
"""Of texts that are scored together."""
LOGITS = 8_000_000
"""Most logits held at once (32 MB)."""


@dataclass(frozen=True)
class Subject:
    """A model folder or package with one of its adapters, or none."""

    path: Path
    name: str
    adapter: str = ""
    talks: bool = True
    """It answers chats; else it continues text and is asked by `Question: ... Answer:`."""
    engine: Literal["torch", "native"] = "torch"
    """What writes its answers; scores are always torch's."""
    batch: int = 32

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and bytes of all that it computes with, the adapter's name and how it is asked."""
        folder = find_package(self.path) or self.path
        total = hashlib.sha256(f"{self.adapter}\n{self.talks}\n{self.engine}\n".encode())
        for file in sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in NOT_THE_MODEL):
            total.update(f"{file.relative_to(folder).as_posix()} {digest(file)}\n".encode())
        return total.hexdigest()

    @cached_property
    def torch(self) -> TorchSampler:
        """The model in torch, float32: the reference that scores texts."""
        return open_model(self.path, self.adapter, self.batch)

    @cached_property
    def _writer(self) -> Sampler:
        if self.engine == "torch":
            return self.torch
        return EngineSampler(open_engine(self.path, "native"), self.adapter or None)

    @property
    def model(self) -> Transformer:
        """Its weights."""
        return self.torch.model

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.torch.tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.model.config.max_length

    def ask(
        self, chats: Sequence[Sequence[Message]], max_tokens: int, *, n: int = 1, temperature: float = 0.0
    ) -> list[list[Completion]]:
        """Answer each chat `n` times. One that leaves no room for the answer gets an empty, unfinished one."""
        prompts: list[Prompt] = [chat if self.talks else plain(chat) for chat in chats]
        made = self.complete(prompts, max_tokens, n=n, temperature=temperature)
        return made if self.talks else [[_until_the_next(answer) for answer in row] for row in made]

    def complete(
        self, prompts: Sequence[Prompt], max_tokens: int, *, n: int = 1, temperature: float = 0.0
    ) -> list[list[Completion]]:
        """Continue texts, or answer rendered chats, as `ask` does but word for word."""
        most = self.context_length - max_tokens
        fit = [i for i, prompt in enumerate(prompts) if len(prompt_tokens(self.tokenizer, prompt)) <= most]
        chosen = [prompts[i] for i in fit]
        made = self._writer.sample(chosen, n, max_tokens=max_tokens, temperature=temperature) if chosen else []
        found = [[Completion("", finished=False) for _ in range(n)] for _ in prompts]
        for i, row in zip(fit, made, strict=True):
            found[i] = row
        return found

    def continue_tokens(self, prompts: Sequence[list[int]], max_tokens: int) -> list[Completion]:
        """Continue token lists greedily, such as chats that a template rendered with tools."""
        stop = {self.tokenizer.eos_id, self.tokenizer.end_of_turn_id}
        fit = [i for i, prompt in enumerate(prompts) if len(prompt) + max_tokens <= self.context_length]
        rows = [prompts[i] for i in fit]
        if isinstance(self._writer, EngineSampler):
            made = self._writer.engine.batch(rows, max_tokens=max_tokens, temperature=0.0, adapter=self.adapter or None)
        else:
            made = generate(self.model, rows, max_tokens=max_tokens, stop_ids=stop, temperature=0.0, batch=self.batch)
        found = [Completion("", finished=False)] * len(prompts)
        for i, row in zip(fit, made, strict=True):
            found[i] = Completion(self.tokenizer.decode(row.tokens), row.tokens, row.logprobs, row.finished)
        return found

    def logprobs(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """For each (context, continuation) of tokens: log p(continuation | context) in nats, and whether it is what
        greedy decoding would write."""
        return logprobs(self.model, pairs)


def plain(chat: Sequence[Message]) -> str:
    """A chat as text for a model that only continues text."""
    *before, last = chat
    lead = "".join(f"{message['content']}\n\n" for message in before)
    return f"{lead}Question: {last['content']}\nAnswer:"


def _until_the_next(answer: Completion) -> Completion:
    """An answer of a model that goes on with the next question: its own part counts, and ends there."""
    text, mark, _ = answer.text.partition("\nQuestion:")
    return Completion(text, finished=bool(mark) or answer.finished)


@torch.inference_mode()
def logprobs(model: Transformer, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """As `Subject.logprobs`; both parts of a pair need a token. Equal inputs are read once.

    Rows are padded on the right: under causal attention what follows cannot change what precedes.
    """
    wanted: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        wanted.setdefault(tuple(context + continuation[:-1]), []).append(index)
    found = [(0.0, False)] * len(pairs)
    for rows in _batches(sorted(wanted, key=lambda row: (len(row), row))):
        longest = len(rows[-1])
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        hidden = model.hidden(padded.to(model.model.embed_tokens.weight.device))  # (rows, longest, d_model)
        for states, row in zip(hidden, rows, strict=True):
            for index in wanted[row]:
                context, continuation = pairs[index]
                found[index] = _judged(model, states[len(context) - 1 : len(row)], continuation)
    return found


def _batches(rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Rows, sorted by length, in groups of at most `TOKENS`, padding counted; the longest first."""
    while rows:
        count = max(1, TOKENS // len(rows[-1]))
        yield rows[-count:]
        rows = rows[:-count]


def _judged(model: Transformer, states: Tensor, tokens: list[int]) -> tuple[float, bool]:
    """log p of `tokens` and whether they are the likeliest, from the hidden states `(tokens, d_model)` before them.

    Logits are taken in float32 whatever the model's precision: bfloat16 knows steps of 1/8 where logits are tens.
    """
    weight = model.model.embed_tokens.weight
    targets, nats, greedy = torch.tensor(tokens, device=weight.device), 0.0, True
    together = max(1, LOGITS // model.config.vocab_size)
    for part, wanted in zip(states.split(together), targets.split(together), strict=True):
        logits = F.linear(part.float(), weight.float())  # (tokens, vocab)
        nats += float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum())
        greedy = greedy and bool((logits.argmax(-1) == wanted).all())
    return nats, greedy
