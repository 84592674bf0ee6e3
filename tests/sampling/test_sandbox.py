"""What the sandbox promises to honest programs, and when it refuses. Attacks: test_sandbox_attacks.py."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from openafm.sampling import interpreter, room, sandbox, waiting
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
        "import os\nprint(max(int(p) for p in os.listdir('/proc') if p.isdigit()) < 9)\n"
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


PROGRAMS = {
    "a value": "print(__name__, __doc__, sorted(n for n in globals() if not n.startswith('__')))",
    "a docstring": "'said'\nprint(__doc__)",
    "an error": "def f(x):\n    return 1 / x\nf(0)",
    "a chain of errors": "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e",
    "an error within another": "try:\n    {}['a']\nexcept KeyError:\n    int('x')",
    "no Python": "x = = 1",
    "a recursion": "def f(n): return f(n + 1)\nf(0)",
    "how deep it may go": "n = 0\ndef f():\n    global n\n    n += 1\n    f()\n"
    "try: f()\nexcept RecursionError: print(n)",
    "an exit": "raise SystemExit('told')",
    "exit": "exit(7)",
    "arguments": "import sys\nprint(sys.argv, sys.path, sys.flags)",
    "a class of its own": "import pickle\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\n"
    "print(pickle.loads(pickle.dumps(A(1))))",
    "at its end": "import atexit\natexit.register(print, 'bye')\nprint('now')",
    "input": "import sys\nprint(sys.stdin.seekable(), sys.stdin.tell(), sys.stdin.read())",
    "another hook": "import sys\nsys.excepthook = lambda *e: print(e[:2])\n1 / 0",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_prints_what_it_would_under_python_itself(name):
    if sandbox.backend() != "bubblewrap":
        pytest.skip("bubblewrap cannot make namespaces here")
    python = str(interpreter.python()[0])
    bare = subprocess.run([python, "-IBc", PROGRAMS[name]], input="typed\n", capture_output=True, text=True, env={})
    result = run(PROGRAMS[name], "typed\n", LIMITS)
    if name == "input":  # ours can be sought, a pipe cannot
        assert result.stdout == "True 0 typed\n\n"
    else:
        assert (result.stdout, result.stderr, result.exit_code) == (bare.stdout, bare.stderr, bare.returncode)


def test_no_interpreter_serves_twice(boxed):
    """The room starts another for each: processes differ, and nothing of one is found by the next."""
    code = "import builtins\nprint(hasattr(builtins, 'left'))\nbuiltins.left = 1\nimport random; print(random.random())"
    told = [boxed(code).stdout.split() for _ in range(6)]
    assert {seen for seen, _ in told} == {"False"} and len({drawn for _, drawn in told}) == 6


def waiting_processes():
    mark, found = str(waiting.__doc__).encode(), 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += mark in path.read_bytes()
        except OSError:
            continue
    return found


def soon(what):
    return any(what() or time.sleep(0.05) for _ in range(400))


def test_those_that_wait_are_ended(boxed, monkeypatch):
    boxed("pass")
    assert soon(waiting_processes)
    room.dismiss()
    assert soon(lambda: not waiting_processes())
    fresh = room.Room()
    monkeypatch.setattr(room, "IDLE_SECONDS", 0.1)
    taken = fresh.take(sandbox.backend(), LIMITS)
    assert soon(lambda: fresh._asked is None) and not fresh._ready
    taken.give("print('late')", "")
    assert taken.process.communicate(timeout=60)[0] == b"late\n"  # ending the others left it alone
    taken.end()


def test_one_that_died_while_it_waited_is_not_given_a_program(boxed):
    boxed("pass")
    assert soon(lambda: len(room._room._ready) == room.WAITING)
    for each in room._room._ready:
        os.killpg(each.process.pid, 9)
        each.process.wait()
    assert [boxed("print('ok')").stdout for _ in range(3)] == ["ok\n"] * 3


def test_a_fork_leaves_its_parents_interpreters_alone(boxed):
    boxed("pass")
    assert soon(lambda: room._room._ready)
    child = os.fork()
    if not child:
        os._exit(0 if not room._room._ready else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert boxed("print('ok')").stdout == "ok\n"
