"""`openafm serve` under minutes of mixed load: what fails that is not the client's fault, and does memory stay flat?

Clients draw what they do next: streams read to their end, slowly, or left in the middle; whole answers, some in JSON;
broken bodies, prompts that are too long, bodies that are too large; and adapters are unloaded and loaded meanwhile.
Every stream that is read to its end must end well-formed with [DONE], every bad request must have its 4xx.
Example: openafm bench serving-load --model runs/device/recovery --minutes 10 --json
"""

import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console

from harness import machine, options
from openafm.adapters.store import AdapterStore
from openafm.engine.package import find_package, open_package
from serving import models_of, ours, random_adapter

FIXED, ROTATING = ("steady-0", "steady-1"), ("turning-0", "turning-1", "turning-2")
GONE = ((404, "model_not_found"), (503, "adapter_unusable"))
"""What a request may be told that names an adapter while it is unloaded."""
BODY = 1 << 20
"""Bytes beyond which a body is refused."""


@dataclass
class Load:
    """What clients saw."""

    url: str
    base: str
    length: int
    tokens: int
    draw: random.Random
    adapted: bool
    """There are adapters."""
    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seen: list[tuple[float, float, float]] = field(default_factory=list)
    """Seconds, bytes in memory, open files."""

    def fault(self, what: str) -> None:
        """Note something that is not the client's."""
        self.faults.append(what)

    def chat(self, **more: object) -> dict[str, object]:
        """A request to one of the models."""
        adapter = self.draw.choice([None, *FIXED, *ROTATING]) if self.adapted else None
        words = " ".join("".join(self.draw.choices("aeioustrn", k=5)) for _ in range(self.draw.randint(1, 60)))
        return {
            "model": f"{self.base}:{adapter}" if adapter else self.base,
            "messages": [{"role": "user", "content": words}], "temperature": 1.0, "seed": self.draw.randrange(2**31),
            "max_tokens": self.draw.randint(1, self.tokens), **more,
        }  # fmt: skip

    def pardoned(self, body: dict[str, object], status: int, told: bytes) -> bool:
        """Whether an error belongs to who unloads adapters while they are asked for."""
        try:
            code = json.loads(told)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            return False
        return str(body["model"]).partition(":")[2] in ROTATING and (status, code) in GONE


def well_formed(text: str) -> str | None:
    """What is wrong with a stream that was read to its end."""
    events = text.split("\n\n")
    if events[-2:] != ["data: [DONE]", ""]:
        return f"a stream ended with {text[-200:]!r}"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    if len(reasons) != 1 or not chunks[-1]["usage"]["completion_tokens"]:
        return f"a stream has reasons {reasons} and counts {chunks[-1]['usage']}"
    return None


async def stream(load: Load, http: httpx.AsyncClient, pause: float = 0.0, leave_after: int | None = None) -> None:
    """Read a stream, with pauses, or only some of its parts."""
    body = load.chat(stream=True, stream_options={"include_usage": True})
    text, parts = "", 0
    async with http.stream("POST", f"{load.url}/chat/completions", json=body) as response:
        if response.status_code != 200:
            told = await response.aread()
            if not load.pardoned(body, response.status_code, told):
                load.fault(f"stream: {response.status_code} {told[:200]!r}")
            return
        async for part in response.aiter_text():
            text, parts = text + part, parts + 1
            if leave_after is not None and parts > leave_after:
                return
            await asyncio.sleep(pause)
    if wrong := well_formed(text):
        load.fault(wrong)


async def slow(load: Load, http: httpx.AsyncClient) -> None:
    """Read a stream more slowly than it is made."""
    await stream(load, http, pause=0.25)


async def leave(load: Load, http: httpx.AsyncClient) -> None:
    """Leave in the middle."""
    await stream(load, http, leave_after=load.draw.randint(0, 5))


async def whole(load: Load, http: httpx.AsyncClient) -> None:
    """Ask for an answer in one piece."""
    body = load.chat(n=load.draw.choice((1, 1, 2)))
    response = await http.post(f"{load.url}/chat/completions", json=body)
    if response.status_code != 200:
        if not load.pardoned(body, response.status_code, response.content):
            load.fault(f"whole: {response.status_code} {response.content[:200]!r}")
    elif not all(choice["finish_reason"] in ("stop", "length") for choice in response.json()["choices"]):
        load.fault(f"whole: {response.content[:200]!r}")


async def refused(load: Load, http: httpx.AsyncClient, content: bytes, *statuses: int) -> None:
    """Send a body that must be refused with one of the statuses."""
    headers = {"Content-Type": "application/json"}
    try:
        response = await http.post(f"{load.url}/chat/completions", content=content, headers=headers)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        if 413 not in statuses:  # the server need not read a body that it has refused
            raise
        return
    if response.status_code not in statuses:
        load.fault(f"bad body: {response.status_code} in place of {statuses}: {response.content[:200]!r}")


async def broken(load: Load, http: httpx.AsyncClient) -> None:
    """Send what is no JSON, or no request."""
    whole = json.dumps(load.chat()).encode()
    bodies = (whole[: load.draw.randrange(len(whole))], b"[1]", b'{"model": 3}', b'{"a":' * 10_000, b"\xff\xfe")
    await refused(load, http, load.draw.choice(bodies), 400)


async def huge(load: Load, http: httpx.AsyncClient) -> None:
    """Send a prompt beyond the context."""
    body = load.chat(messages=[{"role": "user", "content": "a b " * load.length}])
    await refused(load, http, json.dumps(body).encode(), 400)


async def heavy(load: Load, http: httpx.AsyncClient) -> None:
    """Send a body beyond what is read."""
    await refused(load, http, b" " * (BODY + 1), 413)


async def turn(load: Load, http: httpx.AsyncClient) -> None:
    """Unload an adapter, then load it again."""
    name = {"lora_name": load.draw.choice(ROTATING)}
    if (await http.post(f"{load.url}/unload_lora_adapter", json=name)).status_code != 200:
        return  # another client has it
    response = await http.post(f"{load.url}/load_lora_adapter", json=name)
    if response.status_code != 200:
        load.fault(f"load: {response.status_code} {response.content[:200]!r}")


Deed = Callable[[Load, httpx.AsyncClient], Awaitable[None]]
DEEDS: dict[Deed, int] = {stream: 6, slow: 2, leave: 4, whole: 3, broken: 2, huge: 1, heavy: 1, turn: 2}
"""What a client may do next, and how often."""


async def client(load: Load, until: float) -> None:
    """One thing after another."""
    async with httpx.AsyncClient(timeout=600) as http:
        while time.monotonic() < until:
            deed = load.draw.choices(list(DEEDS), list(DEEDS.values()))[0]
            if deed is turn and not load.adapted:
                continue
            try:
                await deed(load, http)
            except Exception as error:
                load.fault(f"{deed.__name__}: {error!r}")  # type: ignore[attr-defined]
            load.done[deed.__name__] += 1  # type: ignore[attr-defined]


async def watch(load: Load, until: float) -> None:
    """Ask for memory and open files, a hundred times in all and once when all is over."""
    began = time.monotonic()
    root, pause = load.url.removesuffix("/v1"), (until - began) / 100
    async with httpx.AsyncClient(timeout=60) as http:
        while time.monotonic() < until:
            await note(load, http, root, began)
            await asyncio.sleep(pause)


async def note(load: Load, http: httpx.AsyncClient, root: str, began: float) -> None:
    text = (await http.get(f"{root}/metrics")).text
    memory, files = (float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]
                     for name in ("process_resident_memory_bytes", "process_open_fds"))  # fmt: skip
    load.seen.append((time.monotonic() - began, memory, files))


async def run(load: Load, clients: int, minutes: float) -> None:
    """All clients at once, then a moment of rest."""
    until = time.monotonic() + 60 * minutes
    await asyncio.gather(watch(load, until), *(client(load, until) for _ in range(clients)))
    await asyncio.sleep(1)
    async with httpx.AsyncClient() as http:
        await note(load, http, load.url.removesuffix("/v1"), until - 60 * minutes)


def make_adapters(model: Path, folder: Path) -> bool:
    """Random adapters of rank 8 for the package; False where the model is none."""
    if find_package(model) is None:
        return False
    package, store = open_package(model), AdapterStore(folder)
    for number, name in enumerate((*FIXED, *ROTATING)):
        store.save(name, random_adapter(package, rank=8, seed=number))
    return True


def main() -> None:
    given = options(__doc__, model="runs/device/recovery", minutes=10.0, clients=12, tokens=48, in_memory=2, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        adapted = make_adapters(Path(given.model), Path(folder))
        more = ["--adapters", folder, "--in-memory", str(given.in_memory)] if adapted else []
        with ours(given, 2 * given.clients, more) as url:
            base = next(model for model in models_of(url) if ":" not in model)
            length = httpx.get(f"{url}/models/{base}").json()["max_length"]
            load = Load(url, base, length, given.tokens, random.Random(given.seed), adapted)
            asyncio.run(run(load, given.clients, given.minutes))
    tell(load, given.json)
    sys.exit(1 if load.faults else 0)


def tell(load: Load, as_json: bool) -> None:
    """Counts, faults, and memory and files a tenth of the time in, at half time and when all is over."""
    points = {"start": load.seen[len(load.seen) // 10], "middle": load.seen[len(load.seen) // 2], "end": load.seen[-1]}
    console = Console()
    console.print("done:", ", ".join(f"{count} {name}" for name, count in sorted(load.done.items())))
    for name, (seconds, memory, files) in points.items():
        console.print(f"{name} ({seconds:.0f} s): {memory / 1e6:.1f} MB, {files:.0f} open files")
    for fault in load.faults[:20]:
        console.print(f"not the client's: {fault}", markup=False)
    console.print(f"{len(load.faults)} errors that are not the client's")
    if as_json:
        figures = {name: {"bytes": memory, "files": files} for name, (_, memory, files) in points.items()}
        counts = {"done": dict(load.done), "faults": load.faults}
        print(json.dumps({"benchmark": "serving-load", **counts, **figures, "machine": machine()}))


if __name__ == "__main__":
    main()
