"""The C++ module of native/module.cpp. Halves and bfloat16 are passed as uint16; arrays are contiguous."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_TOKENS: int
MAX_RANK: int

def available_kernels() -> list[str]: ...
def best_means(
    values: NDArray[np.float32], weights: NDArray[np.float64], k: int, candidates: int, rounds: int
) -> NDArray[np.float64]: ...
def nearest(values: NDArray[np.float32], edges: NDArray[np.float64]) -> NDArray[np.uint8]: ...

class Sampler:
    def __init__(
        self,
        *,
        temperature: float,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        alternatives: int = 0,
    ) -> None: ...
    def read(self, prompt: Sequence[int]) -> None: ...
    def chances(
        self, model: Model, logits: NDArray[np.float32], mask: NDArray[np.uint32] | None = None
    ) -> NDArray[np.float32]: ...

class Proposal:
    tokens: list[int]
    def __init__(self, tokens: Sequence[int]) -> None: ...
    def cut(self, count: int) -> None: ...

class Model:
    kernels: str
    threads: int
    repeated: int
    weight_bytes: int
    cache_bytes: int
    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        d_ff: int,
        rope_base: float,
        norm_eps: float,
        qk_norm: bool,
        max_length: int,
        threads: int,
        kernels: str = "",
        activations: str = "",
        cache: str = "",
    ) -> None: ...
    def set_palettized(
        self, name: str, packed: NDArray[np.uint8], tables: NDArray[np.uint16], bits: int, group: int, columns: int
    ) -> None: ...
    def set_int8(self, name: str, values: NDArray[np.int8], scales: NDArray[np.float32]) -> None: ...
    def set_float(self, name: str, values: NDArray[np.float32]) -> None: ...
    def set_half(self, name: str, values: NDArray[np.uint16]) -> None: ...
    def set_bfloat(self, name: str, values: NDArray[np.uint16]) -> None: ...
    def set_norm(self, name: str, gain: NDArray[np.float32]) -> None: ...
    def check(self) -> None: ...
    def set_adapter(
        self, name: str, projection: str, a: NDArray[np.uint16], b: NDArray[np.uint16], scale: float
    ) -> None: ...
    def remove_adapter(self, name: str) -> None: ...
    def create(self) -> int: ...
    def fork(self, id: int) -> int: ...
    def release(self, id: int) -> None: ...
    def truncate(self, id: int, length: int) -> None: ...
    def limit_cache(self, bytes: int) -> None: ...
    def length(self, id: int) -> int: ...
    def logits(
        self,
        sequences: Sequence[int],
        tokens: Sequence[Sequence[int]],
        adapters: Sequence[str | None],
        every: bool = False,
    ) -> NDArray[np.float32]: ...
    def hidden(
        self, sequences: Sequence[int], tokens: Sequence[Sequence[int]], adapters: Sequence[str | None]
    ) -> NDArray[np.float32]: ...
    def choose(
        self,
        sequences: Sequence[int],
        tokens: Sequence[Sequence[int]],
        adapters: Sequence[str | None],
        samplers: Sequence[Sampler],
        masks: Callable[[], NDArray[np.uint32]] | None = None,
    ) -> list[tuple[int, float, list[tuple[int, float]]]]: ...
    def draft(
        self, sequence: int, tokens: Sequence[int], adapter: str | None, sampler: Sampler, count: int
    ) -> Proposal: ...
    def take(
        self,
        sequence: int,
        tokens: Sequence[int],
        adapter: str | None,
        sampler: Sampler,
        proposal: Proposal,
        masks: Callable[[], NDArray[np.uint32]] | None = None,
    ) -> list[tuple[int, float, list[tuple[int, float]]]]: ...
