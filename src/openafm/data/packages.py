"""Pinned packages from registries, in a cache: the raw input of `openafm fetch` and of the step `fetch`.

Three tiers, each through its own client: `pypi` (pip), `npm` (npm pack), `apt` (apt-get download); `folder` is for
files beside the recipe and `python` for what this interpreter can import. Archives are only ever read, never installed,
and no code of theirs runs: pip takes wheels alone, because resolving a source distribution executes it. A download
appears in the cache under its final name when its digest is right, so a killed fetch goes on with what is missing.
"""

import fnmatch
import gzip
import hashlib
import importlib.metadata
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from openafm.files import digest

Tier = Literal["pypi", "npm", "apt", "folder", "python"]

LISTS = {"Translation-en": "Translations", "Packages": "Packages"}
"""Not packages but apt's own lists, of English descriptions and of all packages; taken with the `apt` tier."""
LISTED = re.compile(r"^(?:(?:Package|Source|Section): .*)?\n", re.MULTILINE)
"""What is kept of the list of all packages: which source package each was built from, and its section."""

MEMBER_BYTES = 512 << 20
"""Of one member in memory, unpacked."""

TOOLS = {"npm": "npm", "apt": "apt-get"}


@dataclass(frozen=True, order=True)
class Package:
    """One archive to have. `version` and `sha256` are empty where apt decides them."""

    tier: Tier
    name: str
    version: str = ""
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.tier}:{self.name}" + (f"=={self.version}" if self.version else "")


@dataclass(frozen=True)
class Archive:
    """A package in the cache: a wheel, npm tarball, Debian archive or (tier `folder`) a directory."""

    package: Package
    path: Path
    version: str
    sha256: str
    downloaded_bytes: int = 0
    """What this call fetched; 0 when the cache had it."""


class UnavailableError(Exception):
    """This machine or its registries cannot give a tier or package; the message says why and what to do."""


def missing_tool(tier: Tier) -> str | None:
    """Why a tier cannot be used on this machine, or None when its tools are there."""
    needed = [TOOLS[tier]] if tier in TOOLS else []
    needed += ["dpkg-deb"] if tier == "apt" else []
    absent = [tool for tool in needed if shutil.which(tool) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} not found: sources of tier {tier} are left out (install it for more real input)"


def ensure(package: Package, cache: Path, root: Path | None = None) -> Archive:
    """The archive of `package`, downloaded into `cache` unless it is there with the right digest.

    `root` holds the directories of tier `folder`. Raises UnavailableError when the registry has no such package
    here, ValueError when a download fails or its digest is not the pinned one.
    """
    if package.tier == "folder":
        return _folder(package, root)
    if package.tier == "python":
        return _installed(package)
    kept = _cached(package, cache)
    if kept is not None:
        return kept
    home = cache / package.tier
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".partial-") as partial:
        path = _DOWNLOAD[package.tier](package, Path(partial), cache)
        return _keep(package, path, home)


def ensure_all(
    packages: Sequence[Package], cache: Path, root: Path | None, report: Callable[[str, float, float | None], None]
) -> tuple[dict[Package, Archive], dict[str, str]]:
    """All archives in order, four downloads at a time, and why the others are not there ({package: reason})."""
    reasons: dict[str, str] = {}

    def fetch(package: Package) -> Archive | None:
        """A package's archive; None, with the reason noted, where it cannot be had."""
        try:
            return ensure(package, cache, root)
        except UnavailableError as reason:
            reasons[str(package)] = str(reason)
            return None

    found: dict[Package, Archive] = {}
    with ThreadPoolExecutor(4) as pool:
        for done, (package, archive) in enumerate(zip(packages, pool.map(fetch, packages), strict=True), start=1):
            report("packages", done, len(packages))
            if archive is not None:
                found[package] = archive
    return found, dict(sorted(reasons.items()))


def in_cache(package: Package, cache: Path) -> bool:
    """Whether a download of `package` was finished once (its digest is checked when it is used)."""
    return _record(package, cache).exists()


def _record(package: Package, cache: Path) -> Path:
    safe = f"{package.name}@{package.version}" if package.version else package.name
    return cache / package.tier / (safe.replace("/", "+") + ".json")


def _cached(package: Package, cache: Path) -> Archive | None:
    """What the cache holds, digest checked; damaged files are removed so that they are fetched again."""
    record = _record(package, cache)
    try:
        entry = json.loads(record.read_text())
        path = record.parent / entry["file"]
        right = digest(path) == entry["sha256"] and package.sha256 in ("", entry["sha256"])
    except (OSError, ValueError, KeyError):
        right = False
    if not right:
        record.unlink(missing_ok=True)
        return None
    return Archive(package, path, entry["version"], entry["sha256"])


def _keep(package: Package, path: Path, home: Path) -> Archive:
    found = digest(path)
    if package.sha256 and found != package.sha256:
        raise ValueError(
            f"{package}: expected sha256 {package.sha256}, got {found}. The registry's file is not the pinned one: "
            "check the network for a rewriting proxy, or change the digest in the catalogue if you trust the new file"
        )
    target = home / path.name
    size = path.stat().st_size
    version = package.version or (path.name.split("_")[1].replace("%3a", ":") if "_" in path.name else found[:12])
    path.replace(target)
    record = _record(package, home.parent)
    partial = record.with_suffix(".tmp")
    partial.write_text(json.dumps({"file": target.name, "version": version, "sha256": found}) + "\n")
    partial.replace(record)
    return Archive(package, target, version, found, size)


def _folder(package: Package, root: Path | None) -> Archive:
    """A directory beside the catalogue, or a file; a directory's digest covers names and contents."""
    path = (root or Path()) / package.name
    if path.is_file():
        return Archive(package, path, package.version or digest(path)[:12], digest(path))
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; the catalogue names it as a source of tier folder")
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return Archive(package, path, package.version or total.hexdigest()[:12], total.hexdigest())


def _installed(package: Package) -> Archive:
    """A distribution that this interpreter can import, or its standard library (`python`)."""
    if package.name == "python":
        return Archive(package, Path(), platform.python_version(), "")
    try:
        version = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if package.version not in ("", version):
        pinned = f"{package.name}=={package.version}"
        raise UnavailableError(f"{pinned} is not installed (found {version}): pip install {pinned}")
    return Archive(package, Path(), version, "")


def _call(command: list[str], folder: Path, package: Package) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
    if any("Unable to locate package" in line for line in lines):
        raise UnavailableError(f"apt knows no package {package.name}: this system's release does not carry it")
    raise ValueError(
        f"{package}: {command[0]} failed: {' / '.join(lines[-3:])}. Check the network and run again (what is fetched "
        f"stays), or leave the tier out with --set fetch.tiers"
    )


def _only_file(folder: Path, package: Package) -> Path:
    files = [path for path in folder.iterdir() if path.is_file()]
    if len(files) != 1:
        raise ValueError(f"{package}: expected one file, got {sorted(path.name for path in files)}")
    return files[0]


def _pypi(package: Package, folder: Path, cache: Path) -> Path:
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "-q", "--no-cache-dir"]
    _call([sys.executable, "-m", "pip", "download", *options, f"{package.name}=={package.version}"], folder, package)
    return _only_file(folder, package)


def _npm(package: Package, folder: Path, cache: Path) -> Path:
    _call(["npm", "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"], folder, package)
    return _only_file(folder, package)


def _apt(package: Package, folder: Path, cache: Path) -> Path:
    options = _apt_options(cache)
    if package.name in LISTS:
        return _list(options, folder, package)
    _call(["apt-get", *options, "download", package.name], folder, package)
    return _only_file(folder, package)


def _apt_options(cache: Path) -> list[str]:
    """Private lists and archives: needs no root, and leaves the system's own apt alone."""
    state = cache / "apt" / "state"
    settings = {
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state,
        "Acquire::Languages": "en",
        "APT::Sandbox::User": "root",
        "APT::Get::List-Cleanup": "false",
    }
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def refresh_apt(cache: Path) -> None:
    """Fetch apt's package lists into the cache. Raises ValueError when the network does not answer."""
    for folder in ("lists/partial", "archives/partial"):
        (cache / "apt" / "state" / folder).mkdir(parents=True, exist_ok=True)
    _call(["apt-get", *_apt_options(cache), "update", "-q"], cache / "apt", Package("apt", "package lists"))


def _list(options: list[str], folder: Path, package: Package) -> Path:
    command = ["apt-get", *options, "indextargets", "--format", "$(FILENAME)", f"Created-By: {LISTS[package.name]}"]
    lists = sorted(_call(command, folder, package).split())
    if not lists:
        raise UnavailableError(f"apt has no list {package.name} on this system")
    texts = [_call(["/usr/lib/apt/apt-helper", "cat-file", path], folder, package) for path in lists]
    if package.name == "Packages":
        texts = ["".join(LISTED.findall(text)) for text in texts]
    path = folder / f"{package.name}.gz"
    path.write_bytes(gzip.compress("\n".join(texts).encode(), mtime=0))
    return path


_DOWNLOAD: dict[str, Callable[[Package, Path, Path], Path]] = {"pypi": _pypi, "npm": _npm, "apt": _apt}


def members(archive: Archive, globs: Sequence[str]) -> list[tuple[str, bytes]]:
    """Files of an archive whose names match a glob (`*` crosses folders), sorted by name; `.gz` members are opened.

    Links are left out. Raises ValueError for a member whose path leaves the archive, or that is too large.
    """
    found = {
        name: _all_of(gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file, f"{archive.path}: {name}")
        for name, file in _walk(archive, lambda name: _matches(name, globs))
    }
    return sorted(found.items())


def _all_of(file: IO[bytes] | gzip.GzipFile, name: str) -> bytes:
    """A member's bytes. Raises ValueError for a bomb: a few kilobytes that unpack to more than memory holds."""
    data = file.read(MEMBER_BYTES + 1)
    if len(data) > MEMBER_BYTES:
        raise ValueError(f"{name} unpacks to more than {MEMBER_BYTES >> 20} MB: do not trust this file")
    return data


def matching(
    files: Sequence[tuple[str, bytes]], globs: Sequence[str], exclude: Sequence[str]
) -> list[tuple[str, bytes]]:
    """Those of `files` that one of several sources of an archive takes."""
    return [file for file in files if _matches(file[0], globs) and not _matches(file[0], exclude)]


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def extract(archive: Archive, glob: str, target: Path) -> None:
    """Copy the one member that matches `glob` to the file `target`, without holding it in memory."""
    target.parent.mkdir(parents=True, exist_ok=True)
    names = []
    for name, file in _walk(archive, lambda name: fnmatch.fnmatchcase(name, glob)):
        names.append(name)
        with target.open("wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
    if len(names) != 1:
        raise ValueError(f"{archive.path}: expected one file like {glob}, found {names}")


def _walk(archive: Archive, wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    path = archive.path
    if path.is_dir():
        yield from _walk_folder(path, wanted)
    elif path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if not info.is_dir() and wanted(_safe(info.filename, path)):
                    yield _safe(info.filename, path), file.open(info)
    elif path.suffix == ".deb":
        yield from _walk_deb(path, wanted)
    elif path.name.endswith((".tgz", ".tar.gz")):
        with tarfile.open(path, "r|gz") as tar:
            yield from _walk_tar(tar, path, wanted)
    else:
        yield path.name, io.BytesIO(path.read_bytes())


def _walk_folder(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink()):
        name = file.relative_to(path).as_posix()
        if wanted(name):
            yield name, io.BytesIO(file.read_bytes())


def _walk_deb(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    """A Debian archive's files straight from its tar stream: nothing is unpacked to disk."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield from _walk_tar(tar, path, wanted)
        process.stdout.read()
    if process.returncode:
        raise ValueError(f"{path} is damaged: delete it and run again")


def _walk_tar(tar: tarfile.TarFile, path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    for info in tar:
        name = _safe(info.name, path)
        file = tar.extractfile(info) if info.isreg() and wanted(name) else None
        if file is not None:
            yield name, file


def _safe(name: str, path: Path) -> str:
    clean = name.removeprefix("./")
    if clean.startswith("/") or ".." in clean.split("/") or "\\" in clean or "\0" in clean:
        raise ValueError(f"{path}: member {name!r} points outside the archive; do not trust this file")
    return clean
