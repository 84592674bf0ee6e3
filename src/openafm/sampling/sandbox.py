"""The one place where model-written code runs: no network, no files but its own, bounded in everything.

`bubblewrap`: setpriv to nobody (where we are root, or process limits would not bind) -> bubblewrap with its own user,
process, network, mount and host namespaces, a read-only /usr, an empty environment, a small /tmp, no capability and a
seccomp filter -> rlimits. `strict`, where namespaces are forbidden: a process that has given up everything but
thinking, by a seccomp filter of its own (`openafm.sampling.locked`): it cannot open a file, nor import what is not
loaded. Where the kernel grants neither, nothing is run.
"""

import base64
import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from openafm.sampling import locked, seccomp

NOBODY = 65534


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    wall_seconds: float = 5.0
    cpu_seconds: int = 2
    memory_bytes: int = 512 << 20
    """Address space of each process."""
    file_bytes: int = 1 << 20
    """Largest file it may write."""
    disk_bytes: int = 16 << 20
    """Size of its whole /tmp; under `strict` it has none."""
    processes: int = 4
    """With bubblewrap's own; each may take `memory_bytes`. Under `strict` there is one."""
    open_files: int = 64
    output_bytes: int = 64 << 10
    """Kept of stdout and of stderr each; a program that writes more is killed."""


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
    command = _walled_command if kind == "bubblewrap" else _strict_command
    with _sealed(seccomp.guard()) as guard, _sealed(stdin.encode("utf-8", "replace")) as source:
        return _launch([*command(limits, guard), _passable(code)], source, guard, limits, kind)


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
    command = _walled_command if kind == "bubblewrap" else _strict_command
    with _sealed(seccomp.guard()) as guard:
        trial = [*command(Limits(), guard), "pass"]
        return subprocess.run(trial, capture_output=True, timeout=60, env={}, pass_fds=[guard]).returncode == 0


@contextmanager
def _sealed(content: bytes) -> Iterator[int]:
    """A descriptor to read `content` from that nobody can write through: a sealed file in memory."""
    descriptor = os.memfd_create("sealed", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)
def _interpreter() -> tuple[Path, list[str]]:
    """A Python that the sandbox can see, and the bubblewrap arguments that show it."""
    system = Path("/usr/bin/python3")
    if system.exists():
        return system, []
    real = Path(sys.base_prefix)
    return real / "bin" / "python3", ["--ro-bind", str(real), str(real)]


def _prlimit(limits: Limits) -> list[str]:
    """Limits are set by prlimit(1), before anything of ours runs: no Python between fork and exec under threads."""
    return [
        _tool("prlimit"), f"--as={limits.memory_bytes}", f"--cpu={limits.cpu_seconds}", f"--fsize={limits.file_bytes}",
        f"--nproc={limits.processes}", f"--nofile={limits.open_files}", "--core=0", "--",
    ]  # fmt: skip


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ValueError(f"the sandbox needs {name}; install it (apt install util-linux bubblewrap)")
    return path


def _walled_command(limits: Limits, guard: int) -> list[str]:
    """The command line up to the program; `guard` is the descriptor of the seccomp filter."""
    python, shown = _interpreter()
    command = _unprivileged() if os.geteuid() == 0 else []
    command += [
        _tool("bwrap"), "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL",
        "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", "--seccomp", str(guard),
        "--ro-bind", "/usr", "/usr",
    ]  # fmt: skip
    for link in ("lib", "lib64", "lib32", "bin", "sbin"):
        path = Path("/") / link
        if path.is_symlink():
            command += ["--symlink", f"usr/{link}", f"/{link}"]
        elif path.exists():
            command += ["--ro-bind", str(path), str(path)]
    command += [*shown, "--proc", "/proc", "--dev", "/dev", "--size", str(limits.disk_bytes), "--tmpfs", "/tmp"]
    for place in ("/proc", "/dev", "/"):  # what is left to write is /tmp, whose size is bounded
        command += ["--remount-ro", place]
    command += ["--chdir", "/tmp", "--setenv", "PATH", "/usr/bin:/bin"]
    return [*command, "--", *_prlimit(limits), str(python), "-I", "-B", "-c"]


def _strict_command(limits: Limits, guard: int) -> list[str]:
    """The same for the process that locks itself, which needs nothing but Python and the kernel."""
    asked = {
        "limits": {"memory_bytes": limits.memory_bytes, "cpu_seconds": limits.cpu_seconds},
        "user": NOBODY,
        "filter": base64.b64encode(seccomp.lock()).decode(),
    }
    return [sys.executable, "-I", "-B", "-c", Path(locked.__file__).read_text(), json.dumps(asked)]


def _unprivileged() -> list[str]:
    """Become nobody: the kernel does not hold root to its process limit."""
    return [_tool("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--"]


def _launch(command: list[str], source: int, guard: int, limits: Limits, kind: str) -> Result:
    """Start the program, collect at most `output_bytes` of each stream, kill its group at the wall limit."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"LANG": "C.UTF-8"}, cwd="/", start_new_session=True, pass_fds=[guard],
    )  # fmt: skip
    try:
        out, err, timed_out = _collect(process, started + limits.wall_seconds, limits.output_bytes)
    finally:
        _kill(process)
    seconds = time.monotonic() - started
    return Result(_text(out), _text(err), process.returncode, timed_out, seconds, kind)


def _passable(code: str) -> str:
    """The program as one argument: what cannot be one (too long, a zero byte, half a character) fails by itself."""
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


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group; inside bubblewrap the process namespace dies with its first process."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
