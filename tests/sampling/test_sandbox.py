"""What the sandbox promises to honest programs, and when it refuses. Attacks: test_sandbox_attacks.py."""

import pytest

from openafm.sampling import sandbox
from openafm.sampling.sandbox import Job, Limits, run, run_all

LIMITS = Limits(wall_seconds=20, cpu_seconds=5)


@pytest.fixture(params=["bubblewrap", "strict"])
def boxed(request, monkeypatch):
    if not sandbox._works(request.param):
        pytest.skip(f"the kernel does not grant {request.param} here")
    monkeypatch.setattr(sandbox, "backend", lambda: request.param)
    return lambda code, stdin="", limits=LIMITS: run(code, stdin, limits)


def test_a_program_reads_and_writes(boxed):
    result = boxed("print(input()[::-1]); import sys; print('oops', file=sys.stderr); sys.exit(3)", "abc\n")
    assert (result.stdout, result.stderr, result.exit_code, result.timed_out) == ("cba\n", "oops\n", 3, False)
    assert result.backend in ("bubblewrap", "strict")


def test_the_usual_library_is_there(boxed):
    code = (
        "import math, re, json, itertools, collections, datetime, random, statistics, fractions\nprint(math.comb(5, 2))"
    )
    assert boxed(code).stdout == "10\n"


def test_a_program_sees_only_itself(monkeypatch):
    if sandbox.backend() != "bubblewrap":
        pytest.skip("bubblewrap cannot make namespaces here")
    told = run(
        "import os\nprint(sorted(p for p in os.listdir('/proc') if p.isdigit())[-1] < '9')\n"
        "print(os.listdir('/tmp'), sorted(set(os.environ) - {'LC_CTYPE'}), os.getuid())\n"
        "print([f for f in os.listdir('/proc/self/fd') if int(f) > 3])\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(*(status[name].strip() for name in ('CapEff', 'NoNewPrivs', 'Seccomp')))",
        limits=LIMITS,
    ).stdout.splitlines()
    assert told == ["True", "[] ['PATH', 'PWD'] 65534", "[]", "0000000000000000 1 2"]


def test_event_loops_threads_and_children_work_within_namespaces():
    if sandbox.backend() != "bubblewrap":
        pytest.skip("bubblewrap cannot make namespaces here")
    code = (
        "import asyncio, subprocess, threading\nprint(asyncio.run(asyncio.sleep(0, 'loop')))\n"
        "thread = threading.Thread(target=print, args=['thread']); thread.start(); thread.join()\n"
        "print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout.strip())\n"
        "open('/tmp/own', 'w').write('file'); print(open('/tmp/own').read())"
    )
    assert run(code, limits=LIMITS).stdout.split() == ["loop", "thread", "child", "file"]


def test_what_is_no_program_fails_by_itself(boxed):
    for code in ("x = '\0'", "x = '\ud800'", "#" * 200_000, "this is not python"):
        assert boxed(code).exit_code == 1


def test_many_run_in_order():
    results = run_all([Job("print(int(input()) ** 2)", str(i)) for i in range(6)], LIMITS)
    assert [r.stdout for r in results] == [f"{i * i}\n" for i in range(6)]


def test_where_the_kernel_grants_nothing_nothing_is_run(monkeypatch):
    monkeypatch.setattr(sandbox, "_works", lambda kind: False)
    sandbox.backend.cache_clear()
    try:
        assert sandbox.backend() == "none"
        with pytest.raises(ValueError, match="apt install bubblewrap"):
            run("print(1)")
    finally:
        sandbox.backend.cache_clear()
