"""The host that hostile programs attack: a secret, a listener, a process, and what tells that they were reached.

Used by the tests and by benchmarks/sandbox.py.
"""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from openafm.sampling import interpreter, room, sandbox, seccomp, waiting

ATTACKS = {row["name"]: row for row in yaml.safe_load((Path(__file__).parent / "attacks.yaml").read_text())}
QUICK = [name for name, row in ATTACKS.items() if not row.get("slow")]
SLACK_SECONDS = 20.0
"""What a busy machine may take on top of a limit."""
_OTHERS = {"openat": (257, 56), "clone": (56, 220), "clone3": (435, 435), "pidfd_open": (434, 434)}
_OPENING = """
import ctypes, os, sys, time
try: import socket
except ImportError: pass
libc = ctypes.CDLL(None, use_errno=True)
call = lambda name, *arguments: libc.syscall(NUMBERS[name], *arguments)
out = lambda: print('OUT', flush=True)
"""


@dataclass(frozen=True)
class Host:
    """What is at stake."""

    secret: Path
    listener: socket.socket
    abstract: socket.socket
    canary: subprocess.Popen[bytes]
    known: str

    def program(self, attack: str) -> str:
        """The attack's program, which knows what to look for."""
        column = list(seccomp.ARCHITECTURES).index(os.uname().machine)
        numbers = {name: pair[column] or -1 for name, pair in {**seccomp.REFUSED, **_OTHERS}.items()}
        given = {
            "SECRET": str(self.secret), "PORT": self.listener.getsockname()[1], "CANARY": self.canary.pid,
            "ABSTRACT": self.abstract.getsockname()[1:].decode(), "KNOWN": self.known[::-1], "NUMBERS": numbers,
        }  # fmt: skip
        told = "\n".join(f"{name} = {value!r}" for name, value in given.items())
        # KNOWN goes in backwards: a program that finds its own text in /proc has not found the host's environment
        return f"{told}\nKNOWN = KNOWN[::-1]\n{_OPENING}{ATTACKS[attack]['code']}\n"

    def harm(self) -> str:
        """What happened to the host, or nothing."""
        for name, server in (("TCP", self.listener), ("abstract", self.abstract)):
            try:
                server.accept()
                return f"the {name} socket was reached"
            except BlockingIOError:
                pass
        if self.canary.poll() is not None:
            return "the host's process was killed"
        return "" if self.secret.read_text() == "secret" else "the host's file was changed"

    def survivors(self) -> list[str]:
        """Processes of our programs: what runs in a sandboxed interpreter, or carries our mark on its command line."""
        room.dismiss()  # those that wait for a program are none
        marks = [str(self.secret).encode(), str(waiting.__doc__).encode()]
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                told = entry.read_bytes()
                if any(mark in told for mark in marks) and int(entry.parent.name) != os.getpid():
                    found.append(entry.parent.name)
            except OSError:  # it ended meanwhile
                continue
        return found


@contextmanager
def host() -> Iterator[Host]:
    """A host for the time of a test."""
    known = f"openafm-{os.urandom(8).hex()}"
    os.environ["OPENAFM_CANARY"] = known
    with tempfile.TemporaryDirectory() as folder, socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract:
        Path(folder).chmod(0o777)
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        secret.chmod(0o666)
        tcp.bind(("127.0.0.1", 0))
        abstract.bind(f"\0{known[::-1]}-socket")
        for server in (tcp, abstract):
            server.listen()
            server.setblocking(False)
        as_nobody = {"user": interpreter.NOBODY} if os.geteuid() == 0 else {}  # within reach of whoever is nobody too
        canary = subprocess.Popen(["sleep", "600"], **as_nobody)
        try:
            yield Host(secret, tcp, abstract, canary, known)
        finally:
            canary.kill()
            canary.wait()
            del os.environ["OPENAFM_CANARY"]


def fault(host: Host, attack: str, result: sandbox.Result, limits: sandbox.Limits) -> str:
    """What went wrong, or nothing: it got out, did harm, was too late or too loud, or left a process behind."""
    if "OUT" in result.stdout:
        return "it got out"
    if result.seconds > limits.wall_seconds + SLACK_SECONDS:
        return f"it took {result.seconds:.1f} s"
    if max(len(result.stdout), len(result.stderr)) > limits.output_bytes:
        return "too much output was kept"
    if ATTACKS[attack].get("slow") and result.ok:
        return "it ended by itself"
    for _ in range(100):
        if not host.survivors():
            return host.harm()
        time.sleep(0.05)
    return f"processes {', '.join(host.survivors())} survived"
