"""A server and a training loop side by side for as long as you like: memory and open files stay flat.

    python tests/reliability/endurance.py --minutes 120

Clients stream, leave in the middle, send what is wrong and change adapters, while a process trains a small model again
and again. Both processes' memory and files are sampled. After the first quarter, which fills caches, nothing may grow:
the last quarter's median is held against the second's. Exit code 1 where it grew.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
EVERY = 5.0
"""Seconds between samples."""
GROWTH, GROWTH_MB, GROWTH_FILES = 0.03, 8.0, 4
"""What still counts as flat: a share of the memory and megabytes, and files."""


def trainer(folder: Path) -> None:
    """Train a small model over and over in this process, with checkpoints; counts in `rounds`."""
    sys.path.insert(0, str(ROOT))
    from tests.reliability import ranks

    for number in range(10**9):
        run = folder / f"round-{number % 2}"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        ranks.worker(run)
        (folder / "rounds").write_text(str(number + 1))


def client(url: str, key: str, until: float, seed: int, told: dict[str, int]) -> None:
    """Ask until it is time to end."""
    draw, models = random.Random(seed), ["toy-recovery", "toy-recovery:recovery", "toy-recovery:summary"]
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120) as http:
        while time.monotonic() < until:
            kind = draw.choice(("whole", "whole", "stream", "leaves", "wrong", "embeddings", "metrics"))
            body = {"model": draw.choice(models), "max_tokens": draw.randint(1, 60), "stream": kind != "whole"}
            body["messages"] = [{"role": "user", "content": "some words " * draw.randint(1, 40)}]
            try:
                ask(http, kind, body)
            except httpx.RemoteProtocolError:  # it was kept open and idle for too long, and closed as we asked
                kind = "reconnected"
            told[kind] = told.get(kind, 0) + 1


def ask(http: httpx.Client, kind: str, body: dict[str, Any]) -> None:
    """One request; AssertionError where its answer is another than it has to be."""
    if kind == "wrong":
        status = http.post("/v1/chat/completions", json=body | {"n": 99}).status_code
        assert status == 400, status
    elif kind == "embeddings":
        http.post("/v1/embeddings", json={"model": body["model"], "input": ["a", "b"]})
    elif kind == "metrics":
        assert http.get("/metrics").status_code == 200
    elif kind == "whole":
        assert http.post("/v1/chat/completions", json=body).status_code in (200, 429)
    else:
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for number, _ in enumerate(answer.iter_lines()):
                if kind == "leaves" and number == 3:
                    break


def grown(name: str, samples: list[tuple[float, int]]) -> str | None:
    """Print a process's samples; what grew, if anything did."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    (memory, files), (memory_then, files_then) = (
        [statistics.median(values) for values in zip(*part, strict=True)] for part in (second, last)
    )
    print(
        f"{name:<9}memory {memory:,.1f} -> {memory_then:,.1f} MB, files {files:g} -> {files_then:g}, of {len(samples)}"
    )
    if memory_then - memory > max(GROWTH * memory, GROWTH_MB):
        return f"{name}'s memory grew"
    return f"{name} opened more and more files" if files_then - files > GROWTH_FILES else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--trainer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trainer:
        trainer(options.trainer)
    sys.path.insert(0, str(ROOT))
    from tests.reliability import ranks, scan

    with tempfile.TemporaryDirectory(prefix="openafm-endurance-") as folder:
        ranks.Drill(Path(folder) / "trainer", 1)  # makes the shards
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--trainer", str(Path(folder) / "trainer")]
        training = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            with scan.scanned(Path(folder)) as server:
                until, told = time.monotonic() + 60 * options.minutes, dict[str, int]()
                url = f"http://127.0.0.1:{server.port}"
                asking = [
                    threading.Thread(target=client, args=(url, server.key, until, seed, told), daemon=True)
                    for seed in range(options.clients)
                ]
                for thread in asking:
                    thread.start()
                watched = {"server": psutil.Process(server.process.pid), "training": psutil.Process(training.pid)}
                samples: dict[str, list[tuple[float, int]]] = {name: [] for name in watched}
                while time.monotonic() < until:
                    time.sleep(EVERY)
                    assert server.process.poll() is None and training.poll() is None, "one of the processes ended"
                    for name, process in watched.items():
                        samples[name].append((process.memory_info().rss / 1e6, process.num_fds()))
                for thread in asking:
                    thread.join(120)
        finally:
            training.kill()
            training.wait()
        rounds = 0
        with suppress(OSError):
            rounds = int((Path(folder) / "trainer/rounds").read_text())
    print(f"{options.minutes:g} minutes: {rounds} trainings, requests {json.dumps(dict(sorted(told.items())))}")
    faults = [fault for name, found in samples.items() if (fault := grown(name, found))]
    if not rounds or sum(told.values()) < 10:
        faults.append("too little was done to tell anything")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
