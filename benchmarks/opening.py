"""Seconds from opening a package to the first token in a new process, and resident memory over file and KV cache.

The package is in the page cache; imports are told apart; memory is read after 64 more tokens. Without `--model`, a
package of random weights in the shape is written first.
Example: openafm bench opening --shape afm-on-device --bits 4 --json
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from decode import norms, projections, shape_of
from harness import alternate, options, show
from openafm.compression.package import write_package
from openafm.engine.packed import Int8Rows, Palettized
from openafm.model import ModelConfig
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
        path = (
            Path(given.model)
            if given.model
            else random_package(shape_of(given), given.bits, Path(folder) / "model.afm")
        )
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


def random_package(shape: ModelConfig, bits: int, folder: Path) -> Path:
    """A package whose weights mean nothing."""
    rng = np.random.default_rng(0)
    layers = {}
    for name, (rows, columns) in projections(shape).items():
        tables = np.sort(rng.normal(0, columns**-0.5, (-(-rows // 16), 2**bits)), 1).astype(np.float16)
        codes = np.resize(rng.integers(0, 2**bits, 1_000_003, np.uint8), (rows, columns))
        layers[name] = Palettized(codes, tables, bits, 16)
    values = np.resize(rng.integers(-127, 128, 1_000_003, np.int8), (shape.vocab_size, shape.d_model))
    embedding = Int8Rows(values, np.full(shape.vocab_size, 1e-3, np.float16))
    write_tokenizer(folder.parent, train_sentencepiece(["some words to learn from, a few of them twice"] * 4, 300))
    write_package(folder, shape, layers, embedding, norms(shape), folder.parent)
    return folder


if __name__ == "__main__":
    main()
