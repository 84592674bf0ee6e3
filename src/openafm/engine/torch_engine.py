"""The reference engine: a package or a model folder in torch, weights dequantized once, adapters switched by name.

`openafm chat` and `openafm serve` use it where the native engine is not built; that is held against it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openafm.adapters.lora import detach, load_adapter
from openafm.adapters.store import Adapter, AdapterStore
from openafm.engine.package import Package, find_package
from openafm.engine.protocol import TOP_LOGPROBS
from openafm.engine.together import OneByOne
from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.model.generate import choice, generate, stream
from openafm.model.generation import Choice, Generation
from openafm.tokenizer import Tokenizer
from openafm.tokenizer import load as load_tokenizer


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Python's error where torch has its own for want of memory."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        raise


class TorchEngine:
    """Decodes with one model; a request with another adapter than the last one's swaps the low-rank matrices."""

    options = frozenset({TOP_LOGPROBS})

    def __init__(self, model: Transformer, tokenizer: Tokenizer, adapters: Mapping[str, Adapter] | None = None):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_length = model.config.max_length
        self._adapters = dict(adapters or {})
        self._current: str | None = None
        self._stop = {tokenizer.eos_id, tokenizer.end_of_turn_id}

    @classmethod
    def load(cls, folder: Path) -> "TorchEngine":
        """Open a package (or the folder that holds `model.afm`) or a model folder, with the tokenizer in it."""
        found = find_package(folder)
        if found is None:
            return cls(load_model(folder), load_tokenizer(folder))
        return cls.open(Package(found))

    @classmethod
    def open(cls, package: Package) -> "TorchEngine":
        """Take weights, tokenizer and adapters from a package that is open."""
        package.verify_weights()
        adapters = {name: package.adapters.load(name) for name in package.adapters.names()}
        return cls(package.model(), load_tokenizer(package.folder), adapters)

    def adapters(self) -> list[str]:
        """Names of the adapters in memory, sorted."""
        return sorted(self._adapters)

    def read_adapter(self, store: AdapterStore, name: str) -> Adapter:
        """Read an adapter for `put_adapter`, in any thread. Raises ValueError where it is damaged."""
        return store.load(name)

    def put_adapter(self, name: str, read: Adapter) -> None:
        """Take an adapter in, in place of an older one of that name. Raises ValueError where it does not fit."""
        self.remove_adapter(name)
        self._current = None
        load_adapter(self.model, read.state, read.alpha)
        self._adapters[name], self._current = read, name

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter, if it is there."""
        if name == self._current:
            self.use(None)
        self._adapters.pop(name, None)

    def use(self, adapter: str | None) -> Transformer:
        """Return the model with this adapter on, or none. Raises ValueError for an unknown name."""
        if adapter != self._current:
            if adapter is None:
                detach(self.model)
            elif adapter in self._adapters:
                load_adapter(self.model, self._adapters[adapter].state, self._adapters[adapter].alpha)
            else:
                raise ValueError(f"no adapter {adapter!r}: there are {', '.join(self.adapters()) or 'none'}")
            self._current = adapter
        return self.model.eval()

    def generate(self, prompt: list[int], *, max_tokens: int, **options: Any) -> Iterator[int]:
        """Yield the tokens of `choices`."""
        return (made.token for made in self.choices(prompt, max_tokens=max_tokens, **options))

    def choices(
        self,
        prompt: list[int],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        adapter: str | None = None,
        top_logprobs: int | None = None,
        **options: Any,
    ) -> Iterator[Choice]:
        """Yield the answer one token at a time, the stop token last where the model ends by itself.

        One answer at a time: a request with another adapter waits for this one to end. Raises ValueError for a
        grammar, and for whatever else only the native engine does.
        """
        if asked := [name for name, value in options.items() if value is not None]:
            raise ValueError(f"torch does not carry out {', '.join(asked)}: build the native engine (openafm doctor)")
        model = self.use(adapter)
        sampling: dict[str, Any] = {"temperature": temperature, "seed": seed, "top_logprobs": top_logprobs}
        with _memory_errors():
            for made in stream(model, prompt, max_tokens=max_tokens, stop_ids=set(), **sampling):
                yield made
                if made.token in self._stop:
                    return

    @torch.inference_mode()
    def read(self, text: list[int], adapter: str | None, told: int | None) -> NDArray[np.float32] | list[Choice]:
        """The mean of a text's last hidden states without the token that begins it, or what its tokens were told."""
        with _memory_errors():
            model = self.use(adapter)
            states = model.hidden(torch.tensor([text], device=model.model.embed_tokens.weight.device))
            if told is not None:
                rows = model.logits(states[0, :-1]).float()
                return [choice(token, row, told) for token, row in zip(text[1:], rows, strict=True)]
        return np.asarray(states[0, 1:].float().mean(0).cpu(), dtype=np.float32)

    def together(self) -> OneByOne:
        """A batch of one answer."""
        return OneByOne(self)

    def batch(
        self,
        prompts: Sequence[list[int]],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        adapter: str | None = None,
    ) -> list[Generation]:
        """Answer many prompts together, with log-probabilities."""
        return generate(
            self.use(adapter), prompts, max_tokens=max_tokens, stop_ids=self._stop, temperature=temperature, seed=seed
        )
