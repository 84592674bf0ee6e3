"""`openafm serve` under load: tokens a second, first token and pauses between tokens, at 1 to 64 clients.

Each client sends one streamed chat after another, each to a model drawn from so many of `--adapters` (1,4 measures one
and four), of `--registered` random ones of a `--rank` that the server knows. `--llama-server FILE` runs
llama.cpp's server in turn with ours: `--base` quantized to `--kind` by its own quantizer, the same adapters as GGUF,
the same threads, a slot a client.
`--share 0.8` then lets `--arrivals` chats come at random moments (a Poisson process), at that share of what the server
did with the most clients, and tells how long whole answers take.
Example: openafm bench serving --model runs/device/recovery --clients 1,8,16 --json
"""

import argparse
import asyncio
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from harness import machine, options
from openafm.adapters.store import Adapter, AdapterStore
from openafm.engine.package import Package, open_package
from openafm.files import cores
from openafm.model import ModelConfig
from openafm.serving.exporting import export
from openafm.serving.gguf_export import llama_order, tensor_name


@dataclass
class Load:
    """What clients saw."""

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failed: int = 0

    def line(self) -> dict[str, float]:
        """Figures of one row."""
        return {
            "tokens/s": round(self.tokens / self.seconds, 1),
            "answers/s": round(len(self.whole) / self.seconds, 3),
            **{f"first token {name}, s": round(float(np.quantile(self.first, at)), 3) for name, at in QUANTILES},
            **{f"pause {name}, ms": round(1000 * float(np.quantile(self.pauses, at)), 1) for name, at in QUANTILES},
            **{f"answer {name}, s": round(float(np.quantile(self.whole, at)), 2) for name, at in QUANTILES},
            "failed": self.failed,
        }


QUANTILES = (("p50", 0.5), ("p99", 0.99))


def main() -> None:
    given = options(
        __doc__, model="runs/device/recovery", clients="1,4,16,64", adapters="1", registered=4, rank=16, words=48,
        tokens=48, share=0.0, arrivals=200, llama_server="", base="runs/device/import", kind="q4_1",
    )  # fmt: skip
    levels, counts = ([int(count) for count in text.split(",")] for text in (given.clients, given.adapters))
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        package, registered = open_package(Path(given.model)), Path(folder) / "adapters"
        adapter = random_adapter(package, given.rank, seed=0)
        register(adapter, registered, given.registered)
        more = ["--adapters", str(registered), "--in-memory", str(max(counts))]
        url = running.enter_context(ours(given, max(levels), more))
        names = models_of(url)
        if max(counts) > len(names):
            raise ValueError(f"--adapters {max(counts)}: the server has {len(names)} models; see --registered")
        servers = {f"ours, {count} adapters": (url, [{"model": name} for name in names[-count:]]) for count in counts}
        if given.llama_server:
            lora = Path(folder) / "lora.gguf"
            write_lora(adapter, package.config, lora)
            url = running.enter_context(theirs(given, Path(folder), max(levels), [lora] * max(counts)))
            loras = [{"lora": [{"id": number, "scale": 1.0}]} for number in range(max(counts))]
            servers |= {f"llama-server, {count} adapters": (url, loras[:count]) for count in counts}
        for round_number in range(given.repeats + 1):
            for level in levels:
                for name, (where, models) in servers.items():
                    load = asyncio.run(measure(where, models, level, given, seed=round_number))
                    if round_number:  # the first one warms up
                        rows.setdefault((name, str(level)), []).append(load.line())
        for name, (where, models) in servers.items() if given.share else ():
            most = statistics.median(line["answers/s"] for line in rows[name, str(max(levels))])
            load = asyncio.run(arriving(where, models, given.share * most, given))
            rows[name, f"{given.share:.0%} load"] = [load.line()]
    medians = {
        key: {figure: statistics.median(line[figure] for line in lines) for figure in lines[0]}
        for key, lines in rows.items()
    }
    show(medians)
    if given.json:
        found = [{"server": name, "clients": count, **line} for (name, count), line in medians.items()]
        print(json.dumps({"benchmark": "serving", "rows": found, "machine": machine()}))


def random_adapter(package: Package, rank: int, seed: int) -> Adapter:
    """An adapter on every projection that changes a little and means nothing."""
    torch.manual_seed(seed)
    state = {}
    for layer, form in package.layers.items():
        state[f"{layer}.lora_a"] = torch.randn(rank, form.shape[1]) / form.shape[1]
        state[f"{layer}.lora_b"] = torch.randn(form.shape[0], rank) / 8
    return Adapter(state, rank, float(rank))


def register(adapter: Adapter, folder: Path, count: int) -> None:
    """The adapter so many times in `folder`, under other names; its bytes lie on the disk once."""
    store = AdapterStore(folder)
    store.save("task-0000", adapter)
    for number in range(1, count):
        copy = folder / f"task-{number:04d}"
        copy.mkdir()
        for file in (folder / "task-0000").iterdir():
            (copy / file.name).hardlink_to(file)


@contextmanager
def theirs(given: argparse.Namespace, folder: Path, slots: int, adapters: Sequence[Path]) -> Iterator[str]:
    """llama.cpp's server of the base with these adapters on a free port."""
    import llama_cpp_decode  # its packages are needed for the peer only

    source = folder / "f16.gguf"
    export(Path(given.base), source, "gguf", None, "f16")
    weights = llama_cpp_decode.quantized(source, given.kind)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [given.llama_server, "-m", str(weights), "--port", str(port), "--threads", str(cores()), "--parallel",
               str(slots), "--ctx-size", str(slots * 512), "--no-webui", "--log-disable", "--lora-init-without-apply",
               "--lora", ",".join(map(str, adapters))]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while server.poll() is None:
                with suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                time.sleep(0.2)
            else:
                raise ValueError(f"{given.llama_server} ended with {server.returncode}; run {' '.join(command)}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def write_lora(adapter: Adapter, config: ModelConfig, path: Path) -> None:
    """The adapter as llama.cpp loads one."""
    writer = gguf.GGUFWriter(path, "qwen3" if config.qk_norm else "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", adapter.alpha)
    for key, tensor in adapter.state.items():
        layer, _, half = key.rpartition(".")
        values = tensor.numpy().astype(np.float16)
        if half == "lora_b":
            values = llama_order(f"{layer}.weight", values, config)
        writer.add_tensor(f"{tensor_name(f'{layer}.weight')}.{half}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def show(medians: dict[tuple[str, str], dict[str, float]]) -> None:
    """One row a server and number of clients."""
    table = Table(title="serving: medians of the rounds")
    for column in ("server", "clients", *next(iter(medians.values()))):
        table.add_column(column, justify="left" if column == "server" else "right")
    for (name, count), line in medians.items():
        table.add_row(name, count, *(f"{value:g}" for value in line.values()))
    Console(width=150).print(table)


@contextmanager
def ours(given: argparse.Namespace, queue: int, more: Sequence[str] = ()) -> Iterator[str]:
    """Our server of the model on a free port, with `more` options."""
    command = [sys.executable, "-m", "openafm", "serve", given.model, "--port", "0", "--queue", str(queue), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = next((m for line in server.stdout if (m := re.search(r"http://\S+", line))), None)
            if found is None:
                raise ValueError(f"openafm serve {given.model} did not start: its error is above")
            yield f"{found[0]}/v1"
        finally:
            server.terminate()


def models_of(url: str) -> list[str]:
    """Ids of all models, the one to use first."""
    return [model["id"] for model in httpx.get(f"{url}/models").json()["data"]]


def connections() -> httpx.AsyncClient:
    """A client of HTTP with a connection a request: one that is kept may be closed just as the next request leaves."""
    return httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))


async def measure(url: str, models: list[dict[str, Any]], clients: int, given: argparse.Namespace, seed: int) -> Load:
    """Let so many clients ask at once, each twice."""
    load = Load()

    async def client(number: int) -> None:
        draw = random.Random(1000 * seed + number)
        for _ in range(2):
            await chat(http, url, draw, models, given, load)

    async with connections() as http:
        started = time.perf_counter()
        await asyncio.gather(*map(client, range(clients)))
        load.seconds = time.perf_counter() - started
    return load


async def arriving(url: str, models: list[dict[str, Any]], rate: float, given: argparse.Namespace) -> Load:
    """Let chats arrive at random moments, `rate` a second on average, whether the ones before are answered or not."""
    load, draw = Load(), random.Random(given.arrivals)
    async with connections() as http, asyncio.TaskGroup() as asked:
        started = time.perf_counter()
        for number in range(given.arrivals):
            asked.create_task(chat(http, url, random.Random(number), models, given, load))
            await asyncio.sleep(draw.expovariate(rate))
    load.seconds = time.perf_counter() - started
    return load


async def chat(
    http: httpx.AsyncClient,
    url: str,
    draw: random.Random,
    models: list[dict[str, Any]],
    given: argparse.Namespace,
    load: Load,
) -> None:
    """One streamed chat of words that nobody else sends; `models` are a request's fields that name one."""
    words = " ".join("".join(draw.choices("aeioustrn", k=5)) for _ in range(given.words))
    body = {
        **draw.choice(models), "messages": [{"role": "user", "content": words}], "max_tokens": given.tokens,
        "temperature": 1.0, "seed": draw.randrange(2**31), "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    asked = time.perf_counter()
    try:
        async with http.stream("POST", f"{url}/chat/completions", json=body) as response:
            await answer(response, load, asked)
        load.whole.append(time.perf_counter() - asked)
    except httpx.HTTPError:  # a refusal, or a connection closed without an answer
        load.failed += 1


async def answer(response: httpx.Response, load: Load, last: float) -> None:
    """Read a stream that was asked for at `last`. Raises httpx.HTTPStatusError where it was refused."""
    response.raise_for_status()
    begun = False
    async for line in response.aiter_lines():
        if not line.startswith("data: {"):
            continue
        chunk, now = json.loads(line[6:]), time.perf_counter()
        if chunk.get("usage"):
            load.tokens += chunk["usage"]["completion_tokens"]
        if any(choice["delta"].get("content") for choice in chunk["choices"]):
            (load.pauses if begun else load.first).append(now - last)
            begun, last = True, now


if __name__ == "__main__":
    main()
