"""Tokens a second of the native engine: decoding one sequence, a batch of 8 with 8 adapters, and prefill of 512 tokens;
and with a `--context` of so many tokens (0: without), whose keys and values are in float16 or int8. The limit is what
as many threads of torch read to sum a plain array.

Random weights in the shape of a preset; `bits` over all projections, 4-bit layers with every so many at 2 bits.
Example: openafm bench decode --shape afm-on-device --bits 3.7 --json
"""

import argparse
import time
from typing import Any

import numpy as np
import torch

from harness import alternate, options, show, timed
from openafm.engine import _native
from openafm.engine.package import EMBEDDING
from openafm.files import cores
from openafm.model import PRESETS, ModelConfig
from openafm.model.transformer import Transformer

RANK, BATCH, PREFILL = 16, 8, 512


def shape_of(given: argparse.Namespace) -> ModelConfig:
    """The preset `shape`, with so many of its `layers`; 0 is all."""
    shape = PRESETS[given.shape]
    return shape.model_copy(update={"n_layers": given.layers or shape.n_layers})


def sizes(shape: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of every tensor by name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Transformer(shape).state_dict().items()}


def norms(shape: ModelConfig) -> dict[str, np.ndarray]:
    """Gains that change nothing."""
    return {name: np.ones(size, np.float32) for name, size in sizes(shape).items() if len(size) == 1}


def projections(shape: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of every projection."""
    matrices = {name.removesuffix(".weight"): size for name, size in sizes(shape).items() if len(size) == 2}
    return {name: size for name, size in matrices.items() if name != EMBEDDING}


def random_model(shape: ModelConfig, bits: float, **options: Any) -> "_native.Model":
    """Weights without meaning; the 2-bit layers are those that make `bits` over all. `options` are the engine's."""
    rng = np.random.default_rng(0)
    model = _native.Model(**shape.model_dump(), **options)
    small = total = 0
    for name, (rows, columns) in projections(shape).items():
        total += rows * columns
        stored = 2 if 4 * total - 2 * small - 2 * rows * columns >= bits * total else 4
        small += rows * columns if stored == 2 else 0
        codes = rng.integers(0, 256, (rows, -(-columns * stored // 8)), np.uint8)
        tables = np.sort(rng.normal(0, columns**-0.5, (-(-rows // 16), 2**stored)), 1).astype(np.float16)
        model.set_palettized(name, codes, tables.view(np.uint16), stored, 16, columns)
    for name, gain in norms(shape).items():
        model.set_norm(name, gain)
    values = rng.integers(-127, 128, (shape.vocab_size, shape.d_model), np.int8)
    model.set_int8(EMBEDDING, values, np.full(shape.vocab_size, 1e-3, np.float32))
    model.check()
    return model


def add_adapters(model: "_native.Model", shape: ModelConfig, count: int) -> None:
    """So many adapters of rank RANK on every projection."""
    rng = np.random.default_rng(1)
    for index in range(count):
        for name, (rows, columns) in projections(shape).items():
            a, b = (rng.normal(0, 0.01, size).astype(np.float16) for size in ((RANK, columns), (rows, RANK)))
            model.set_adapter(f"adapter{index}", name, a.view(np.uint16), b.view(np.uint16), 1.0)


def decoding(model: "_native.Model", adapters: list[str | None], tokens: int, beginning: int | None = None) -> float:
    """Tokens a second of a sequence for each adapter together, after a short text, or one that goes on `beginning`."""
    sequences = [model.create() if beginning is None else model.fork(beginning) for _ in adapters]
    samplers = [_native.Sampler(temperature=0.0) for _ in sequences]
    chosen = model.choose(sequences, [[7, 8, 9]] * len(sequences), adapters, samplers)
    started = time.perf_counter()
    for _ in range(tokens):
        chosen = model.choose(sequences, [[token] for token, _, _ in chosen], adapters, samplers)
    seconds = time.perf_counter() - started
    for sequence in sequences:
        model.release(sequence)
    return len(sequences) * tokens / seconds


def prefilling(model: "_native.Model", count: int) -> float:
    """Tokens of a prompt of so many a second."""
    sequence = model.create()
    seconds = timed(lambda: model.logits([sequence], [list(range(1, count + 1))], [None]))
    model.release(sequence)
    return count / seconds


def switching(model: "_native.Model", first: str, second: str, tokens: int = 64) -> float:
    """Milliseconds that a token takes longer where its adapter is not the one of the token before: medians."""
    sequence, sampler = model.create(), _native.Sampler(temperature=0.0)
    seconds = [
        timed(lambda name=name: model.choose([sequence], [[7]], [name], [sampler]))
        for name in [first, first, second, second] * (tokens // 4)
    ]
    model.release(sequence)
    return 1000 * float(np.median(seconds[2::2]) - np.median(seconds[1::2]))


def after(model: "_native.Model", context: int) -> int:
    """A sequence of so many tokens."""
    sequence = model.create()
    for start in range(0, context, _native.MAX_TOKENS):
        model.logits([sequence], [list(range(1, min(context - start, _native.MAX_TOKENS) + 1))], [None])
    return sequence


def read_bandwidth(threads: int, size: int = 1 << 30) -> float:
    """Bytes a second that so many threads read of `size` bytes: the limit of decoding one sequence."""
    torch.set_num_threads(threads)
    values = torch.ones(size // 4)
    return size / timed(values.sum)


def main() -> None:
    given = options(__doc__, shape="afm-on-device", bits=3.7, tokens=16, threads=0, layers=0, kernels="",
                    activations="", context=4096)  # fmt: skip
    shape = shape_of(given)
    threads = given.threads or cores()
    engine = {"threads": threads, "kernels": given.kernels}
    model = random_model(shape, given.bits, activations=given.activations, **engine)
    add_adapters(model, shape, BATCH)
    names: list[str | None] = [f"adapter{index}" for index in range(BATCH)]
    none: list[str | None] = [None] * BATCH
    figures = alternate(
        {
            "one sequence": lambda: decoding(model, none[:1], given.tokens),
            "one sequence, rank-16 adapter": lambda: decoding(model, names[:1], given.tokens),
            "batch of 8": lambda: decoding(model, none, given.tokens),
            "batch of 8, 8 adapters": lambda: decoding(model, names, given.tokens),
            "prefill of 512": lambda: prefilling(model, PREFILL),
            "limit": lambda: read_bandwidth(threads) / model.weight_bytes,
        },
        given.repeats,
    )
    limit, alone = (float(np.median(values)) for values in (figures.pop("limit"), figures["one sequence"]))
    detail = {
        "kernels": model.kernels, "threads": threads, "weights_mb": round(model.weight_bytes / 1e6, 1),
        "read_gb_a_second": round(alone * model.weight_bytes / 1e9, 2), "repeated_pieces": model.repeated,
        "shape": given.shape, "activations": given.activations or "int8", "layers": shape.n_layers,
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in detail.items()))
    detail["adapter_switch_ms"] = round(switching(model, "adapter0", "adapter1"), 3)
    show("decode", "tokens/s", figures, limit=limit, limit_is="reading the weights", detail=detail, as_json=given.json)
    if given.context:
        long_contexts(shape, given, engine)


def long_contexts(shape: ModelConfig, given: argparse.Namespace, engine: dict[str, Any]) -> None:
    """One sequence of `context` tokens with its keys and values in float16 and in int8."""
    models = {kv: random_model(shape, given.bits, cache=kv, **engine) for kv in ("int8", "float16")}
    long = {kv: after(model, given.context) for kv, model in models.items()}
    contestants = {
        f"{given.context} tokens of context, {kv}": lambda kv=kv: decoding(models[kv], [None], given.tokens, long[kv])
        for kv in models
    }
    detail = {f"cache_mb_{kv}": round(model.cache_bytes / 1e6, 1) for kv, model in models.items()}
    figures = alternate(contestants, given.repeats)
    show("decode_long", "tokens/s", figures, limit=None, detail=detail, as_json=given.json)


if __name__ == "__main__":
    main()
