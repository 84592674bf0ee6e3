"""Tokens a second beside llama.cpp on the same shape and threads, on idle cores and with one core loaded by another.

Random weights: ours at `--bits` over all projections, without and with a rank-16 adapter; llama.cpp's Q4_0 and Q4_K_M
made by its own quantizer. Or a real model folder: `--model runs/X/import`, ours as it is stored, with `--kinds q4_1`.
Example: openafm bench llama_cpp_decode --shape afm-on-device --bits 3.7 --json
Needs llama-cpp-python (`pip install 'openafm[llama]'`).
"""

import ctypes
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

import decode
from harness import alternate, options, show, timed
from openafm.engine import NativeEngine
from openafm.files import cores
from openafm.model import ModelConfig
from openafm.serving.exporting import export
from openafm.serving.gguf_export import add_shape, tensor_name

SILENCE = llama_cpp.llama_log_callback(lambda *_: None)
"""llama.cpp tells of every tensor otherwise."""


def main() -> None:
    given = options(__doc__, shape="afm-on-device", bits=3.7, model="", kinds="q4_0,q4_k_m", tokens=16, prefill=512,
                    threads=0, layers=0, kernels="")  # fmt: skip
    threads = given.threads or cores()
    llama_cpp.llama_log_set(SILENCE, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "f16.gguf"
        if given.model:
            ours = NativeEngine.load(Path(given.model), threads=threads).model
            export(Path(given.model), source, "gguf", None, "f16")
            adapters: list[str | None] = [None]
        else:
            shape = decode.shape_of(given)
            ours = decode.random_model(shape, given.bits, threads=threads, kernels=given.kernels)
            decode.add_adapters(ours, shape, 1)
            adapters = [None, "adapter0"]
            write_random(shape, source)
        peers = {kind: quantized(source, kind) for kind in given.kinds.split(",")}
        source.unlink()
        llamas = {kind: opened(path, threads) for kind, path in peers.items()}
        contestants: dict[str, Callable[[], float]] = {}
        for load in ("idle", "loaded"):
            for name in adapters:
                label = f"ours{', rank-16 adapter' if name else ''}, {load}"
                contestants[label] = under(load, lambda name=name: decode.decoding(ours, [name], given.tokens))
            for kind, llama in llamas.items():
                contestants[f"llama.cpp {kind}, {load}"] = under(load, lambda x=llama: decoding(x, given.tokens))
        figures = alternate(contestants, given.repeats)
        detail = {"threads": threads, "kernels": ours.kernels, "weights_mb": round(ours.weight_bytes / 1e6, 1)}
        detail |= {f"{kind}_mb": round(path.stat().st_size / 1e6, 1) for kind, path in peers.items()}
        show("llama_cpp_decode", "tokens/s", figures, limit=None, detail=detail, as_json=given.json)
        prefills: dict[str, Callable[[], float]] = {"ours": lambda: decode.prefilling(ours, given.prefill)}
        for kind, llama in llamas.items():
            prefills[f"llama.cpp {kind}"] = lambda x=llama: prefilling(x, given.prefill)
        figures = alternate(prefills, given.repeats)
        show("llama_cpp_prefill", "tokens/s", figures, limit=None, detail=detail, as_json=given.json)


def write_random(shape: ModelConfig, path: Path) -> None:
    """The shape in float16, without a vocabulary; one block of random numbers over and over."""
    gains, tensors = decode.norms(shape), decode.sizes(shape)
    block = np.random.default_rng(0).normal(0, 0.02, 1_000_003).astype(np.float16)
    writer = gguf.GGUFWriter(path, "qwen3" if shape.qk_norm else "llama")
    add_shape(writer, shape, "random", "f16")
    writer.add_tokenizer_model("no_vocab")
    for name, size in tensors.items():
        kind = np.dtype(np.float32 if name in gains else np.float16)
        writer.add_tensor_info(tensor_name(name), size, kind, int(np.prod(size)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, size in tensors.items():
        writer.write_tensor_data(gains[name] if name in gains else np.resize(block, size))
    writer.close()


def quantized(source: Path, kind: str) -> Path:
    """The file in one of llama.cpp's types, by its own quantizer."""
    path = source.with_name(f"{kind}.gguf")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(settings)):
        raise ValueError(f"llama.cpp cannot make {kind} of this shape")
    return path


def opened(path: Path, threads: int) -> llama_cpp.Llama:
    return llama_cpp.Llama(
        str(path), n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )


def decoding(llama: llama_cpp.Llama, tokens: int) -> float:
    """Tokens a second after a short prompt; which tokens they are does not matter here."""
    llama.reset()
    llama.eval([7, 8, 9])
    started = time.perf_counter()
    for _ in range(tokens):
        llama.eval([7])
    return tokens / (time.perf_counter() - started)


def prefilling(llama: llama_cpp.Llama, count: int) -> float:
    llama.reset()
    return count / timed(lambda: llama.eval(list(range(1, count + 1))))


@contextmanager
def stolen_core() -> Iterator[None]:
    """Another process computes on one of the cores all the time."""
    thief = multiprocessing.get_context("spawn").Process(target=_compute, daemon=True)
    thief.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        thief.terminate()
        thief.join()


def _compute() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    while True:
        pass


def under(load: str, measure: Callable[[], float]) -> Callable[[], float]:
    def measured() -> float:
        if load == "idle":
            return measure()
        with stolen_core():
            return measure()

    return measured


if __name__ == "__main__":
    main()
