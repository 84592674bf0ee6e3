"""`openafm serve` under load: tokens a second, first token and pauses between tokens, at 1 to 64 clients.

Each client sends one streamed chat after another, to one of `--adapters` models in turn. `--peer URL` measures another
server of OpenAI's protocol in turn with ours, in the same run; start it before, with the same threads and model size.
Example: openafm bench serving --model runs/device/recovery --clients 1,8,16 --json
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from harness import machine, options


@dataclass
class Load:
    """What clients saw."""

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    failed: int = 0

    def line(self) -> dict[str, float]:
        """Figures of one row."""
        return {
            "tokens/s": round(self.tokens / self.seconds, 1),
            **{f"first token {name}, s": round(float(np.quantile(self.first, at)), 3) for name, at in QUANTILES},
            **{f"pause {name}, ms": round(1000 * float(np.quantile(self.pauses, at)), 1) for name, at in QUANTILES},
            "failed": self.failed,
        }


QUANTILES = (("p50", 0.5), ("p99", 0.99))


def main() -> None:
    given = options(
        __doc__, model="runs/device/recovery", clients="1,4,16,64", adapters=1, words=48, tokens=48, peer="",
        peer_model="",
    )  # fmt: skip
    levels = [int(count) for count in given.clients.split(",")]
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    with ours(given, max(levels)) as url:
        servers = {"ours": (url, models_of(url)[: given.adapters])}
        if given.peer:
            servers["peer"] = (given.peer, [given.peer_model])
        for round_number in range(given.repeats + 1):
            for count in levels:
                for name, (where, models) in servers.items():
                    load = asyncio.run(measure(where, models, count, given, seed=round_number))
                    if round_number:  # the first one warms up
                        rows.setdefault((name, count), []).append(load.line())
    medians = {
        key: {figure: statistics.median(line[figure] for line in lines) for figure in lines[0]}
        for key, lines in rows.items()
    }
    show(medians)
    if given.json:
        found = [{"server": name, "clients": count, **line} for (name, count), line in medians.items()]
        print(json.dumps({"benchmark": "serving", "rows": found, "machine": machine()}))


def show(medians: dict[tuple[str, int], dict[str, float]]) -> None:
    """One row a server and number of clients."""
    table = Table(title="serving: medians of the rounds")
    for column in ("server", "clients", *next(iter(medians.values()))):
        table.add_column(column, justify="left" if column == "server" else "right")
    for (name, count), line in medians.items():
        table.add_row(name, str(count), *(f"{value:g}" for value in line.values()))
    Console().print(table)


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


async def measure(url: str, models: list[str], clients: int, given: argparse.Namespace, seed: int) -> Load:
    """Let so many clients ask at once, each twice."""
    load = Load()
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=600, limits=limits) as http:
        started = time.perf_counter()
        await asyncio.gather(
            *(client(http, url, models[i % len(models)], given, load, seed, i) for i in range(clients))
        )
        load.seconds = time.perf_counter() - started
    return load


async def client(
    http: httpx.AsyncClient, url: str, model: str, given: argparse.Namespace, load: Load, seed: int, number: int
) -> None:
    """Two chats one after another, of words that nobody else sends."""
    draw = random.Random(1000 * seed + number)
    for _ in range(2):
        words = " ".join("".join(draw.choices("aeioustrn", k=5)) for _ in range(given.words))
        body = {
            "model": model, "messages": [{"role": "user", "content": words}], "max_tokens": given.tokens,
            "temperature": 1.0, "seed": draw.randrange(2**31), "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        last = time.perf_counter()
        begun = False
        async with http.stream("POST", f"{url}/chat/completions", json=body) as response:
            if response.status_code != 200:
                load.failed += 1
                return
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
