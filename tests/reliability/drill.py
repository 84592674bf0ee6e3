"""Crash and error drill on a recipe: kills, two runs at once, a moved clock, flipped bits, a full disk, broken input.

    python tests/reliability/drill.py --kills 30 --seed 1
    python tests/reliability/drill.py flips disk
    python tests/reliability/drill.py kills --recipe nano --kills 5 --unbroken runs/nano

Each drill breaks a run, lets the same command go on, and compares every artifact's digest with those of an unbroken
run; what cannot go on must end in one line that says what to do. Prints a table; exit code 1 if a drill did not hold.
Killed runs have all cores of the machine and one of them (and so one worker) in turn, two kills each.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from openafm.recipe import artifacts
from openafm.stage import Context, Hardware

MARK = "OPENAFM_DRILL"
"""Environment variable by which what a killed run left behind is found."""
DAMAGES = ("flip", "truncate", "remove", "manifest")
DECADE = 10 * 365 * 86_400
DISK_KB = (200, 1_000, 2_000, 4_000, 6_000, 8_000)
"""Sizes of the disk, one after the other, on which tiny (10 MB) cannot finish."""


class SkippedError(Exception):
    """This machine does not allow a drill; the message says why."""


@dataclass
class Drill:
    """The unbroken run, and how the command is called."""

    folder: Path
    until: str = ""
    """Stop after this step: the short version."""
    seed: int = 1
    recipe: str = "tiny"
    given: Path | None = None
    """A finished run of this recipe, by this code on this machine, that the others are compared with."""
    reference: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """What the unbroken run took."""

    def command(self, runs: Path) -> list[str]:
        """`openafm run RECIPE`, on a disk of any size."""
        words = [sys.executable, "-m", "openafm", "run", self.recipe, "--runs-dir", str(runs), "--set", "disk_mb=0"]
        return [*words, "--until", self.until] if self.until else words

    def prepare(self, runs: Path) -> Path:
        """A run's folder with the reference's hardware, or one thread: two of them crawl on a busy machine."""
        run = runs / self.recipe
        run.mkdir(parents=True)
        told = json.loads((self.given / "run.json").read_text()) if self.given else {}
        hardware, probe = told.get("hardware", asdict(Hardware(threads=1))), told.get("probe", {})
        (run / "run.json").write_text(json.dumps({"hardware": hardware, "probe": probe}))
        return run

    def finish(self, runs: Path) -> subprocess.CompletedProcess:
        """Run to the end; AssertionError when it does not end well."""
        done = subprocess.run(self.command(runs), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    @property
    def whole(self) -> Path:
        """The unbroken run."""
        return self.given or self.folder / "unbroken" / self.recipe

    def unbroken(self) -> None:
        """Make the run that all others are compared with, where none is given."""
        started = time.monotonic()
        if not self.given:
            self.finish(self.prepare(self.folder / "unbroken").parent)
        self.reference, self.seconds = digests(self.whole), time.monotonic() - started

    def compare(self, run: Path) -> None:
        """Every artifact has the unbroken run's digest, its files are those of its manifest, and nothing is left."""
        assert digests(run) == self.reference, f"other bytes in {sorted(differing(digests(run), self.reference))}"
        for step in self.reference:
            manifest = artifacts.read_manifest(run / step)
            assert manifest is not None and artifacts.damage(run / step, manifest) is None
        left = [path.name for path in run.iterdir() if path.name.endswith((".partial", ".old", ".new"))]
        assert not left, f"left behind: {left}"


def digests(run: Path) -> dict[str, str]:
    """Digest of each finished step."""
    return {
        path.parent.name: json.loads(path.read_text())["digest"] for path in sorted(run.glob("[!.]*/manifest.json"))
    }


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def kills(drill: Drill, count: int, minutes: float = math.inf) -> tuple[int, str]:
    """SIGKILL in random steps, half to the process, half to its group; each run is then finished and compared.

    The moment is drawn from the time the step took in the unbroken run, so that a slow machine is killed all over too.
    What had been finished when a kill came is not made again. After `minutes` no new run is begun.
    """
    rng = random.Random(drill.seed)
    seconds = {
        step: json.loads((drill.whole / step / artifacts.MANIFEST).read_text())["times"]["seconds"]
        for step in drill.reference
    }
    order = sorted(seconds, key=lambda step: (drill.whole / step / artifacts.MANIFEST).stat().st_mtime)
    ends = time.monotonic() + 60 * minutes
    done = finished = 0
    hit: set[str] = set()
    workers: Counter[int] = Counter()
    while done < count and time.monotonic() < ends:
        finished += 1
        run = drill.prepare(drill.folder / f"killed-{finished}")
        made: dict[str, int] = {}
        for step in sorted(rng.sample(order, min(8, count - done, len(order))), key=order.index):
            with on_cores(done // 2 % 2 == 1) as cores:
                killed = kill_once(drill, run, step, rng.uniform(0.0, seconds[step]), whole_group=done % 2 == 0)
            if killed:
                hit.add(step)
                workers[cores] += 1
                done += 1
            again = [name for name, at in made.items() if made_at(run).get(name) != at]
            assert not again, f"finished before the kill and made again: {again}"
            made = made_at(run)
        drill.finish(run.parent)
        drill.compare(run)
        shutil.rmtree(run.parent)
    spread = " and ".join(f"{number} with {cores}" for cores, number in sorted(workers.items()))
    return done, (
        f"{finished} runs ended with the unbroken bytes, nothing finished was made again; killed in {len(hit)} "
        f"different steps, by workers: {spread}; no orphans"
    )


def moved_clock(folder: Path) -> Path:
    """Build the library that moves a process's clock; Skipped where there is no compiler, or no such preloading."""
    compiler, library = shutil.which("cc") or shutil.which("gcc"), folder / "clock.so"
    if compiler is None or sys.platform != "linux":
        raise SkippedError("needs Linux and a C compiler (Debian: apt-get install gcc)")
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    told = folder / "offset"
    told.write_text(str(DECADE))
    moved = os.environ | {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(told)}
    seen = subprocess.check_output([sys.executable, "-c", "import time; print(time.time())"], env=moved, text=True)
    assert abs(float(seen) - time.time() - DECADE) < 60, "the clock of a process could not be moved"
    return library


def made_at(run: Path) -> dict[str, int]:
    """When each finished step of a run was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob(f"[!.]*/{artifacts.MANIFEST}")}


@contextmanager
def on_cores(one: bool) -> Iterator[int]:
    """Have what is started meanwhile run on one core, where the system can; how many there are."""
    if not hasattr(os, "sched_getaffinity"):
        yield os.cpu_count() or 1
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)} if one else allowed)
    try:
        yield 1 if one else len(allowed)
    finally:
        os.sched_setaffinity(0, allowed)


def kill_once(drill: Drill, run: Path, step: str, seconds: float, whole_group: bool) -> bool:
    """Start, wait so many seconds into `step`, kill; False when the run was over before."""
    mark = f"{run}-{time.monotonic_ns()}"
    process = subprocess.Popen(
        drill.command(run.parent),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {MARK: mark},
    )
    while not artifacts.partial(run, step).exists() and not (run / step).exists() and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        assert_nobody_left(mark)
        return True
    assert process.returncode == 0, f"exit code {process.returncode} while {step} was to be killed"
    return False


def assert_nobody_left(mark: str, seconds: float = 10.0) -> None:
    """Children of a killed run end by themselves, soon."""
    deadline = time.monotonic() + seconds
    while left := [process for process in psutil.process_iter() if _mark(process) == mark]:
        assert time.monotonic() < deadline, f"still at work after the kill: {[process.cmdline() for process in left]}"
        time.sleep(0.1)


def _mark(process: psutil.Process) -> str:
    try:
        return process.environ().get(MARK, "") if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.Error:
        return ""


def two(drill: Drill) -> tuple[int, str]:
    """A second run on one folder is turned away, and the first does not notice."""
    run = drill.prepare(drill.folder / "two")
    first = subprocess.Popen(drill.command(run.parent), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(run.glob(".*.partial")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # or it might be done before the second has started
    second = subprocess.run(drill.command(run.parent), capture_output=True, text=True, check=False)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1, second.stdout + second.stderr
    assert_one_line(second.stderr, "is being run by another process: wait for it, or stop it first")
    first.communicate()
    assert first.returncode == 0
    drill.compare(run)
    return 1, "the second refused (exit code 1), the first ended with the unbroken bytes"


def clock(drill: Drill) -> tuple[int, str]:
    """The clock ten years back, ten years ahead, and jumping all the while; then files with any dates at all."""
    library = moved_clock(drill.folder)
    rng = random.Random(drill.seed)
    jumps = 0
    for name, moved_by in (("back", -DECADE), ("ahead", DECADE), ("jumping", 0)):
        run = drill.prepare(drill.folder / f"clock-{name}")
        told = run.parent / "offset"
        told.write_text(str(moved_by))
        moved = {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(told)}
        with (run.parent / "log").open("w+") as log:
            process = subprocess.Popen(drill.command(run.parent), stdout=log, stderr=log, env=os.environ | moved)
            while process.poll() is None:
                time.sleep(0.5)
                if not moved_by:
                    partial = told.with_suffix(".new")
                    partial.write_text(str(rng.randint(-DECADE, DECADE)))
                    partial.replace(told)
                    jumps += 1
            log.seek(0)
            assert process.returncode == 0, f"{name}: {log.read()}"
        drill.compare(run)
    for path in run.rglob("*"):
        os.utime(path, (rng.uniform(0, 2 * DECADE),) * 2)
    before = made_at(run)
    drill.finish(run.parent)
    assert made_at(run) == before, "steps were made again for their files' dates"
    drill.compare(run)
    return jumps + 3, "back, ahead, jumping: the unbroken bytes; files of any date stayed current"


def flips(drill: Drill, kinds: tuple[str, ...] = DAMAGES, singles: int = 4) -> tuple[int, str]:
    """A bit flipped, a file cut off, a file gone: seen in every file; then every step damaged at once, once a kind."""
    run = drill.prepare(drill.folder / "flipped")
    drill.finish(run.parent)
    rng = random.Random(drill.seed)
    tries = seen_by_inspection(run, drill, rng)
    for kind in kinds:
        for step in drill.reference:
            damage(random_file(run / step, rng) if kind != "manifest" else run / step / artifacts.MANIFEST, kind, rng)
        printed = drill.finish(run.parent).stdout
        unnamed = [
            step for step in drill.reference if f"the artifact of {step} is corrupt and is made again" not in printed
        ]
        assert not unnamed, f"{kind}: not named: {unnamed}"
        drill.compare(run)
        tries += len(drill.reference)
    for step in rng.sample(sorted(drill.reference), min(singles, len(drill.reference))):
        damage(random_file(run / step, rng), "flip", rng)
        printed = drill.finish(run.parent).stdout
        assert "1 step in" in printed, f"more than {step} was made again:\n{printed}"
        drill.compare(run)
        tries += 1
    return tries, "each named and made again, unbroken bytes; followers of equal bytes stayed current"


def seen_by_inspection(run: Path, drill: Drill, rng: random.Random) -> int:
    """Damage every file of every step in turn, and flip bits all over the manifests: all of it is noticed."""
    tries = 0
    for step in drill.reference:
        manifest = artifacts.read_manifest(run / step)
        assert manifest is not None
        for name in manifest.outputs:
            path = run / step / name
            for kind in ("flip", "truncate", "remove"):
                whole = damage(path, kind, rng)
                found = artifacts.damage(run / step, manifest)
                assert found and str(path) in found, f"{kind} of {path} went unnoticed: {found}"
                path.write_bytes(whole)
                tries += 1
        for _ in range(20):
            path = run / step / artifacts.MANIFEST
            whole = damage(path, "flip", rng)
            try:
                assert artifacts.read_manifest(run / step) == manifest, f"a flipped bit in {path} went unnoticed"
            except ValueError as error:
                assert str(path) in str(error)
            path.write_bytes(whole)
            tries += 1
    return tries


def random_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(
        [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != artifacts.MANIFEST]
    )


def damage(path: Path, kind: str, rng: random.Random) -> bytes:
    """Flip one bit, cut the end off, or remove; what was there before."""
    whole = path.read_bytes()
    if kind == "remove":
        path.unlink()
    elif kind == "truncate" and whole:
        path.write_bytes(whole[: rng.randrange(len(whole))])
    elif not whole:
        path.write_bytes(b"\0")  # an empty file has no bit to flip
    else:
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
    return whole


def disk(drill: Drill, sizes: tuple[int, ...] = DISK_KB) -> tuple[int, str]:
    """A disk that fills at several places, then one that cannot be written; after making room the run goes on."""
    kept: list[int] = []
    with small_disk(drill.folder / "disk", sizes[0]) as mounted:
        run = drill.prepare(mounted)
        for size in sizes:
            _mount("-o", f"remount,size={size}k", str(mounted))
            done = subprocess.run(drill.command(mounted), capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
            assert done.returncode == 1, done.stdout + done.stderr
            last = done.stderr.strip().splitlines()[-1]  # daft prints a line of its own before
            assert_one_line(last, f"the disk of {run} is full", "make room, then the same command goes on")
            assert "Traceback" not in done.stderr, done.stderr
            for step, digest in digests(run).items():
                assert digest == drill.reference[step], f"{step} was kept with other bytes"
            kept.append(len(digests(run)))
        _mount("-o", "remount,size=1g,ro", str(mounted))
        refused = subprocess.run(drill.command(mounted), capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert_one_line(refused.stderr, f"cannot write in {run}", "--runs-dir")
        _mount("-o", "remount,rw", str(mounted))
        drill.finish(mounted)
        drill.compare(run)
    return len(
        kept
    ) + 1, f"full with {', '.join(map(str, kept))} steps kept, read-only told; with room the unbroken bytes"


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of this size in memory; Skipped where mounting is not allowed."""
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        raise SkippedError("a small disk needs Linux and root")
    try:
        _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder))
    except subprocess.CalledProcessError as error:
        raise SkippedError(f"mount is not allowed here: {error.stderr.strip()}") from None
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True, text=True)


def readers(drill: Drill) -> tuple[int, str]:
    """Verbs that read a run, on damaged files: one line that names the file, no traceback."""
    run = drill.prepare(drill.folder / "read")
    drill.finish(run.parent)
    url = json.loads((run / "fetch/planted.jsonl").read_text().splitlines()[0])["url"]
    rng = random.Random(drill.seed)
    cases: list[tuple[list[str], str, str]] = [
        (["status", str(run)], "run.json", "truncate"),
        (["chat", str(run)], "run.json", "truncate"),
        (["report", str(run)], "run.json", "truncate"),
        (["report", str(run)], "extract/manifest.json", "truncate"),
        (["why", url, "--run", str(run)], "extract/documents/0.parquet", "truncate"),
        (["why", url, "--run", str(run)], "extract/documents/0.parquet", "flip"),
    ]
    if not drill.until:
        package = "summariser/model.afm"
        cases += [
            (["chat", str(run)], f"{package}/weights.safetensors", "flip"),
            (["chat", str(run)], f"{package}/header.json", "truncate"),
            (["chat", str(run)], f"{package}/tokenizer.model", "flip"),
            (["chat", str(run / "sft_best")], "sft_best/model.safetensors", "flip"),
            (["chat", str(run / "sft_best")], "sft_best/tokenizer.model", "truncate"),
            (["chat", str(run / "sft_best")], "sft_best/config.json", "truncate"),
            (["report", str(run)], "teacher/metrics.jsonl", "truncate"),
            (["report", str(run)], "evaluate_teacher/evaluation.json", "truncate"),
        ]
    for words, name, kind in cases:
        whole = damage(run / name, kind, rng)
        done = subprocess.run([sys.executable, "-m", "openafm", *words], input="", capture_output=True, text=True)
        (run / name).write_bytes(whole)
        quiet = name == "run.json" and words[0] == "chat"  # reads nothing of it
        assert quiet or done.returncode in (1, 2), f"{words[0]} on {kind} of {name}: exit code {done.returncode}"
        if not quiet:
            assert_one_line(done.stderr, str(run / name))
    (run / "extract" / "manifest.json").write_bytes(b"{")
    found = json.loads(
        subprocess.run(
            [sys.executable, "-m", "openafm", "status", str(run), "--json"], capture_output=True, check=True
        ).stdout
    )
    assert {state["step"]: state["state"] for state in found}["extract"] == "corrupt"
    return len(cases) + 1, "one line that names the file, exit code 1 or 2; status shows the step as corrupt"


def warc(drill: Drill) -> tuple[int, str]:
    """Broken records in the crawl archive: counted rejects, the other pages read as ever."""
    import pyarrow.parquet as pq

    from openafm.data.ingest import ExtractConfig, extract

    sources = drill.whole / "fetch"
    broken = drill.folder / "broken"
    rng = random.Random(drill.seed)
    archives = sorted((sources / "warc").iterdir(), key=lambda path: -path.stat().st_size)[:4]
    for path in sources.rglob("*"):
        if path.is_file() and path not in archives and path.parent.name == "warc":
            _copy(path, broken / path.relative_to(sources))
    for path in archives:
        data = bytearray(path.read_bytes())
        at = data.index(b"\x1f\x8b\x08", rng.randrange(len(data) // 2)) + 40
        data[at : at + 30] = rng.randbytes(30)
        _copy(path, broken / path.relative_to(sources), bytes(data))
    out, scratch = drill.folder / "broken-out", drill.folder / "broken-scratch"
    out.mkdir()
    scratch.mkdir()
    metrics = extract(ExtractConfig(), Context(out, scratch), sources=broken)
    lost = metrics["rejected_without_url"] + metrics["dropped"].get("warc.broken", 0)
    whole = {row["url"]: row["text"] for row in pq.read_table(drill.whole / "extract/documents").to_pylist()}
    read = pq.read_table(out / "documents").to_pylist()
    same = sum(whole.get(row["url"]) == row["text"] for row in read if row["reason"] != "warc.broken")
    pages = sum(url.startswith("http") and row_is_web(url, drill) for url in whole)
    assert lost == len(archives), f"{lost} rejects of {len(archives)} broken records"
    assert same >= pages - len(archives), f"{same} of {pages} pages as ever"
    return len(archives), f"{lost} counted rejects, {same} of {pages} pages as ever"


def row_is_web(url: str, drill: Drill) -> bool:
    hosts = {path.name.removesuffix(".warc.gz") for path in (drill.whole / "fetch/warc").iterdir()}
    return url.split("/")[2] in hosts


def _copy(path: Path, target: Path, data: bytes | None = None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes() if data is None else data)


def assert_one_line(text: str, *parts: str) -> None:
    """An error is one line for people: what, where, and what to do."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), f"not one line of error:\n{text}"
    for part in parts:
        assert part in lines[0], f"{part!r} is not in: {lines[0]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drills", nargs="*", help="kills two clock flips disk readers warc [all of them]")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="of kills: begin no new run after these")
    parser.add_argument("--recipe", default="tiny", help="whose runs are broken; flips, readers and warc are for tiny")
    parser.add_argument("--unbroken", type=Path, help="a finished run by this code, here; else one is made")
    parser.add_argument("--until", default="", help="stop after this step, for a short drill")
    options = parser.parse_args()
    if options.unbroken and not (options.unbroken / "run.json").exists():
        parser.error(f"{options.unbroken} is no run (it has no run.json): make run RECIPE={options.recipe}")
    with tempfile.TemporaryDirectory(prefix="openafm-drill-") as folder:
        drill = Drill(Path(folder), options.until, options.seed, options.recipe, options.unbroken)
        known: dict[str, Callable[[], tuple[int, str]]] = {
            "kills": lambda: kills(drill, options.kills, options.minutes),
            "two": lambda: two(drill),
            "clock": lambda: clock(drill),
            "flips": lambda: flips(drill),
            "disk": lambda: disk(drill),
            "readers": lambda: readers(drill),
            "warc": lambda: warc(drill),
        }
        drill.unbroken()
        print(
            f"{'unbroken':<9} {1:>5} {drill.seconds:>7.0f} s  {len(drill.reference)} steps, the reference", flush=True
        )
        held = [report(name, known[name]) for name in options.drills or known]
    return 0 if all(held) else 1


def report(name: str, work: Callable[[], tuple[int, str]]) -> bool:
    """Run one drill and print its line."""
    started = time.monotonic()
    try:
        tries, outcome = work()
    except SkippedError as reason:
        tries, outcome = 0, f"skipped: {reason}"
    except AssertionError as error:
        print(f"{name:<9}       {time.monotonic() - started:>7.0f} s  FAILED: {error}", flush=True)
        return False
    print(f"{name:<9} {tries:>5} {time.monotonic() - started:>7.0f} s  {outcome}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
