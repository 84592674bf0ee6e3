"""The one place where model-written code runs: no network, no files but its own, bounded in everything.

Strong backend: setpriv to nobody (where we are root, or process limits would not bind) -> bubblewrap with its own
user, process, network, mount and host namespaces, a read-only /usr, an empty environment and a small /tmp -> rlimits.
The weak backend (a bare subprocess with rlimits) cannot hide files or the network; it refuses unless told otherwise.
"""

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

NOBODY = 65534
ALLOW_WEAK = "OPENAFM_ALLOW_WEAK_SANDBOX"


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
    """Size of its whole /tmp."""
    processes: int = 16
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
    """`bubblewrap`, or `weak` for the bare subprocess."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself without error."""
        return self.exit_code == 0 and not self.timed_out


@dataclass(frozen=True)
class Job:
    """A program and what it reads."""

    code: str
    stdin: str = ""


def run(code: str, stdin: str = "", limits: Limits = Limits(), *, allow_weak: bool = False) -> Result:
    """Run Python `code` with `stdin` inside the sandbox.

    Raises ValueError when bubblewrap does not work here and the weak backend was not allowed.
    """
    if _bubblewrap_works():
        return _launch(_strong_command(limits), code, stdin, limits, "bubblewrap", None)
    if not (allow_weak or os.environ.get(ALLOW_WEAK) == "1"):
        raise ValueError(
            "no sandbox for model-written code: bubblewrap is missing or may not make namespaces here. "
            f"Install it (apt install bubblewrap), or accept a weaker one with {ALLOW_WEAK}=1 on a machine you can lose"
        )
    with tempfile.TemporaryDirectory(prefix="openafm-weak-") as folder:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        return _launch(_weak_command(limits), code, stdin, limits, "weak", Path(folder))


def run_all(
    jobs: Iterable[Job], limits: Limits = Limits(), workers: int = 2, *, allow_weak: bool = False
) -> list[Result]:
    """Run many programs, `workers` at a time; results in the order of the jobs."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda job: run(job.code, job.stdin, limits, allow_weak=allow_weak), jobs))


@lru_cache(maxsize=1)
def _bubblewrap_works() -> bool:
    """Try once: some containers ship bubblewrap but forbid namespaces."""
    if shutil.which("bwrap") is None:
        return False
    trial = subprocess.run([*_strong_command(Limits()), "-c", "pass"], capture_output=True, timeout=30, env={})
    return trial.returncode == 0


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


def _ulimit(limits: Limits) -> list[str]:
    """The limits that every POSIX shell can set; memory only where the system knows such a limit (macOS does not)."""
    script = (
        f"ulimit -t {limits.cpu_seconds}; ulimit -f {limits.file_bytes // 512}; ulimit -n {limits.open_files}; "
        f'ulimit -c 0; ulimit -v {limits.memory_bytes // 1024} 2>/dev/null; exec "$@"'
    )
    return ["/bin/sh", "-c", script, "sh"]


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ValueError(f"the sandbox needs {name}; install it (apt install util-linux bubblewrap)")
    return path


def _strong_command(limits: Limits) -> list[str]:
    """The whole command line up to Python's own arguments."""
    python, shown = _interpreter()
    command = _unprivileged() if os.geteuid() == 0 else []
    command += [
        _tool("bwrap"), "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL",
        "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", "--ro-bind", "/usr", "/usr",
    ]  # fmt: skip
    for link in ("lib", "lib64", "lib32", "bin", "sbin"):
        path = Path("/") / link
        if path.is_symlink():
            command += ["--symlink", f"usr/{link}", f"/{link}"]
        elif path.exists():
            command += ["--ro-bind", str(path), str(path)]
    command += [*shown, "--proc", "/proc", "--dev", "/dev", "--size", str(limits.disk_bytes), "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/dev", "--chdir", "/tmp", "--setenv", "PATH", "/usr/bin:/bin"]
    return [*command, "--", *_prlimit(limits), str(python), "-I", "-B"]


def _weak_command(limits: Limits) -> list[str]:
    """Isolated-mode Python under rlimits; for root also as nobody, without network and in its own process space."""
    limited = _prlimit(limits) if shutil.which("prlimit") else _ulimit(limits)  # macOS has no prlimit(1)
    program = [*limited, str(_interpreter()[0]), "-I", "-B"]
    if os.geteuid() != 0:
        return program
    return [*(_APART if _apart_works() else []), *_unprivileged(), *program]


_APART = ["unshare", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--"]


@lru_cache(maxsize=1)
def _apart_works() -> bool:
    return (
        shutil.which("unshare") is not None and subprocess.run([*_APART, "true"], capture_output=True).returncode == 0
    )


def _unprivileged() -> list[str]:
    """Become nobody: the kernel does not hold root to its process limit."""
    return [_tool("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--"]


def _launch(command: list[str], code: str, stdin: str, limits: Limits, backend: str, folder: Path | None) -> Result:
    """Start the program, feed it, collect at most `output_bytes` of each stream, kill its group at the wall limit."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as source:  # a file, so that a program that never reads cannot block us
        source.write(stdin.encode("utf-8", "replace"))
        source.seek(0)
        process = subprocess.Popen(
            [*command, "-c", _passable(code)],
            stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"LANG": "C.UTF-8"}, cwd=folder or "/", start_new_session=True,
        )  # fmt: skip
        try:
            out, err, timed_out = _collect(process, started + limits.wall_seconds, limits.output_bytes)
        finally:
            _kill(process)
    seconds = time.monotonic() - started
    return Result(_text(out), _text(err), process.returncode, timed_out, seconds, backend)


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


def backend() -> str:
    """The backend `run` uses on this machine; "none" where only the weak one is there and nobody has allowed it."""
    if _bubblewrap_works():
        return "bubblewrap"
    return "weak" if os.environ.get(ALLOW_WEAK) == "1" else "none"
