"""Artifacts on disk: what one step made, whole or absent at any moment, and the manifest that proves it.

    runs/NAME/STEP/            outputs and manifest.json
    runs/NAME/.STEP.partial/   out/ being written; scratch/ with checkpoints; key: whose scratch this is

A finished `out` is sealed (hashed, manifest written last, flushed to disk) and then renamed into place. A kill between
those moments leaves either the old artifact or a sealed new one, which `publish` puts in place at the next start.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from openafm.files import digest

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what it was made of. `notes` and what follows differ between equal runs."""

    step: str
    stage: str
    key: str
    """SHA-256 of stage, config, input digests, code, seed and hardware: the step is current while it stays."""
    config: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    """Input name -> {"step": reference, "digest": of the part it refers to}."""
    code: str
    seed: int
    hardware: dict[str, Any]
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path -> {"sha256", "bytes"}."""
    digest: str = ""
    """Of the outputs: followers compare this, so that equal bytes made anew do not make them stale."""
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    times: dict[str, Any] = field(default_factory=dict)
    planned_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    sha256: str = ""
    """Of all the rest, so that a bit flipped in a metric is noticed too."""

    def part(self, path: str = "") -> str:
        """The digest of the outputs at or below `path`; ValueError when there are none."""
        if not path:
            return self.digest
        found = {name: entry for name, entry in self.outputs.items() if name == path or name.startswith(f"{path}/")}
        if not found:
            folders = sorted({name.partition("/")[0] for name in self.outputs})
            raise ValueError(
                f"the artifact of {self.step} has no {path!r}; it holds: {', '.join(folders) or 'nothing'}"
            )
        return outputs_digest(found)

    def size(self) -> int:
        """Bytes of all outputs."""
        return sum(entry["bytes"] for entry in self.outputs.values())


def manifest_digest(manifest: Manifest) -> str:
    """SHA-256 of the manifest without this very digest, as JSON with sorted keys."""
    rest = asdict(manifest) | {"sha256": ""}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def outputs_digest(outputs: dict[str, dict[str, Any]]) -> str:
    """SHA-256 over paths and contents."""
    lines = "".join(f"{name} {outputs[name]['sha256']}\n" for name in sorted(outputs))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of the artifact in `folder`; None when there is no artifact; ValueError when it is unreadable."""
    path = folder / MANIFEST
    if not folder.exists():
        return None
    try:
        manifest = Manifest(**json.loads(path.read_text()))
        whole = manifest.sha256 == manifest_digest(manifest)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is corrupt ({type(error).__name__})") from None
    if not whole:
        raise ValueError(f"{path} is corrupt (its checksum is wrong)")
    return manifest


def verify(folder: Path) -> None:
    """Raise ValueError when `folder` is an artifact and a file of it is not what the step wrote."""
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
    wrong = damage(folder, manifest) if manifest else None
    if wrong:
        raise ValueError(f"{wrong}: `openafm run` makes it again")


def damage(folder: Path, manifest: Manifest) -> str | None:
    """Hash all outputs again: what is wrong with the first that differs from the manifest, or None."""
    names = sorted(manifest.outputs)
    for name, entry in zip(names, _hashes([folder / name for name in names]), strict=True):
        if entry is None:
            return f"{folder / name} is missing"
        if entry != manifest.outputs[name]:
            return f"{folder / name} differs from its manifest"
    return None


def _hashes(paths: list[Path]) -> Iterator[dict[str, Any] | None]:
    """Digest and size of each file, hashed on two threads (hashlib lets go of the interpreter)."""
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(_hash, paths)


def _hash(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    return {"sha256": digest(path), "bytes": path.stat().st_size}


def partial(run: Path, step: str) -> Path:
    """Where `step` works."""
    return run / f".{step}.partial"


def prepare(run: Path, step: str, key: str, fresh: bool = False) -> tuple[Path, Path]:
    """An empty `out`, and the `scratch` that an interrupted attempt with the same key left (unless `fresh`)."""
    folder = partial(run, step)
    tag = folder / "key"
    if folder.exists() and (fresh or not tag.exists() or tag.read_text() != key):
        remove(folder)
    out, scratch = folder / "out", folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    remove(out)
    out.mkdir()
    if not tag.exists():
        tag.write_text(key)
    return out, scratch


def seal(out: Path, manifest: Manifest) -> Manifest:
    """Hash what the step wrote, flush it to disk, and write the manifest last; the completed manifest."""
    files = sorted(path for path in out.rglob("*") if not path.is_dir())
    names = [path.relative_to(out).as_posix() for path in files]
    for name, path in zip(names, files, strict=True):
        assert not path.is_symlink(), f"{name}: an artifact holds files, not links"
        assert name != MANIFEST, f"{name} is the runner's own file"
    outputs = {name: entry for name, entry in zip(names, _hashes(files), strict=True) if entry is not None}
    manifest = replace(manifest, outputs=outputs, digest=outputs_digest(outputs))
    manifest = Manifest(**json.loads(json.dumps(asdict(manifest))))  # as it is read again: tuples become lists
    manifest = replace(manifest, sha256=manifest_digest(manifest))
    for path in (*files, *(path for path in out.rglob("*") if path.is_dir())):
        _flush(path)
    write_json(out / MANIFEST, asdict(manifest))
    return manifest


def publish(run: Path, step: str) -> None:
    """Put a sealed artifact in place, also one that a kill left sealed; remove what it replaces and its scratch."""
    folder, target = partial(run, step), run / step
    old = run / f".{step}.old"
    if (folder / "out" / MANIFEST).exists():
        if target.exists():
            remove(old)
            target.rename(old)
        (folder / "out").rename(target)
        _flush(run)
        remove(folder)
    elif old.exists() and not target.exists():
        old.rename(target)
    remove(old)


def borrow(run: Path, step: str, key: str) -> str | None:
    """Put in place what another run in the same folder made of a step with this key, as hard links; that run's name.

    None where there is none that is whole.
    """
    for path in sorted(run.parent.glob(f"*/{step}/{MANIFEST}")):
        source = path.parent
        try:
            manifest = read_manifest(source)
            if manifest is None or manifest.key != key or source.parent == run or damage(source, manifest):
                continue
            out, _ = prepare(run, step, key)
            for name in (*manifest.outputs, MANIFEST):  # the manifest last: it says that all is there
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                _link(source / name, out / name)
        except (OSError, ValueError):  # the other run is at work on it, or it is damaged
            continue
        publish(run, step)
        return source.parent.name
    return None


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is whole or absent; NaN is refused."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    _flush(new)
    new.replace(path)
    _flush(path.parent)


def remove(folder: Path) -> None:
    """Delete a folder that may not be there."""
    if folder.exists():
        shutil.rmtree(folder)


def _flush(path: Path) -> None:
    """Ask the system to write a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
