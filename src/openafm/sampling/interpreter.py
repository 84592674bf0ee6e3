"""A Python behind its walls that waits for one program: the walls' command lines, and how the program is handed over.

Started ahead of its program, it hides from it what the walls and Python take to rise. It runs that one program and is
thrown away: nothing passes from one to the next.
"""

import base64
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from openafm.sampling import locked, seccomp, waiting

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
class Interpreter:
    """A process that waits, and the descriptors through which it gets its program."""

    process: subprocess.Popen[bytes]
    go: int
    """Writing end of the pipe it listens on."""
    source: int
    """The file in memory it reads the program from."""
    stdin: int

    def give(self, code: str, stdin: str) -> None:
        """Hand over the program and what it reads; both are sealed before it hears of them."""
        _fill(self.source, code.encode())
        _fill(self.stdin, stdin.encode("utf-8", "replace"))
        with suppress(BrokenPipeError):  # it could not rise: its exit code and stderr say why
            os.write(self.go, b"x")

    def end(self) -> None:
        """Kill the whole group; inside bubblewrap the process namespace dies with its first process."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        for descriptor in (self.go, self.source, self.stdin):
            os.close(descriptor)


def start(kind: str, limits: Limits) -> Interpreter:
    """Start an interpreter behind the walls of `kind` (`bubblewrap` or `strict`); returns before it has risen.

    Under bubblewrap it dies with the thread that calls this, as `--die-with-parent` is understood by the kernel.
    """
    source, stdin = _memory("program"), _memory("stdin")
    listen, go = os.pipe()
    with _sealed(seccomp.guard()) as guard:
        command = (
            _walled_command(limits, guard, listen, source)
            if kind == "bubblewrap"
            else _strict_command(limits, listen, source)
        )
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"LANG": "C.UTF-8"}, cwd="/", start_new_session=True, pass_fds=[guard, listen, source],
        )  # fmt: skip
    os.close(listen)
    return Interpreter(process, go, source, stdin)


def _memory(name: str) -> int:
    """An empty file in memory that can be sealed."""
    return os.memfd_create(name, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)


def _fill(descriptor: int, content: bytes) -> None:
    """Write what a file in memory is to hold, and seal it: from then on nobody can write through it."""
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


@contextmanager
def _sealed(content: bytes) -> Iterator[int]:
    """A descriptor to read `content` from."""
    descriptor = _memory("sealed")
    try:
        _fill(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)
def python() -> tuple[Path, list[str]]:
    """A Python that the sandbox can see, and the bubblewrap arguments that show it."""
    system = Path("/usr/bin/python3")
    if system.exists():
        return system, []
    real = Path(sys.base_prefix)
    return real / "bin" / "python3", ["--ro-bind", str(real), str(real)]


def walls(limits: Limits, guard: int) -> list[str]:
    """The command line of bubblewrap up to the program; `guard` is the descriptor of the seccomp filter."""
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
    command += [*python()[1], "--proc", "/proc", "--dev", "/dev", "--size", str(limits.disk_bytes), "--tmpfs", "/tmp"]
    for place in ("/proc", "/dev", "/"):  # what is left to write is /tmp, whose size is bounded
        command += ["--remount-ro", place]
    command += ["--chdir", "/tmp", "--setenv", "PATH", "/usr/bin:/bin"]
    return [*command, "--", *_prlimit(limits)]


def _walled_command(limits: Limits, guard: int, listen: int, source: int) -> list[str]:
    return [*walls(limits, guard), str(python()[0]), "-I", "-B", "-c", f"{_text(waiting)}\nserve({listen}, {source})"]


def _strict_command(limits: Limits, listen: int, source: int) -> list[str]:
    """The same for the process that locks itself, which needs nothing but Python and the kernel."""
    asked = {"memory_bytes": limits.memory_bytes, "cpu_seconds": limits.cpu_seconds}
    steps = base64.b64encode(seccomp.lock()).decode()
    locking = f"give_up({asked}, {NOBODY}, {steps!r}, {[listen, source]})"
    return [
        sys.executable,
        "-I",
        "-B",
        "-c",
        f"{_text(locked)}\n{_text(waiting)}\n{locking}\nserve({listen}, {source})",
    ]


def _text(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text()


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


def _unprivileged() -> list[str]:
    """Become nobody: the kernel does not hold root to its process limit."""
    return [_tool("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--"]
