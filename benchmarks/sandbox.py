"""The sandbox under attack, and how quickly it starts.

    openafm bench sandbox

Every hostile program of tests/sampling/attacks.yaml in every backend that this machine has: did it get out, did it do
harm, was it back within its limit. Then launches: milliseconds from the program handed over to its result, where an
interpreter waited for it and where none did, beside bare processes; and runs a minute on all cores, one after another,
which no waiting can hide.
"""

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness import alternate, options, show, timed
from openafm.files import cores
from openafm.sampling import interpreter, room, sandbox

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "sampling"))
import hostile

LIMITS = sandbox.Limits(wall_seconds=3.0, cpu_seconds=2)
RISEN_SECONDS = 0.3
"""What interpreters are given to start behind their walls before a launch is timed."""


def attack(backend: str) -> dict[str, int]:
    """Print the table of all attacks on a backend; return how many were tried, got out, and were late."""
    table = Table(title=f"{backend}: attacks, within {LIMITS.wall_seconds:g} s")
    for column in ("attack", "kind", "outcome", "seconds", "ended by"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    faults, slowest = 0, 0.0
    with hostile.host() as host:
        for name, row in hostile.ATTACKS.items():
            result = sandbox.run(host.program(name), limits=LIMITS)
            fault = hostile.fault(host, name, result, LIMITS)
            faults, slowest = faults + bool(fault), max(slowest, result.seconds)
            ended = "the wall clock" if result.timed_out else _ended(result)
            table.add_row(name, row["kind"], fault or "held", f"{result.seconds:.2f}", ended)
    Console(width=140).print(table)
    told = f"{backend}: {len(hostile.ATTACKS)} attacks, {faults} got out or did harm, slowest back in {slowest:.2f} s"
    print(told)
    return {"attacks": len(hostile.ATTACKS), "faults": faults}


def _ended(result: sandbox.Result) -> str:
    """What a program ended with: its last words, or its exit code."""
    if result.exit_code == -9:
        return "too much output"
    last = (result.stderr.strip().splitlines() or [""])[-1]
    words = "".join(c if c.isprintable() else "?" for c in last)[:60]
    return words or f"itself, with exit code {result.exit_code}"


def main() -> None:
    asked = options(__doc__, launches=100)
    backends = [kind for kind in ("bubblewrap", "strict") if sandbox._works(kind)]
    found = {}
    chosen = sandbox.backend
    for kind in backends:
        sandbox.backend = lambda kind=kind: kind  # type: ignore[assignment]
        found[kind] = attack(kind)
    sandbox.backend = chosen

    python = str(interpreter.python()[0])

    def launch(waiting: bool) -> float:
        """Milliseconds of one run, with interpreters that wait and have risen, or none."""
        sandbox.run("pass")
        if waiting:
            time.sleep(RISEN_SECONDS)
        else:
            room.dismiss()
        return 1000 * timed(lambda: sandbox.run("pass"))

    measures = {
        "sandbox.run of `pass`": lambda: launch(True),
        "the same, none waiting": lambda: launch(False),
        "bare Python, `pass`": lambda: 1000 * timed(lambda: subprocess.run([python, "-IBc", "pass"], env={})),
        "bare `true`": lambda: 1000 * timed(lambda: subprocess.run(["/usr/bin/true"], env={})),
    }

    def walls() -> None:
        with interpreter._sealed(interpreter.seccomp.guard()) as guard:
            command = [*interpreter.walls(sandbox.Limits(), guard), "/usr/bin/true"]
            subprocess.run(command, pass_fds=[guard], env={}, check=True)

    if "bubblewrap" in backends:
        measures["its walls alone, around `true`"] = lambda: 1000 * timed(walls)
    figures = alternate(measures, max(asked.repeats, asked.launches // 4))
    started = time.perf_counter()
    sandbox.run_all([sandbox.Job("pass")] * asked.launches, workers=cores())
    a_minute = 60 * asked.launches / (time.perf_counter() - started)
    print(f"{a_minute:,.0f} runs a minute, {cores()} at a time")
    show("sandbox launch", "ms", figures, limit=None, better="less", as_json=asked.json,
         detail={"attacks": found, "runs_a_minute": round(a_minute), "workers": cores()})  # fmt: skip


if __name__ == "__main__":
    main()
