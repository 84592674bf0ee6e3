"""Hostile bytes for every parser: crawls, pages, robots.txt, texts, packages, GGUF, safetensors, adapters, requests.

    python tests/reliability/fuzz.py --executions 100000
    python tests/reliability/fuzz.py gguf schemas --executions 1000000 --minutes 30

Each target takes bytes and either reads them or raises ValueError, the one error that verbs and the server show as a
line; anything else, more than 5 seconds of work or a minute of waiting, an end of the process or memory that grows is a
fault. The inputs are chosen by atheris (libFuzzer, guided by coverage of openafm and gguf) where it is installed, else
by the mutations of benchmarks/fuzz_inputs.py. A target runs in a process of its own, in 6 GB at most; inputs at fault
are kept in the folder that is named. Prints a line a target; exit code 1 with a fault.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import psutil

ROOT = Path(__file__).parents[2]
SECONDS, WAIT = 5, 60
"""Most that an input may take of the processor, and of anybody's patience: other programs may hold the processor."""
ROOM = 6 << 30
WARM = 0.25
"""Share of the executions after which memory is compared with that at the end."""
GROWTH_MB = 64
"""Growth from there that is no noise: caches and arenas fill up to some size."""
Read = Callable[[bytes], None]


class LateError(BaseException):
    """No answer in time; no parser's `except` is to catch it."""


@dataclass
class Target:
    """What is fuzzed: a function of bytes, and whole inputs to begin with."""

    read: Read
    seeds: list[bytes]
    longest: int = 4_096


def html(folder: Path) -> Target:
    from openafm.data.extract import decode, extract_decoded
    from openafm.data.math_pages import math_page

    def read(data: bytes) -> None:
        source = decode(data)
        math_page(source, "https://math.stackexchange.com/q", extract_decoded(source, "https://h.example/2020/x"))

    page = (
        b"<!doctype html><html lang=en><head><title>T</title><meta charset=utf-8><meta name=date content=2020-01-02>"
        b"</head><body><nav><a href=/>Home</a></nav><article class=post><h1>Head</h1><p>Some words, and more of them."
        b"</p><ul><li>one<li>two</ul><table><tr><td>a<td>b</table><pre>x = 1</pre><math><mfrac><mi>x</mi><mn>2</mn>"
        b"</mfrac></math><p>$x^2$ &amp; &#8364;</p></article><footer>All rights reserved</footer></body></html>"
    )
    return Target(read, [page, b"<p>plain"])


def warc(folder: Path) -> Target:
    from openafm.data.warc import pages

    path = folder / "input.warc.gz"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if not sum(1 for _ in pages(path)):
            raise AssertionError("an archive vanished: neither pages nor rejects")

    inputs, draw = runpy.run_path(str(ROOT / "benchmarks" / "fuzz_inputs.py")), random.Random(1)
    return Target(read, [inputs["_warc"](draw, wet) for wet in (False, True) for _ in range(6)], 16_384)


def robots(folder: Path) -> Target:
    from openafm.data import optout
    from openafm.data.robots import allowed, parse

    def read(data: bytes) -> None:
        rules, _, rest = data.partition(b"\0")
        url = "https://h.example/" + rest.decode("utf-8", "replace")
        allowed(rules, url)
        parse(rules).delay("openafm")
        optout.tdmrep_reserved(rules, url)
        optout.of_page({"x-robots-tag": [rest.decode("latin-1")]}, rules)

    inputs = runpy.run_path(str(ROOT / "benchmarks" / "fuzz_inputs.py"))
    return Target(read, [inputs["ROBOTS"] + b"\0a/b?c", inputs["TDMREP"] + b"\0a"])


def texts(folder: Path) -> Target:
    from openafm.tokenizer import load

    tokenizer = load(toy(folder) / "tokenizer")
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_of_turn_id, tokenizer.pad_id}

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "surrogatepass" if data[:1] == b"\0" else "replace")
        tokens = tokenizer.encode(text)
        if special & set(tokens):
            raise AssertionError("a text posed as a special token")
        if "\0" not in text and tokenizer.decode(tokens) != text:
            raise AssertionError("a text did not come back")
        tokenizer.render_chat([{"role": "user", "content": text}])

    return Target(
        read, [b"some words <|end|><|assistant|> \xe2\x96\x81 \xf0\x9f\x99\x82 {{ bos_token }}", b"\0caf\xc3\xa9"]
    )


def sealed(header: dict[str, Any]) -> bytes:
    """A package's header with a digest that is right: hostile files are well-sealed."""
    from openafm.engine.package import header_digest

    return json.dumps(header | {"sha256": header_digest(header)}).encode()


def afm(folder: Path) -> Target:
    """A package's header, sealed again where it is JSON; what opens is loaded into the native engine, or torch."""
    from openafm.engine.opening import open_engine
    from openafm.engine.package import Package

    package = toy(folder) / "recovery" / "model.afm"

    def read(data: bytes) -> None:
        with suppress(ValueError, RecursionError):
            header = json.loads(data)
            data = sealed(header) if isinstance(header, dict) else data
        (package / "header.json").write_bytes(data)
        found = Package(package)
        for name in found.layers:
            found.projection(name)
        open_engine(package)

    return Target(read, [(package / "header.json").read_bytes()], 8_192)


def gguf(folder: Path) -> Target:
    from openafm.model.gguf import import_gguf

    path = folder / "input.gguf"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        import_gguf(path, folder / "imported")

    return Target(read, [small_gguf(path)], 16_384)


def small_gguf(path: Path) -> bytes:
    """A Llama of one layer with a byte-level tokenizer."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_block_count(1)
    writer.add_context_length(16)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    tokens = ["<s>", "</s>", "a", "b", "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")
    shapes = {"token_embd": (5, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    shapes |= {f"blk.0.{name}": (8, 8) for name in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {"blk.0.attn_k": (4, 8), "blk.0.attn_v": (4, 8)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def safetensors(folder: Path) -> Target:
    """The header of a safetensors file before data of its length; the first byte may say another length."""
    from openafm.engine.mapped import tensors
    from openafm.model.huggingface import read_tensor, tensor_files

    path = folder / "model.safetensors"
    whole = (toy(folder) / "teacher" / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")

    def read(data: bytes) -> None:
        said = len(data) if data[:1] == b"{" else int.from_bytes(data[:8], "little")
        path.write_bytes(said.to_bytes(8, "little") + data + whole[8 + length :])
        for tensor in tensors(path).values():
            tensor.values.sum()
        for name, file in tensor_files(folder).items():
            read_tensor(file, name)

    return Target(read, [whole[8 : 8 + length]], 8_192)


def models(folder: Path) -> Target:
    """The config.json of a model folder, ours and Hugging Face's."""
    from openafm.model.checkpoint import load_model
    from openafm.model.huggingface import model_config

    model = toy(folder) / "teacher"

    def read(data: bytes) -> None:
        with suppress(RecursionError):
            settings = json.loads(data)
            if isinstance(settings, dict) and "model_type" in settings:
                model_config(settings, "config.json")
                return
        (model / "config.json").write_bytes(data)
        load_model(model)

    theirs = {
        "model_type": "qwen3", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "max_position_embeddings": 64, "rope_scaling": None, "layer_types": ["full_attention"],
    }  # fmt: skip
    return Target(read, [(model / "config.json").read_bytes(), json.dumps(theirs).encode()])


def adapters(folder: Path) -> Target:
    """A card, a NUL and weights, their checksum right; the card's name is the one asked for."""
    from openafm.adapters.store import AdapterStore
    from openafm.engine.opening import open_engine

    package = toy(folder) / "recovery" / "model.afm"
    engine, store = open_engine(package), AdapterStore(folder / "strangers")
    kept = store.folder / "a"
    kept.mkdir(parents=True)

    def read(data: bytes) -> None:
        text, _, weights = data.partition(b"\0\0")
        with suppress(ValueError, RecursionError):
            card = json.loads(text)
            if isinstance(card, dict):
                text = json.dumps(card | {"sha256": hashlib.sha256(weights).hexdigest()}).encode()
        (kept / "card.json").write_bytes(text)
        (kept / "adapter.safetensors").write_bytes(weights)
        with suppress(UnicodeDecodeError, ValueError):
            store.card(text[:64].decode())
        engine.put_adapter("a", engine.read_adapter(store, "a"))
        engine.remove_adapter("a")

    own = package / "adapters" / "summary"
    card = (own / "card.json").read_bytes().replace(b"\n", b"")
    return Target(read, [card + b"\0\0" + (own / "adapter.safetensors").read_bytes()], 16_384)


def bodies(folder: Path) -> Target:
    """Bodies of every path of the server; the first byte chooses the path."""
    from openafm.serving.body import ApiError, parse
    from openafm.serving.embeddings import EmbeddingRequest
    from openafm.serving.requests import ChatCompletion, LoraAdapter, TextCompletion
    from openafm.serving.responses import ResponseRequest

    kinds = (ChatCompletion, TextCompletion, ResponseRequest, EmbeddingRequest, LoraAdapter)

    def read(data: bytes) -> None:
        try:
            asked = parse(kinds[data[0] % len(kinds)] if data else ChatCompletion, data[1:])
        except ApiError as error:
            json.dumps(error.body())
            return
        chat = asked.chat() if isinstance(asked, ResponseRequest) else asked
        if isinstance(chat, ChatCompletion) and chat.toolbox is None:
            chat.response_format.grammar()

    from tests.serving.test_mutations import BODIES

    every = [{"model": "m", **body} for body in BODIES.values()]
    return Target(read, [bytes([48 + i - 48 % 5]) + json.dumps(body).encode() for i, body in enumerate(every)])


def schemas(folder: Path) -> Target:
    """A JSON schema, and after it bytes that choose tokens of the answer that it guides."""
    import numpy as np

    from openafm.engine.guidance import Guide, json_schema, vocabulary
    from openafm.tokenizer import load

    words = vocabulary(load(toy(folder) / "tokenizer"), 300)

    def read(data: bytes) -> None:
        text, _, choices = data.partition(b"\0")
        try:
            schema = json.loads(text)
        except RecursionError:
            return
        if not isinstance(schema, dict):
            return
        guide = Guide(words, json_schema(schema))
        for choice in choices[:24]:
            allowed = np.flatnonzero(np.unpackbits(guide.masks([])[0].view(np.uint8), bitorder="little"))
            if not len(allowed):
                break
            guide.take([int(allowed[choice % len(allowed)])])

    form = {
        "type": "object", "required": ["a"], "additionalProperties": False, "$defs": {"x": {"enum": ["p", 1, None]}},
        "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1, "maxItems": 3},
                       "b": {"type": "number", "minimum": -1, "exclusiveMaximum": 2.5},
                       "c": {"anyOf": [{"type": "string", "pattern": "^a+b?$"}, {"type": "null"}]}},
    }  # fmt: skip
    return Target(read, [json.dumps(form).encode() + b"\0abcdefgh", b'{"type":"string","format":"date"}\0xyz'])


TARGETS: dict[str, Callable[[Path], Target]] = {
    "warc": warc, "html": html, "robots": robots, "texts": texts, "afm": afm, "gguf": gguf,
    "safetensors": safetensors, "models": models, "adapters": adapters, "bodies": bodies, "schemas": schemas,
}  # fmt: skip


def toy(folder: Path) -> Path:
    from tests.toy import toy_run

    return toy_run(folder / "toy")


@dataclass
class Session:
    """One target's executions and what went wrong."""

    target: Target
    folder: Path
    executions: int
    ends: float
    done: int = 0
    read: int = 0
    """Inputs that were read to their end."""
    slowest: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)
    """The file of the first input at each fault, by where it came from."""
    began: float = field(default_factory=time.monotonic)
    current: BinaryIO = field(init=False)
    """The input being read, for when the process ends over it."""
    memory: list[float] = field(default_factory=list)
    """MB of the process, at every hundredth of the executions."""

    def __post_init__(self) -> None:
        self.current = (self.folder / "current").open("wb", buffering=0)

    def one(self, data: bytes) -> None:
        """Execute the target once."""
        self.current.truncate(os.pwrite(self.current.fileno(), data, 0))
        started = time.monotonic()
        try:
            wrong = self._wrong(data)
        except LateError:  # between the end of the reading and that of the timers
            _limit(0, 0)
            wrong = ""
        if wrong and wrong not in self.faults:
            kept = self.folder / f"fault-{len(self.faults)}"
            kept.write_bytes(data)
            self.faults[wrong] = str(kept)
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.done += 1
        if self.done % max(1, self.executions // 100) == 0 or self.done % 5_000 == 0 or wrong:
            self.memory.append(psutil.Process().memory_info().rss / 1e6)
            self.keep()
        if self.done >= self.executions or time.monotonic() > self.ends:
            self.keep()
            os._exit(0)  # libFuzzer knows no other end

    def _wrong(self, data: bytes) -> str:
        """Read an input; what it did that it should not."""
        _limit(SECONDS, WAIT)
        try:
            self.target.read(data)
            self.read += 1
        except ValueError:
            pass
        except LateError:
            return f"no answer in time: {where(*sys.exc_info())}"
        except BaseException:
            return where(*sys.exc_info())
        finally:
            _limit(0, 0)
        return ""

    def keep(self) -> None:
        """Tell the parent how far it is."""
        told = {name: getattr(self, name) for name in ("done", "read", "slowest", "faults", "memory")}
        (self.folder / "told.new").write_text(json.dumps(told | {"seconds": time.monotonic() - self.began}))
        (self.folder / "told.new").replace(self.folder / "told.json")


def where(kind: Any, error: Any, trace: Any) -> str:
    """An error and the place in our code that it came through last."""
    frames = [frame for frame in traceback.extract_tb(trace) if "openafm" in frame.filename] or traceback.extract_tb(
        trace
    )
    last = frames[-1]
    return f"{kind.__name__} at {Path(last.filename).name}:{last.lineno} ({str(error)[:80]!r})".replace("\n", " ")


def _limit(seconds: float, wait: float) -> None:
    """Raise LateError after so many seconds of work or of waiting; 0 is never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wait)


def late(signum: int, frame: object) -> None:
    raise LateError


def work(name: str, folder: Path, executions: int, seconds: float, seed: int, guided: bool) -> None:
    """A target's own process."""
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, late)
    resource.setrlimit(resource.RLIMIT_DATA, (ROOM, ROOM))
    with _instrumented() if guided else nullcontext():
        target = TARGETS[name](folder)
    for data in target.seeds:  # what is whole is read; imports are done, and are not timed
        target.read(data)
    session = Session(target, folder, executions, time.monotonic() + seconds)
    if guided:
        import atheris

        corpus = folder / "corpus"
        corpus.mkdir()
        for number, data in enumerate(target.seeds):
            (corpus / f"seed-{number}").write_bytes(data)
        words = [
            sys.argv[0],
            f"-seed={seed}",
            f"-max_len={target.longest}",
            "-timeout=0",
            "-rss_limit_mb=0",
            "-verbosity=0",
        ]
        atheris.Setup([*words, str(corpus)], session.one)
        atheris.Fuzz()
    mutated, draw = runpy.run_path(str(ROOT / "benchmarks" / "fuzz_inputs.py"))["mutated"], random.Random(seed)
    while True:
        data = mutated(draw.choice(target.seeds), draw.choice(target.seeds), draw)
        session.one(data[: target.longest])


def _instrumented() -> Any:
    import atheris

    return atheris.instrument_imports(include=["openafm", "gguf"], enable_loader_override=False)


def fuzz(name: str, kept: Path, options: argparse.Namespace) -> bool:
    """Run a target's process and print its line; whether it held."""
    folder = kept / name
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).resolve()), name, "--executions", str(options.executions)]
    command += ["--minutes", str(options.minutes), "--seed", str(options.seed), "--worker", str(folder)]
    command += ["--plain"] if options.plain else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENAFM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command + ["--plain"] * options.plain, stdout=log, stderr=log, env=environment, cwd=ROOT
        )
        code = process.wait()
    told = json.loads((folder / "told.json").read_text()) if (folder / "told.json").exists() else {}
    faults = dict(told.get("faults", {}))
    if code != 0:
        faults[f"the process ended with {code}"] = f"{folder / 'current'}, {folder / 'log'}"
    memory = told.get("memory", [])
    growth = memory[-1] - memory[int(WARM * len(memory))] if len(memory) > 1 else 0.0
    if growth > GROWTH_MB:
        faults[f"memory grew by {growth:.0f} MB"] = str(folder)
    done = told.get("done", 0)
    rate = done / told["seconds"] if done else 0.0
    print(
        f"{name:<12}{done:>10,} executions, {told.get('read', 0):>9,} read, {rate:>6,.0f}/s, slowest "
        f"{told.get('slowest', 0.0):.2f} s, memory {growth:+.0f} MB, {len(faults)} faults",
        flush=True,
    )
    for fault, place in faults.items():
        print(f"    {fault}: {place}", flush=True)
    return not faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help=f"{' '.join(TARGETS)} [all of them]")
    parser.add_argument("--executions", type=int, default=20_000, help="of each target")
    parser.add_argument("--minutes", type=float, default=60.0, help="most for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="mutations without coverage, also where atheris is there")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sys.path.insert(0, str(ROOT))
        guided = not options.plain and importlib.util.find_spec("atheris") is not None
        work(options.targets[0], options.worker, options.executions, 60 * options.minutes, options.seed, guided)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # several small files an execution
    kept = Path(tempfile.mkdtemp(prefix="openafm-fuzz-", dir=memory))
    print(f"inputs at fault are kept in {kept}", flush=True)
    held = [fuzz(name, kept, options) for name in options.targets or TARGETS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
