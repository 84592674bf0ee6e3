"""The native engine: decodes packages and model folders in C++ (native/, docs/engine.md).

`openafm chat` and `openafm serve` use it where it is built. Weights stay as small as they are stored; sequences with
different adapters share a step; a prompt that begins like an earlier one is only computed from where it differs.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from openafm.adapters.store import Adapter
from openafm.engine.package import EMBEDDING, Package, find_package
from openafm.files import cores
from openafm.model import ModelConfig
from openafm.model.checkpoint import load_config
from openafm.model.generate import Generation
from openafm.tokenizer import Tokenizer
from openafm.tokenizer import load as load_tokenizer

try:
    from openafm.engine import _native
except ImportError:  # no compiler where openafm was installed
    _native = None  # type: ignore[assignment,unused-ignore]

KERNELS = "OPENAFM_KERNELS"
"""Environment variable that forces an instruction set: one of `_native.available_kernels()`."""
THREADS = "OPENAFM_THREADS"
"""Environment variable with the number of threads; unset, one for each core this process may use."""
TOGETHER = 16
"""Most sequences of a batch in one step."""
KEPT = 4
"""Finished sequences whose keys and values are kept for prompts that begin like them."""


def missing() -> str | None:
    """Why there is no native engine here, with the remedy; None where there is one."""
    if _native is not None:
        return None
    return "the native engine is not built: install a C++ compiler (openafm doctor says how) and openafm again"


def kernels() -> list[str]:
    """Instruction sets that this processor runs, the best first; none where the engine is not built."""
    return list(_native.available_kernels()) if _native is not None else []


@dataclass
class _Kept:
    """A sequence in the model's cache: all of its tokens are computed."""

    id: int
    tokens: list[int]
    adapter: str | None


@dataclass
class _Running:
    """One answer of a batch that is being made."""

    index: int
    id: int
    sampler: Any
    feed: list[int]
    answer: Generation = field(default_factory=Generation)


class NativeEngine:
    """Decodes with one model; each request names its adapter, and those of a batch may differ."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        threads: int | None = None,
        kernels: str | None = None,
        float_activations: bool = False,
    ):
        """An engine without weights yet: `load` fills it. `float_activations` computes with unrounded activations.

        Raises ValueError for a shape or kernels that it cannot run, and where it is not built.
        """
        if reason := missing():
            raise ValueError(reason)
        threads = threads or int(os.environ.get(THREADS, "0")) or cores()
        self.config, self.tokenizer, self.max_length = config, tokenizer, config.max_length
        self.model = _native.Model(
            **config.model_dump(),
            threads=threads,
            kernels=os.environ.get(KERNELS, "") if kernels is None else kernels,
            float_activations=float_activations,
        )
        self._adapters: list[str] = []
        self._kept: list[_Kept] = []
        self._stop = {tokenizer.eos_id, tokenizer.end_of_turn_id}

    @classmethod
    def load(cls, folder: Path, **options: Any) -> "NativeEngine":
        """Open a package (or the folder that holds `model.afm`) or a model folder, with the tokenizer in it."""
        found = find_package(folder)
        if found is None:
            engine = cls(load_config(folder), load_tokenizer(folder), **options)
            engine._read_folder(folder / "model.safetensors")
            return engine
        return cls.open(Package(found), **options)

    @classmethod
    def open(cls, package: Package, **options: Any) -> "NativeEngine":
        """Take weights, tokenizer and adapters from a package that is open."""
        engine = cls(package.config, load_tokenizer(package.folder), **options)
        engine._read_package(package)
        for name in package.adapters.names():
            engine.add_adapter(name, package.adapters.load(name))
        return engine

    def _read_package(self, package: Package) -> None:
        embedding = package.embedding()
        self.model.set_int8(EMBEDDING, embedding.values, embedding.scales.astype(np.float32))
        for name, layer in package.layers.items():
            indices, tables = package.packed(name)
            self.model.set_palettized(name, indices, tables.view(np.uint16), layer.bits, layer.group, layer.shape[1])
        for name, gain in package.norms().items():
            self.model.set_norm(name, gain)
        self.model.check()

    def _read_folder(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  it is no mapping
                    self.set_weight(name, file.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or missing; make it again ({error})") from error
        self.model.check()

    def set_weight(self, name: str, weight: torch.Tensor) -> None:
        """Put a tensor of a checkpoint, in float32, bfloat16 or float16, in its place."""
        matrix = name.removesuffix(".weight")
        if weight.ndim == 1:
            self.model.set_norm(name, weight.float().numpy())
        elif weight.dtype == torch.float32:
            self.model.set_float(matrix, weight.numpy())
        else:
            put = {torch.bfloat16: self.model.set_bfloat, torch.float16: self.model.set_half}[weight.dtype]
            put(matrix, weight.view(torch.uint16).numpy())

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Take an adapter in, in place of an older one of that name. Raises ValueError where it does not fit."""
        self.remove_adapter(name)
        for layer in sorted({key.rpartition(".")[0] for key in adapter.state}):
            a, b = (adapter.state[f"{layer}.{half}"].half().contiguous() for half in ("lora_a", "lora_b"))
            scale = adapter.alpha / a.shape[0]
            self.model.set_adapter(name, layer, a.view(torch.uint16).numpy(), b.view(torch.uint16).numpy(), scale)
        self._adapters = sorted({*self._adapters, name})

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter, if it is there, and what was computed with it."""
        self.model.remove_adapter(name)
        self._adapters = [other for other in self._adapters if other != name]
        for kept in [kept for kept in self._kept if kept.adapter == name]:
            self._kept.remove(kept)
            self.model.release(kept.id)

    def adapters(self) -> list[str]:
        """Names of the adapters in memory, sorted."""
        return list(self._adapters)

    def logits(self, tokens: list[int], adapter: str | None = None) -> NDArray[np.float32]:
        """Return next-token logits `(tokens, vocab)` after each token of a text of at most 512."""
        self._known(adapter)
        sequence = self.model.create()
        try:
            found: NDArray[np.float32] = self.model.logits([sequence], [tokens], [adapter], every=True)
            return found
        finally:
            self.model.release(sequence)

    def generate(
        self,
        prompt: list[int],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        adapter: str | None = None,
        **cuts: Any,
    ) -> Iterator[int]:
        """Yield the answer's tokens, the stop token last where the model ends by itself.

        `cuts` may be `top_k`, `top_p`, `min_p`, `presence_penalty`, `frequency_penalty` and `repetition_penalty`.
        """
        self._known(adapter)
        sampler = _native.Sampler(temperature=temperature, seed=seed, **cuts)
        sequence, done = self._begin(prompt, adapter)
        tokens = list(prompt)
        try:
            feed = self._prefill(sequence, prompt[done:], adapter)
            for _ in range(max_tokens):
                token = self.model.choose([sequence], [feed], [adapter], [sampler])[0][0]
                tokens.append(token)
                feed = [token]
                yield token
                if token in self._stop:
                    return
        finally:
            self._keep(_Kept(sequence, tokens[: self.model.length(sequence)], adapter))

    def batch(
        self,
        prompts: Sequence[list[int]],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        adapter: str | None = None,
        adapters: Sequence[str | None] | None = None,
    ) -> list[Generation]:
        """Answer many prompts together, with log-probabilities; `adapters` names one for each prompt instead.

        Each answer is drawn with a seed of its own, so it does not depend on what it shares its steps with.
        """
        named = [adapter] * len(prompts) if adapters is None else list(adapters)
        for name in named:
            self._known(name)
        answers = [Generation() for _ in prompts]
        running: list[_Running] = []
        waiting = iter(range(len(prompts)))
        try:
            while True:
                while len(running) < TOGETHER and (index := next(waiting, None)) is not None:
                    sampler = _native.Sampler(temperature=temperature, seed=seed * 1_000_003 + index)
                    sequence, done = self._begin(prompts[index], named[index])
                    running.append(_Running(index, sequence, sampler, [], answers[index]))
                    running[-1].feed = self._prefill(sequence, prompts[index][done:], named[index])
                if not running:
                    return answers
                running = self._advance(running, named, max_tokens)
        finally:
            for row in running:
                self.model.release(row.id)

    def _advance(self, running: list[_Running], named: list[str | None], max_tokens: int) -> list[_Running]:
        """One token for each answer; those that go on. Feeds longer than one token go through steps of their own."""
        chosen = self.model.choose(
            [row.id for row in running],
            [row.feed for row in running],
            [named[row.index] for row in running],
            [row.sampler for row in running],
        )
        going = []
        for row, (token, logprob) in zip(running, chosen, strict=True):
            row.feed = [token]
            row.answer.logprobs.append(logprob)
            if token in self._stop:
                row.answer.stop = token
            else:
                row.answer.tokens.append(token)
            if row.answer.finished or len(row.answer.tokens) >= max_tokens:
                self.model.release(row.id)
            else:
                going.append(row)
        return going

    def _known(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._adapters:
            raise ValueError(f"no adapter {adapter!r}: there are {', '.join(self._adapters) or 'none'}")

    def _begin(self, prompt: list[int], adapter: str | None) -> tuple[int, int]:
        """Return a sequence, and how many of the prompt's tokens it has from one kept: never all, one is to be fed."""
        if not prompt:
            raise ValueError("an empty prompt: give at least the token that begins a text")
        best, common = None, 0
        for kept in self._kept:
            if kept.adapter == adapter and (same := _common(kept.tokens, prompt[:-1])) > common:
                best, common = kept, same
        if best is None:
            return self.model.create(), 0
        sequence = self.model.fork(best.id)
        self.model.truncate(sequence, common)
        return sequence, common

    def _prefill(self, sequence: int, tokens: list[int], adapter: str | None) -> list[int]:
        """Compute all tokens but the last, which the first choice is made after; return that."""
        before, most = tokens[:-1], int(_native.MAX_TOKENS)
        for start in range(0, len(before), most):
            self.model.logits([sequence], [before[start : start + most]], [adapter])
        return tokens[-1:]

    def _keep(self, kept: _Kept) -> None:
        self._kept.append(kept)
        while len(self._kept) > KEPT:
            self.model.release(self._kept.pop(0).id)


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def unfit(config: ModelConfig, ranks: Mapping[str, int]) -> str | None:
    """Why the native engine cannot run a model of this shape with adapters of these ranks, or None."""
    if config.head_dim % 16 or config.head_dim > 256:
        return f"head_dim {config.head_dim} is no multiple of 16 up to 256"
    too_high = [name for name, rank in ranks.items() if rank > int(_native.MAX_RANK)]
    return f"the adapter {too_high[0]} has a rank above {_native.MAX_RANK}" if too_high else None
