"""The wheel built twice, in two folders and at two times of day, has the same bytes.

    python tests/reliability/wheel.py

Builds the last commit with SOURCE_DATE_EPOCH set to its date, by this interpreter's setuptools and nanobind and the
system's C++ compiler; other versions of these may give other bytes. Exit code 1 with the members that differ.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def built(folder: Path, date: str) -> Path:
    """The wheel of the last commit, unpacked and built in `folder`."""
    source = folder / "source"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, env=os.environ | {"SOURCE_DATE_EPOCH": date})
    (wheel,) = folder.glob("*.whl")
    return wheel


def members(wheel: Path) -> dict[str, str]:
    """SHA-256 of each member."""
    with zipfile.ZipFile(wheel) as file:
        return {name: hashlib.sha256(file.read(name)).hexdigest() for name in file.namelist()}


def main() -> int:
    date = subprocess.check_output(["git", "log", "-1", "--format=%ct"], cwd=ROOT, text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        first = built(Path(folder) / "one", date)
        time.sleep(2.1)  # zip's times have steps of two seconds
        second = built(Path(folder) / "another" / "deeper", date)
        one, other = members(first), members(second)
        differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        same = first.read_bytes() == second.read_bytes()
        sha256 = hashlib.sha256(first.read_bytes()).hexdigest()
        native = sum(name.endswith(".so") for name in one)
        print(f"{first.name}: {len(one)} files, {native} of them compiled, sha256 {sha256}")
        print("built twice: the same bytes" if same else f"built twice: {differing or 'the order or dates'} differ")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
