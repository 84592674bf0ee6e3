"""Programs that try to get out or to exhaust the machine: none does, and each is back within its limit."""

import importlib.util
from pathlib import Path

import pytest

from openafm.sampling import sandbox
from openafm.sampling.sandbox import Job, Limits, run_all

_spec = importlib.util.spec_from_file_location("hostile", Path(__file__).parent / "hostile.py")
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)

LIMITS = Limits(wall_seconds=2.0, cpu_seconds=1)
WAITED_FOR = ("fork bomb", "a daemon that outlives it", "memory in many processes", "ignore every signal")
"""Of the attacks that only the wall clock ends, those the tests have time for; `openafm bench sandbox` runs all."""


@pytest.fixture(scope="module")
def host():
    with hostile.host() as stage:
        yield stage


def test_the_suite_is_large():
    kinds = [row["kind"] for row in hostile.ATTACKS.values()]
    assert len(kinds) >= 60 and kinds.count("escape") >= 40 and kinds.count("exhaustion") >= 20


@pytest.mark.parametrize("backend", ["bubblewrap", "strict"])
def test_no_attack_succeeds(backend, host, monkeypatch):
    if not sandbox._works(backend):
        pytest.skip(f"the kernel does not grant {backend} here")
    monkeypatch.setattr(sandbox, "backend", lambda: backend)
    escapes = [name for name in hostile.QUICK if hostile.ATTACKS[name]["kind"] == "escape"]
    names = [*(hostile.QUICK if backend == "bubblewrap" else escapes), *WAITED_FOR]
    results = run_all([Job(host.program(name)) for name in names], LIMITS)
    faults = {name: hostile.fault(host, name, result, LIMITS) for name, result in zip(names, results, strict=True)}
    assert {name: fault for name, fault in faults.items() if fault} == {}


def test_the_attacks_find_what_is_open_to_them(host, tmp_path):
    """Outside the sandbox the same programs do get out: what the suite reports is the wall, not a typing error."""
    import subprocess
    import sys

    for name in ("read a file of the host", "open it by a raw system call", "the host's environment", "listen",
                 "the host's processes", "a symbolic link to the host", "memory outside the limit"):  # fmt: skip
        code = host.program(name).replace("/tmp/link", str(tmp_path / "link"))
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        assert "OUT" in told, name
