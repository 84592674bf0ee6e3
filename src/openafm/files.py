"""What every part asks of files and of the machine."""

import hashlib
import os
from mmap import ACCESS_READ, mmap
from pathlib import Path

import psutil


def default_cache() -> Path:
    """Where downloads are kept: $OPENAFM_CACHE, or ~/.cache/openafm."""
    return Path(os.environ.get("OPENAFM_CACHE") or Path.home() / ".cache" / "openafm")


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


PIECE = 2**24
"""Bytes of a piece of a large file that has a checksum of its own, so that several can be verified at once."""


def piece_digest(path: Path, number: int) -> str:
    """SHA-256 of a file's piece of that number in hexadecimal."""
    here = slice(number * PIECE, (number + 1) * PIECE)
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data, memoryview(data)[here] as piece:
        return hashlib.sha256(piece).hexdigest()


def pieces(path: Path) -> int:
    """How many pieces a file has; the last one may be shorter."""
    return -(-path.stat().st_size // PIECE)


def cores() -> int:
    """Logical cores that this process may use, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed or 1


def free_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take, of the machine's and of its container's (Linux cgroup v2)."""
    free: int = psutil.virtual_memory().available
    try:
        most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return max(0, min(free, most - used + int(held.get("inactive_file", 0))))  # files' pages are given back
