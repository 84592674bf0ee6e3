"""Seconds from a new process to the first token, and resident memory over the file and the KV cache.

The process imports, opens the package in the page cache and makes one token; its memory is read after 64 more. Without
`--model`, a package of random weights in the shape is written first.
Example: openafm bench opening --shape afm-on-device --bits 4 --json
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from harness import alternate, options, show
from openafm.compression.package import write_package
from openafm.engine.packed import Int8Rows, Palettized
from openafm.model import PRESETS, ModelConfig
from openafm.model.transformer import Transformer
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

CHILD = """
import json, sys, time
started = time.perf_counter()
from pathlib import Path
from openafm.engine import NativeEngine
imported = time.perf_counter()
engine = NativeEngine.load(Path(sys.argv[1]))
loaded = time.perf_counter()
stream = engine.generate([5, 6, 7], max_tokens=65, temperature=0.0)
next(stream)
first = time.perf_counter()
for _ in stream: pass
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
resident = int(status["VmRSS"].split()[0]) * 1024
print(json.dumps({"import": imported - started, "load": loaded - imported, "token": first - loaded,
                  "resident": resident, "peak": int(status["VmHWM"].split()[0]) * 1024,
                  "cache": engine.model.cache_bytes, "weights": engine.model.weight_bytes}))
"""


def main() -> None:
    given = options(__doc__, model="", shape="afm-on-device", bits=4, layers=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(given.model) if given.model else random_package(given, Path(folder) / "model.afm")
        size = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
        runs: list[dict[str, float]] = []

        def first_token() -> float:
            command = [sys.executable, "-c", CHILD, str(path)]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            return runs[-1]["load"] + runs[-1]["token"]

        figures = alternate({"opened to first token": first_token}, given.repeats)
    last = runs[-1]
    detail = {name: round(last[name], 3) for name in ("import", "load", "token")}
    detail |= {f"{name}_mb": round(last[name] / 1e6, 1) for name in ("resident", "peak", "cache", "weights")}
    detail |= {
        "file_mb": round(size / 1e6, 1),
        "resident_over_file_and_cache": round(last["resident"] / (size + last["cache"]), 3),
    }
    show("opening", "seconds", figures, limit=None, detail=detail, as_json=given.json, better="less")


def random_package(given: object, folder: Path) -> Path:
    """A package whose weights mean nothing."""
    import torch

    shape: ModelConfig = PRESETS[given.shape]
    shape = shape.model_copy(update={"n_layers": given.layers or shape.n_layers})
    rng = np.random.default_rng(0)
    with torch.device("meta"):
        model = Transformer(shape)
        sizes = {name: tuple(linear.weight.shape) for name, linear in model.linears().items()}
        norms = {name: tuple(t.shape) for name, t in model.state_dict().items() if "norm" in name}
    layers = {}
    for name, (rows, columns) in sizes.items():
        tables = np.sort(rng.normal(0, columns**-0.5, (-(-rows // 16), 2**given.bits)), 1).astype(np.float16)
        codes = np.resize(rng.integers(0, 2**given.bits, 1_000_003, np.uint8), (rows, columns))
        layers[name] = Palettized(codes, tables, given.bits, 16)
    values = np.resize(rng.integers(-127, 128, 1_000_003, np.int8), (shape.vocab_size, shape.d_model))
    embedding = Int8Rows(values, np.full(shape.vocab_size, 1e-3, np.float16))
    write_tokenizer(folder.parent, train_sentencepiece(["some words to learn from, a few of them twice"] * 4, 300))
    rest = {name: np.ones(size, np.float32) for name, size in norms.items()}
    write_package(folder, shape, layers, embedding, rest, folder.parent)
    return folder


if __name__ == "__main__":
    main()
