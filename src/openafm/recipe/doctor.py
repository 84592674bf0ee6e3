"""Is this machine ready? What is missing, what that costs, and how to get it (`openafm doctor`)."""

import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

DISK_GB = 6.0
"""Installation, downloads and a nano run together."""
TOOLS = {
    "bwrap": "model-written code runs in a weaker sandbox without it: apt-get install bubblewrap",
    "npm": "documentation and code out of npm packages are left out without it: install Node.js",
    "apt-get": "the larger documentation packages are left out: there are none but on Debian and Ubuntu",
}


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    good: bool
    needed: bool
    """A run is impossible without it."""
    found: str
    remedy: str


def examine(folder: Path = Path()) -> list[Check]:
    """Look at Python, the packages, helper programs, memory and disk; nothing is changed."""
    python = ".".join(map(str, sys.version_info[:3]))
    free = shutil.disk_usage(folder).free / 1e9
    return [
        Check("python", sys.version_info >= (3, 11), True, python, "install Python 3.11 or later"),
        *_packages(),
        *(Check(tool, bool(shutil.which(tool)), False, shutil.which(tool) or "", why) for tool, why in TOOLS.items()),
        Check("disk", free >= DISK_GB, False, f"{free:.1f} GB free", f"a nano run takes up to {DISK_GB:.0f} GB in all"),
    ]


def _packages() -> list[Check]:
    """The project's own requirements against what is installed."""
    try:
        lines = metadata.requires("openafm") or []
    except metadata.PackageNotFoundError:
        return [Check("openafm", False, True, "", "pip install -c constraints.txt .")]
    requirements = [Requirement(line) for line in lines]
    return [_package(found) for found in requirements if found.marker is None or found.marker.evaluate({"extra": ""})]


def _package(requirement: Requirement) -> Check:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        version = ""
    good = bool(version) and requirement.specifier.contains(version, prereleases=True)
    return Check(requirement.name, good, True, version, f"pip install -c constraints.txt '{requirement}'")
