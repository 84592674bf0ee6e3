"""The one place where model-written code runs: no network, no files but its own, bounded in everything.

`bubblewrap`: setpriv to nobody (where we are root, or process limits would not bind) -> bubblewrap with its own user,
process, network, mount and host namespaces, a read-only /usr, an empty environment, a small /tmp, no capability and a
seccomp filter -> rlimits. `strict`, where namespaces are forbidden: a process that has given up everything but
thinking, by a seccomp filter of its own (`openafm.sampling.locked`): it cannot open a file, nor import what is not
loaded. Where the kernel grants neither, nothing is run.

Each program has an interpreter of its own, which may have waited for it behind its walls (`openafm.sampling.room`).
"""

import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from openafm.sampling import room, seccomp
from openafm.sampling.interpreter import Limits, start


@dataclass(frozen=True)
class Result:
    """What a program did. `exit_code` is negative for a signal."""

    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool
    seconds: float
    backend: str
    """`bubblewrap` or `strict`."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself without error."""
        return self.exit_code == 0 and not self.timed_out


@dataclass(frozen=True)
class Job:
    """A program and what it reads."""

    code: str
    stdin: str = ""


def run(code: str, stdin: str = "", limits: Limits = Limits()) -> Result:
    """Run Python `code` with `stdin` inside the sandbox.

    Raises ValueError where there is no sandbox.
    """
    kind = backend()
    if kind == "none":
        raise ValueError(
            "no sandbox for model-written code: this system grants neither namespaces nor seccomp filters. Use Linux "
            "on x86-64 or 64-bit ARM, with bubblewrap if you can (apt install bubblewrap), or the Docker image"
        )
    return _launch(_passable(code), stdin, limits, kind)


def run_all(jobs: Iterable[Job], limits: Limits = Limits(), workers: int = 2) -> list[Result]:
    """Run many programs, `workers` at a time; results in the order of the jobs."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda job: run(job.code, job.stdin, limits), jobs))


@lru_cache(maxsize=1)
def backend() -> str:
    """The backend `run` uses on this machine, tried once; "none" where nothing may be run."""
    if not seccomp.supported():
        return "none"
    if _works("bubblewrap"):
        return "bubblewrap"
    return "strict" if _works("strict") else "none"


def _works(kind: str) -> bool:
    """Try it: some containers ship bubblewrap but forbid namespaces."""
    if kind == "bubblewrap" and not all(map(shutil.which, ("bwrap", "prlimit", "setpriv"))):
        return False
    trial = start(kind, Limits())
    try:
        trial.give("pass", "")
        trial.process.communicate(timeout=60)
        return trial.process.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        trial.end()


def _launch(code: str, stdin: str, limits: Limits, kind: str) -> Result:
    """Give the program its interpreter, collect at most `output_bytes` of each stream, kill it at the wall limit."""
    started = time.monotonic()
    interpreter = room.take(kind, limits)
    try:
        interpreter.give(code, stdin)
        out, err, timed_out = _collect(interpreter.process, started + limits.wall_seconds, limits.output_bytes)
    finally:
        interpreter.end()
    seconds = time.monotonic() - started
    return Result(_text(out), _text(err), interpreter.process.returncode, timed_out, seconds, kind)


def _passable(code: str) -> str:
    """The program as text: what is none (too long, a zero byte, half a character) fails by itself."""
    try:
        fits = len(code.encode()) < 100_000 and "\0" not in code
    except UnicodeEncodeError:
        fits = False
    return code if fits else "raise SyntaxError('the program is too long or not text')"


def _collect(process: subprocess.Popen[bytes], deadline: float, most: int) -> tuple[bytes, bytes, bool]:
    """Read both streams until they close, one passes its cap, or the deadline is reached."""
    assert process.stdout and process.stderr
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as ready:
        for stream in kept:
            ready.register(stream, selectors.EVENT_READ)
        while ready.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(kept[process.stdout]), bytes(kept[process.stderr]), True
            for key, _ in ready.select(left):
                chunk = os.read(key.fd, 65536)
                held = kept[key.fileobj]  # type: ignore[index]
                held += chunk[: most - len(held)]
                if not chunk:
                    ready.unregister(key.fileobj)
                elif len(held) >= most:
                    return bytes(kept[process.stdout]), bytes(kept[process.stderr]), False
    try:  # streams closed: the program is done, unless it closed them itself and lingers
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return bytes(kept[process.stdout]), bytes(kept[process.stderr]), True
    return bytes(kept[process.stdout]), bytes(kept[process.stderr]), False


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
