"""Dedup and decontamination at 10 thousand, 100 thousand and a million documents: rate, memory, disk, same rows.

    python benchmarks/data_scaling.py --most 1000000

Documents are real text (what is installed beside this Python, 400 words each) with controlled edits: a tenth of the
documents are copies of others with up to 14 words replaced; where there are more documents than text, a document is
another one's words with every fourth replaced, which is no copy by any measure (Jaccard below 0.3). Each size runs in a
process of its own, on `--cores` cores, which prints the seconds of the two steps; making the documents is not counted,
nor is a first run on a hundred documents that starts what has to be started. On one core no other process is started,
so that the rates of the sizes compare; the CPU's own seconds are in the JSON. Memory is the peak of the sum over all
processes of their resident memory less what they share (PSS). With --cluster 1, a local Ray cluster runs them as well,
on the smallest size, and the artifacts must be the same bytes.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from harness import machine, options
from openafm.data import documents as table
from openafm.data.decontaminate import DecontaminateConfig, decontaminate
from openafm.data.dedup import DedupConfig, dedup
from openafm.data.parallel import use_cluster
from openafm.data.sorting import Sorter
from openafm.stage import Context
from texts import documents, edited

ITEMS, PLANTED = 2_000, 100


def texts(count: int) -> Iterator[str]:
    """`count` texts, a tenth of them near copies of the one ten before."""
    draw, real = random.Random(0), list(documents(min(count, 100_000)))
    vocabulary = sorted({word for text in real[:2_000] for word in text.split()})
    recent: list[str] = []
    for number in range(count):
        text = real[number % len(real)]
        if number >= len(real):
            listed = text.split()
            listed[number // len(real) % 4 :: 4] = draw.choices(vocabulary, k=len(listed[number // len(real) % 4 :: 4]))
            text = " ".join(listed)
        if number % 10 == 9:
            text = edited(recent[0], draw, draw.randint(0, 14))
        recent = [*recent[-9:], text]
        yield text


def items() -> list[str]:
    """Benchmark items of 5 to 40 words, none of which is in the texts but where it is planted."""
    draw = random.Random(1)
    syllables = ["ba", "ke", "lo", "mi", "nu", "pra", "ste", "tri", "vo", "zu"]
    words = ["".join(draw.choices(syllables, k=3)) for _ in range(3_000)]
    return [" ".join(draw.choices(words, k=draw.randint(5, 40))) for _ in range(ITEMS)]


def make(count: int, folder: Path) -> None:
    """Write the documents and the benchmark."""
    (folder / "benchmarks").mkdir(parents=True)
    listed = items()
    lines = (json.dumps({"id": str(n), "text": item}) + "\n" for n, item in enumerate(listed))
    (folder / "benchmarks" / "made.jsonl").write_text("".join(lines))
    sorter, rows, step = Sorter(folder / "scratch"), [], max(1, count // PLANTED)
    for number, text in enumerate(texts(count)):
        planted = number % step == step // 2
        text = f"{text}\n\n{listed[number // step % ITEMS].upper()}!\n" if planted else text
        kind = "benchmark" if planted else None
        rows.append(table.document(f"https://texts.example/{number}", "web", text, planted=kind))
        if len(rows) == 2_000 or number == count - 1:
            sorter.add(pa.Table.from_pylist(rows, table.SCHEMA))
            rows = []
    sorter.write(folder, lambda part: part.sort_by("id"))


def run(folder: Path, out: Path) -> dict[str, float]:
    """The two steps; {step: seconds}."""
    took, given = dict[str, float](), folder
    for name in ("dedup", "decontaminate"):
        context = Context(out / name, out / f"{name}-scratch")
        for path in (context.out, context.scratch):
            path.mkdir(parents=True)
        started, cpu = time.perf_counter(), time.process_time()
        if name == "dedup":
            metrics = dedup(DedupConfig(), context, documents=given)
        else:
            metrics = decontaminate(DecontaminateConfig(), context, documents=given, sources=folder)
        took |= {name: time.perf_counter() - started, f"{name}_cpu": time.process_time() - cpu}
        took[f"{name}_disk"] = sum(path.stat().st_size for path in context.scratch.rglob("*") if path.is_file())
        shutil.rmtree(context.scratch)
        given = context.out
    dropped = metrics["planted"]["benchmark"]
    return took | {"missed": dropped["missed"], "gone": dropped["gone"]}


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.relative_to(folder)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def memory(process: psutil.Process) -> float:
    """Bytes that a process and its children hold now, shared pages counted once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            found = one.memory_full_info()
            total += getattr(found, "pss", found.rss)
        except psutil.Error:
            continue
    return total


def measured(arguments: list[str]) -> dict[str, float]:
    """What a process of this script prints, and its peak memory."""
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            peak = max(peak, memory(psutil.Process(process.pid)) if process.poll() is None else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    said, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise ValueError(f"{' '.join(arguments)} failed")
    return json.loads(said.splitlines()[-1]) | {"peak_bytes": peak}


def work(folder: Path, count: int, cluster: str, cores: int) -> None:
    """In a process of its own: start what has to be started on a few documents, then measure."""
    if cluster:
        use_cluster(cluster)
    else:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    warm = folder / f"warm{cluster}"
    make(100, warm)
    run(warm, warm / "out")
    out = folder / f"out-{count}{cluster}"
    print(json.dumps(run(folder / str(count), out) | {"digest": digest(out)}))


def main() -> None:
    chosen = options(__doc__, most=1_000_000, least=10_000, cores=1, cluster=0, folder="", only=0)
    if chosen.only:
        work(Path(chosen.folder), chosen.only, "local" if chosen.cluster else "", chosen.cores)
        return
    rows, sizes = [], [size for size in (10_000, 100_000, 1_000_000) if chosen.least <= size <= chosen.most]
    sizes = sizes or [chosen.most]
    with tempfile.TemporaryDirectory(dir=chosen.folder or None) as name:
        for size in sizes:
            make(size, Path(name) / str(size))
            texts_bytes = sum(e["bytes"] for e in json.loads((Path(name) / str(size) / table.FUNNEL).read_text()))
            common = ["--folder", name, "--only", str(size), "--cores", str(chosen.cores)]
            rows.append({"documents": size, "bytes": texts_bytes} | measured(common))
            if chosen.cluster and size == sizes[0]:
                ray = measured([*common, "--cluster", "1"])
                print("a local Ray cluster gives the same bytes:", ray["digest"] == rows[0]["digest"])
                if ray["digest"] != rows[0]["digest"]:
                    raise SystemExit(1)
            for path in Path(name).iterdir():
                shutil.rmtree(path)
    show(rows, chosen.cores, chosen.json)


def show(rows: list[dict[str, float]], cores: int, as_json: bool) -> None:
    """Print a row a size."""
    view = Table(title=f"dedup and decontamination on {cores} cores")
    for column in ("documents", "text, GB", "dedup, docs/s", "decontamination, docs/s", "MB/s", "peak memory, GB",
                   "dedup's disk, bytes a document", "planted items missed"):  # fmt: skip
        view.add_column(column, justify="right")
    for row in rows:
        count = row["documents"]
        row |= {"dedup_rate": count / row["dedup"], "decontaminate_rate": count / row["decontaminate"]}
        view.add_row(
            f"{count:,}", f"{row['bytes'] / 1e9:.2f}", f"{row['dedup_rate']:,.0f}", f"{row['decontaminate_rate']:,.0f}",
            f"{row['bytes'] / 1e6 / row['decontaminate']:,.1f}", f"{row['peak_bytes'] / 1e9:.2f}",
            f"{row['dedup_disk'] / count:,.0f}", f"{row['missed']} ({row['gone']} went as copies)",
        )  # fmt: skip
    Console(width=120).print(view)
    if as_json:
        ours = rows[-1]["dedup_rate"]
        line = {"name": "data-scaling", "unit": "documents/s", "ours": ours, "peers": {}, "limit": None}
        print(json.dumps({**line, "detail": {"rows": rows}, "machine": machine()}))


if __name__ == "__main__":
    main()
