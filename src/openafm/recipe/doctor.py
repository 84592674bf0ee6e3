"""Is this machine ready? What is missing, what that costs, and how to get it on this system (`openafm doctor`)."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from openafm.files import free_memory

DISK_GB = 6.0
"""Installation, downloads and a nano run together."""
MEMORY_GB = 3.0
"""The largest step of nano takes 1.6 GB; the rest is the system's."""
BRANCHES = {"debian": "debian", "ubuntu": "debian", "fedora": "fedora", "rhel": "fedora", "centos": "fedora"}
GET = {
    "python": {"debian": "sudo apt-get install python3.11-venv", "fedora": "sudo dnf install python3.11",
               "macos": "brew install python@3.11"},
    "npm": {"debian": "sudo apt-get install npm", "fedora": "sudo dnf install npm", "macos": "brew install node"},
    "apt": {},
    "sandbox": {"debian": "sudo apt-get install bubblewrap", "fedora": "sudo dnf install bubblewrap"},
    "compiler": {"debian": "sudo apt-get install build-essential", "fedora": "sudo dnf install gcc-c++",
                 "macos": "xcode-select --install"},
    "chromium": {"debian": "sudo apt-get install chromium", "fedora": "sudo dnf install chromium",
                 "macos": "brew install --cask chromium"},
}  # fmt: skip
"""Thing -> system -> the command that gets it."""
ELSEWHERE = {
    "npm": "install Node.js from nodejs.org",
    "apt": "only Debian and Ubuntu have it: run in the Docker image (docs/install.md)",
    "sandbox": "run in the Docker image (docs/install.md)",
}
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "neon", "asimd", "bf16", "sve")
"""Of the processor, as the kernel names them: what makes torch and the decoder quick."""


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
    """Look at Python, packages, processor, memory, disk and helper programs; nothing is changed."""
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [
        Check("python", sys.version_info >= (3, 11), True, python, remedy("python", "install Python 3.11 or later")),
        *_packages(),
        *_machine(folder),
        _tool("npm", ("npm",), "no documentation and code out of npm packages"),
        _tool("apt", ("apt-get", "dpkg-deb"), "no documentation, books and summaries out of Debian's packages"),
        _sandbox(),
        _tool("compiler", ("c++", "g++", "clang++"), "only pip packages with a wheel for this machine"),
        _native(),
        _tool("chromium", ("chromium", "chromium-browser", "google-chrome"), "tests of web pages are skipped"),
        *_extras(),
    ]


def _native() -> Check:
    """The native engine, and which instruction set it would use."""
    from openafm.engine import native_engine

    if native_engine.missing():
        get = f"{remedy('compiler')} && pip install -e . (with python3-dev)"
        return Check("native engine", False, False, "chat and serve use torch, several times slower", get)
    return Check("native engine", True, False, f"with {native_engine.kernels()[0]} kernels", "")


def system() -> str:
    """`debian`, `fedora` (and their kin), `macos`, or "" for any other."""
    if sys.platform == "darwin":
        return "macos"
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    names = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    return next((BRANCHES[name] for name in names if name in BRANCHES), "")


def remedy(thing: str, otherwise: str = "") -> str:
    """The command that gets `thing` on this system, or what to do where there is none."""
    return GET[thing].get(system()) or ELSEWHERE.get(thing) or otherwise or f"install {thing} by your system's means"


def _packages() -> list[Check]:
    """The project's own requirements against what is installed: one line, and one for each that is wrong."""
    get = "make setup, or pip install -c constraints.txt"
    try:
        lines = metadata.requires("openafm") or []
    except metadata.PackageNotFoundError:
        return [Check("packages", False, True, "openafm is not installed", f"{get} -e .")]
    wanted = [
        found for found in map(Requirement, lines) if found.marker is None or found.marker.evaluate({"extra": ""})
    ]
    wrong = {found: version for found in wanted if (version := _version(found.name)) not in found.specifier}
    summary = f"{len(wanted) - len(wrong)} of {len(wanted)} as pyproject.toml asks"
    broken = [
        Check(found.name, False, True, version or "not installed", f"{get} '{found}'")
        for found, version in wrong.items()
    ]
    return [Check("packages", not wrong, True, summary, "see below"), *broken]


def _version(package: str) -> str:
    """The installed version; one that no specifier contains where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _machine(folder: Path) -> list[Check]:
    """Torch and what it can use, memory, disk."""
    memory, total = free_memory() / 1e9, psutil.virtual_memory().total / 1e9
    free = shutil.disk_usage(folder).free / 1e9
    limits = [
        Check("memory", memory >= MEMORY_GB, False, f"{memory:.1f} of {total:.1f} GB free",
              f"nano takes up to {MEMORY_GB:.0f} GB: close other programs"),
        Check("disk", free >= DISK_GB, False, f"{free:.1f} GB free in {folder.resolve()}",
              f"setup, downloads and nano take up to {DISK_GB:.0f} GB: make room, or --runs-dir on another disk"),
    ]  # fmt: skip
    try:
        import torch

        from openafm.training.hardware import best_device, physical_cores
    except ImportError as error:
        return [Check("torch", False, True, f"not usable: {error}", "make setup"), *limits]
    fast = f", torch uses {torch.backends.cpu.get_cpu_capability()}"
    return [
        Check("torch", True, True, f"{torch.__version__}, device {best_device()}", ""),
        Check("threads", True, False, f"{physical_cores()} of {os.cpu_count()} logical cores", ""),
        Check("instructions", True, False, (" ".join(_instructions()) or platform.processor() or "unknown") + fast, ""),
        *limits,
    ]


def _instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The processor's instruction sets that matter here, by Linux; none elsewhere."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return []
    flags = next((line.split(":")[1].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return [name for name in INSTRUCTIONS if name in flags]


def _tool(name: str, programs: tuple[str, ...], without: str) -> Check:
    """Helper programs: all of apt's, any of the others'."""
    found = [path for program in programs if (path := shutil.which(program))]
    good = len(found) == len(programs) if name == "apt" else bool(found)
    return Check(name, good, False, found[0] if good else without, remedy(name))


def _sandbox() -> Check:
    """Bubblewrap, and whether it is allowed to make namespaces here."""
    from openafm.sampling.sandbox import backend

    kind = backend()
    found = {
        "bubblewrap": "bubblewrap",
        "strict": "a process locked by seccomp: slower, few imports",
        "none": "no program that a model wrote is run: fewer code examples",
    }[kind]
    if kind != "bubblewrap" and shutil.which("bwrap"):
        return Check("sandbox", False, False, f"bubblewrap may not make namespaces here: {found}",
                     "allow unprivileged user namespaces (in Docker: --security-opt seccomp=unconfined "
                     "--security-opt systempaths=unconfined)")  # fmt: skip
    return Check("sandbox", kind == "bubblewrap", False, found, remedy("sandbox"))


def _extras() -> list[Check]:
    """What pip may bring besides."""
    wanted = (
        ("reasoning-gym", "reasoning-gym", "fewer math problems, a benchmark less", "pip install reasoning-gym"),
        ("tests", "pytest", "no `make test`", "make setup"),
        ("benchmarks", "trafilatura", "no peers in `make bench`", "make bench"),
    )
    return [
        Check(name, bool(_version(package)), False, _version(package) or without, get)
        for name, package, without, get in wanted
    ]
