"""The native engine: decodes packages and model folders in C++ (native/, docs/engine.md), without torch.

`openafm chat` and `openafm serve` use it where it is built. Weights stay as small as they are stored; sequences with
different adapters share a step; a prompt that begins like an earlier one is only computed from where it differs.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from openafm.adapters.store import AdapterStore
from openafm.engine.guidance import Guide, vocabulary
from openafm.engine.loading import read_folder, read_package
from openafm.engine.package import Package, find_package
from openafm.engine.protocol import CUTS, PENALTIES, TOP_LOGPROBS, Row
from openafm.engine.speculation import Draft, LookUp, Plain, Proposer, common, fits
from openafm.engine.together import Computed, Together
from openafm.files import cores, free_memory
from openafm.model.config import ModelConfig, load_config
from openafm.model.generation import Choice, Generation
from openafm.tokenizer import Tokenizer
from openafm.tokenizer import load as load_tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

try:
    from openafm.engine import _native
except ImportError:  # no compiler where openafm was installed
    _native = None  # type: ignore[assignment,unused-ignore]

Result = TypeVar("Result")
KERNELS = "OPENAFM_KERNELS"
"""Environment variable that forces an instruction set: one of `_native.available_kernels()`."""
THREADS = "OPENAFM_THREADS"
"""Environment variable with the number of threads; unset, one for each core this process may use."""
ACTIVATIONS = "OPENAFM_ACTIVATIONS"
"""Environment variable: what a projection reads is rounded to `int8` (unset) or `int16`, or stays `float32`."""
KV = "OPENAFM_KV"
"""Environment variable: keys and values in `float16` (unset) or `int8`."""
KV_BYTES = "OPENAFM_KV_BYTES"
"""Environment variable: most bytes of all keys and values, the kept ones too; unset, half of what memory is free."""
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


class NativeEngine:
    """Decodes with one model; each request names its adapter, and those of a batch may differ."""

    options = frozenset({TOP_LOGPROBS, "grammar", *CUTS, *PENALTIES})

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        threads: int | None = None,
        kernels: str | None = None,
        activations: str | None = None,
        kv: str | None = None,
        draft: "NativeEngine | Literal['lookup'] | None" = None,
    ):
        """An engine without weights yet: `load` fills it.

        `activations` are rounded to `int8` or `int16`, or stay `float32`; `kv` is the type of keys and values:
        `float32`, `float16` or `int8`; `draft` proposes the tokens of single answers (openafm.engine.speculation).
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
            activations=os.environ.get(ACTIVATIONS, "") if activations is None else activations,
            cache=os.environ.get(KV, "") if kv is None else kv,
        )
        self.most_tokens = int(_native.MAX_TOKENS)
        """Of one step."""
        self._adapters: list[str] = []
        self._kept: list[Computed] = []
        self.stop = {tokenizer.eos_id, tokenizer.end_of_turn_id}
        self._vocabulary: LLTokenizer | None = None
        self._draft = draft
        if isinstance(draft, NativeEngine):
            fits(self, draft)

    @classmethod
    def load(cls, folder: Path, *, int8: bool = False, **options: Any) -> "NativeEngine":
        """Open a package (or the folder that holds `model.afm`) or a model folder, with the tokenizer in it.

        `int8` rounds a model folder's matrices to int8 with a scale for each row; a package's are small already.
        """
        found = find_package(folder)
        if found is not None:
            return cls.open(Package(found, verify=False), **options)
        engine = cls(load_config(folder), load_tokenizer(folder), **options)
        read_folder(engine.model, folder / "model.safetensors", int8)
        engine.limit(int(os.environ.get(KV_BYTES, "0")) or free_memory() // 2)
        return engine

    @classmethod
    def open(cls, package: Package, **options: Any) -> "NativeEngine":
        """Take weights, tokenizer and adapters from a package that is open."""
        engine = cls(package.config, load_tokenizer(package.folder), **options)
        read_package(engine.model, package)
        for name in package.adapters.names():
            engine.put_adapter(name, engine.read_adapter(package.adapters, name))
        engine.limit(int(os.environ.get(KV_BYTES, "0")) or free_memory() // 2)
        return engine

    def limit(self, most: int) -> None:
        """Let keys and values take so many bytes. Raises ValueError for less than one sequence of a page takes."""
        if most < 1:
            raise ValueError(f"{KV_BYTES}={most}: give a number of bytes")
        self.model.limit_cache(most)

    def read_adapter(self, store: AdapterStore, name: str) -> tuple[dict[str, NDArray[np.float16]], float]:
        """Read an adapter for `put_adapter`, in any thread. Raises ValueError where it is damaged."""
        return store.arrays(name)

    def put_adapter(self, name: str, read: tuple[Mapping[str, NDArray[np.float16]], float]) -> None:
        """Take an adapter in, in place of an older one of that name. Raises ValueError where it does not fit."""
        state, alpha = read
        self.remove_adapter(name)
        for layer in sorted({key.rpartition(".")[0] for key in state}):
            a, b = (np.ascontiguousarray(state[f"{layer}.{half}"], np.float16) for half in ("lora_a", "lora_b"))
            self.model.set_adapter(name, layer, a.view(np.uint16), b.view(np.uint16), alpha / a.shape[0])
        self._adapters = sorted({*self._adapters, name})

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter, if it is there, and what was computed with it."""
        self.model.remove_adapter(name)
        self._adapters = [other for other in self._adapters if other != name]
        for kept in [kept for kept in self._kept if kept[2] == name]:
            self._kept.remove(kept)
            self.model.release(kept[0])

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

    def generate(self, prompt: list[int], *, max_tokens: int, **options: Any) -> Iterator[int]:
        """Yield the tokens of `choices`."""
        return (choice.token for choice in self.choices(prompt, max_tokens=max_tokens, **options))

    def choices(self, prompt: list[int], *, max_tokens: int, **options: Any) -> Iterator[Choice]:
        """Yield the answer one token at a time, the stop token last where the model ends by itself.

        `options` are `temperature`, `seed`, `adapter`, `grammar` (of openafm.engine.guidance: the answer keeps to it),
        `top_k`, `top_p`, `min_p`, `presence_penalty`, `frequency_penalty`, `repetition_penalty` and `top_logprobs`.
        """
        batch = self.together()
        row = batch.add(prompt, max_tokens=max_tokens, **options)
        try:
            while not row.over:
                for _, made in batch.step():
                    yield from made
            if row.error:
                raise row.error
        finally:
            batch.remove(row)

    def together(self) -> Together:
        """Answers that are made together; there may be one such batch at a time."""
        return Together(self)

    def batch(
        self,
        prompts: Sequence[list[int]],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        adapter: str | None = None,
        adapters: Sequence[str | None] | None = None,
        grammar: str | None = None,
        **cuts: Any,
    ) -> list[Generation]:
        """Answer many prompts together, with log-probabilities; `adapters` names one for each prompt instead.

        Each answer is drawn with a seed of its own, so it does not depend on what it shares its steps with. Prompts
        that begin alike share the keys and values of their beginning. `grammar` and `cuts` as in `choices`.
        """
        named = [adapter] * len(prompts) if adapters is None else list(adapters)
        for name in named:
            self._known(name)
        answers = [Generation() for _ in prompts]
        options = {"max_tokens": max_tokens, "temperature": temperature, "grammar": grammar, **cuts}
        batch, rows, waiting = self.together(), dict[Row, int](), iter(range(len(prompts)))
        try:
            while True:
                while len(rows) < batch.room and (index := next(waiting, None)) is not None:
                    own = (seed * 1_000_003 + index) % 2**64
                    rows[batch.add(prompts[index], seed=own, adapter=named[index], **options)] = index
                if not rows:
                    return answers
                for row, made in batch.step():
                    answer = answers[rows[row]]
                    answer.tokens += [choice.token for choice in made]
                    answer.logprobs += [choice.logprob for choice in made if choice.logprob is not None]
                    if row.over:
                        if answer.tokens and answer.tokens[-1] in self.stop:
                            answer.stop = answer.tokens.pop()
                        del rows[row]
                        batch.remove(row)
                    if row.error:
                        raise row.error
        finally:
            for row in rows:
                batch.remove(row)

    def begin_answer(
        self,
        prompt: list[int],
        adapter: str | None,
        *,
        temperature: float = 1.0,
        seed: int = 0,
        grammar: str | None = None,
        top_logprobs: int | None = None,
        **cuts: Any,
    ) -> tuple[Guide | None, Any, Proposer]:
        """What an answer needs beside the model: its grammar's state, its sampler, and who guesses its tokens."""
        if not prompt:
            raise ValueError("an empty prompt: give at least the token that begins a text")
        self._known(adapter)
        guide = self._guide(grammar)
        sampler = _native.Sampler(temperature=temperature, seed=seed, alternatives=top_logprobs or 0, **cuts)
        sampler.read(prompt)
        return guide, sampler, self._proposer(prompt, temperature, seed, cuts)

    def _known(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._adapters:
            raise ValueError(f"no adapter {adapter!r}: there are {', '.join(self._adapters) or 'none'}")

    def _guide(self, grammar: str | None) -> Guide | None:
        if grammar is None:
            return None
        self._vocabulary = self._vocabulary or vocabulary(self.tokenizer, self.config.vocab_size)
        return Guide(self._vocabulary, grammar)

    def _proposer(self, prompt: list[int], temperature: float, seed: int, cuts: Mapping[str, Any]) -> Proposer:
        if self._draft is None:
            return Plain()
        if not isinstance(self._draft, NativeEngine):
            return LookUp()
        kept = {name: value for name, value in cuts.items() if name in CUTS}
        # Its draws must not be those that decide whether they are taken.
        return Draft(self._draft, prompt, {"temperature": temperature, "seed": (seed + 2**63) % 2**64, **kept})

    def within_memory(self, compute: Callable[[], Result]) -> Result:
        """Compute; where memory runs out, without the sequences that are only kept. Raises MemoryError at last."""
        while True:
            try:
                return compute()
            except MemoryError:
                if not self._kept:
                    raise
                self.model.release(self._kept.pop(0)[0])

    def begin(self, prompt: list[int], adapter: str | None, others: Iterable[Computed] = ()) -> int:
        """Return a sequence with what another one has of the prompt: never all of it, one token is to be fed."""
        best, shared = None, 0
        for sequence, tokens, name in (*self._kept, *others):
            computed = min(common(tokens, prompt[:-1]), self.model.length(sequence))
            if name == adapter and computed > shared:
                best, shared = sequence, computed
        if best is None:
            return self.model.create()
        made = self.model.fork(best)
        self.model.truncate(made, shared)
        return made

    def prefill(self, sequence: int, tokens: list[int], adapter: str | None) -> list[int]:
        """Compute all tokens but the last, which the first choice is made after; return that."""
        before = tokens[:-1]
        for start in range(0, len(before), self.most_tokens):
            self.model.logits([sequence], [before[start : start + self.most_tokens]], [adapter])
        return tokens[-1:]

    def keep(self, sequence: int, tokens: list[int], adapter: str | None) -> None:
        """Hold on to a sequence whose `tokens` are computed, for prompts that begin like it."""
        self._kept.append((sequence, tokens, adapter))
        while len(self._kept) > KEPT:
            self.model.release(self._kept.pop(0)[0])


def unfit(config: ModelConfig, ranks: Mapping[str, int]) -> str | None:
    """Why the native engine cannot run a model of this shape with adapters of these ranks, or None."""
    if config.head_dim % 16 or config.head_dim > 256:
        return f"head_dim {config.head_dim} is no multiple of 16 up to 256"
    too_high = [name for name, rank in ranks.items() if rank > int(_native.MAX_RANK)]
    return f"the adapter {too_high[0]} has a rank above {_native.MAX_RANK}" if too_high else None
