"""What every part asks of files and of the machine."""

import hashlib
import os
from pathlib import Path


def default_cache() -> Path:
    """Where downloads are kept: $OPENAFM_CACHE, or ~/.cache/openafm."""
    return Path(os.environ.get("OPENAFM_CACHE") or Path.home() / ".cache" / "openafm")


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cores() -> int:
    """Logical cores that this process may use, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed or 1
