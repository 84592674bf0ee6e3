"""Looking on while a run goes on (`openafm status RUN --watch`): steps, progress, rates, the loss of the step at work.

It reads what the run says of itself (openafm.recipe.live) and touches nothing: Ctrl-C ends the looking, not the run.
"""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from openafm.recipe.artifacts import partial, read_manifest
from openafm.recipe.live import at_work, read
from openafm.recipe.progress import QUIET_SECONDS, clock
from openafm.recipe.status import of_run, table

EVERY = 1.0
"""Seconds between two looks."""
BLOCKS = "▁▂▃▄▅▆▇█"
SHOWN = ("lr", "grad_norm", "reward", "entropy", "kl_reference")
"""Values of a training step that are shown beside its loss, where it has them."""
MARKS = {"done": "✓", "current": "=", "running": "▶", "waiting": "·"}


def watch(run: Path, console: Console) -> int:
    """Show the run in `run` until it ends or the user has seen enough; the exit code: 1 where it ended early."""
    record = read(run)
    if record is None or not at_work(record):
        killed = "" if record is None else f"; the last one was killed in step {_step(record) or 'none'}"
        console.print(table(of_run(run)))
        console.print(f"nothing runs in {run}{killed}: `openafm run` goes on from here", highlight=False)
        return 0
    try:
        record = _look_on(run, record, console)
    except KeyboardInterrupt:
        console.print("you no longer watch; the run goes on", highlight=False)
        return 0
    return _ended(run, record, console)


def _look_on(run: Path, record: dict[str, Any], console: Console) -> dict[str, Any]:
    """Draw the record anew each second while the run is at work; the last record."""
    if not console.is_terminal:
        return _tell(run, record, console)
    with Screen(console=console, auto_refresh=False) as screen:
        while True:
            screen.update(frame(run.name, record, console.height), refresh=True)
            time.sleep(EVERY)
            newer = read(run)
            if newer is None or not at_work(newer):
                return record
            record = newer


def _tell(run: Path, record: dict[str, Any], console: Console) -> dict[str, Any]:
    """Without a terminal: a line for each finished step, and every ten seconds one on the step at work."""
    told: set[str] = {name for name, state in record["steps"].items() if state["state"] in ("done", "current")}
    said = 0.0
    while True:
        for name, state in record["steps"].items():
            if state["state"] == "done" and name not in told:
                told.add(name)
                console.print(f"{name} {clock(state['seconds'])}  {state['told']}", highlight=False, markup=False)
        if record["now"] and time.monotonic() - said > QUIET_SECONDS:
            said = time.monotonic()
            console.print(f"{_step(record)} {', '.join(_facts(record['now']))}", highlight=False, markup=False)
        time.sleep(EVERY)
        newer = read(run)
        if newer is None or not at_work(newer):
            return record
        record = newer


def _ended(run: Path, record: Mapping[str, Any], console: Console) -> int:
    """What became of the steps that were still to run."""
    for name in record["steps"]:
        error = partial(run, name) / "error.txt"
        failed = error.exists() and error.stat().st_mtime > record["started"]
        if failed or read_manifest(run / name) is None:
            why = f": {error.read_text().strip().splitlines()[-1]}" if failed else ""
            console.print(f"the run ended before {name} was done{why}", highlight=False, markup=False)
            return 1
    console.print(f"the run has ended: {len(record['steps'])} steps; openafm report {run}", highlight=False)
    return 0


def frame(name: str, record: Mapping[str, Any], height: int) -> RenderableType:
    """What the terminal shows: the sum, the last finished steps, the one at work, the next; at most `height` lines."""
    steps: Mapping[str, Mapping[str, Any]] = record["steps"]
    over = [step for step, state in steps.items() if state["state"] in ("done", "current")]
    waiting = [step for step, state in steps.items() if state["state"] == "waiting"]
    room = max(2, height - 8)
    before, after = over[-(room - min(len(waiting), room // 3)) :], waiting[: room // 3]
    rows = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for column in ({"width": 1}, {"no_wrap": True}, {"justify": "right", "no_wrap": True}, {"no_wrap": True}):
        rows.add_column(**column)
    for step in before:
        rows.add_row(MARKS[steps[step]["state"]], step, _times(steps[step]), Text(steps[step]["told"]))
    parts: list[RenderableType] = [Text(f"{name}: {_sum(record)}", style="bold")]
    if len(over) > len(before):
        parts.append(Text(f"  {len(over) - len(before)} steps before these", style="dim"))
    parts.append(rows)
    if record["now"]:
        parts += _at_work(record)
    if after:
        more = f" and {len(waiting) - len(after)} more" if len(waiting) > len(after) else ""
        parts.append(Text(f"{MARKS['waiting']} next: {', '.join(after)}{more}", style="dim", overflow="ellipsis"))
    if silent := _silence(record):
        parts.append(Text(silent, style="yellow"))
    return Group(*parts)


def _at_work(record: Mapping[str, Any]) -> list[RenderableType]:
    """The running step: its bar, what it reports and how fast, its losses."""
    now, state = record["now"], record["steps"][record["now"]["step"]]
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=now["total"] or 1.0, completed=now["done"], width=24, pulse=not now["total"])
    spent = f"{clock(time.time() - now['since'])} of {clock(state['planned'])}"
    share = f"{now['done'] / now['total']:.0%}" if now["total"] else ""
    line.add_row(MARKS["running"], Text(now["step"], style="bold"), spent, bar, share)
    found: list[RenderableType] = [line]
    if facts := _facts(now):
        found.append(Text("  " + ", ".join(facts), overflow="ellipsis", no_wrap=True))
    if len(now["losses"]) > 1:
        first, last = now["losses"][0], now["losses"][-1]
        found.append(Text(f"  loss {first:.3f} {sparkline(now['losses'])} {last:.3f}", no_wrap=True))
    return found


def _facts(now: Mapping[str, Any]) -> list[str]:
    """What the step at work says: where it is, how fast, and the values of its training."""
    facts = [now["label"]] if now["label"] else []
    if now["total"]:
        facts.append(f"{now['done']:g} of {now['total']:g}")
    if now["pace"]:
        facts.append(f"{now['pace']:.3g} a second" if now["pace"] >= 0.1 else f"{1 / now['pace']:.3g} s each")
    values = now["values"]
    if "tokens_per_second" in values:
        facts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    return facts + [f"{name.replace('_', ' ')} {values[name]:.3g}" for name in SHOWN if name in values]


def sparkline(values: list[float]) -> str:
    """The values as a row of blocks, the lowest the least."""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


def _sum(record: Mapping[str, Any]) -> str:
    states = record["steps"].values()
    over = sum(state["state"] in ("done", "current") for state in states)
    spent = clock(time.time() - record["started"])
    return f"{over} of {len(states)} steps, {spent} spent, about {clock(left(record))} left"


def left(record: Mapping[str, Any]) -> float:
    """Seconds that the run still takes: the plan of what is left, at the pace of the steps it has done."""
    states = record["steps"].values()
    done = [state for state in states if state["state"] == "done"]
    planned = sum(state["planned"] for state in done)
    pace = sum(state["seconds"] for state in done) / planned if planned else 1.0
    seconds = pace * sum(state["planned"] for state in states if state["state"] == "waiting")
    if now := record["now"]:
        spent = max(0.0, time.time() - now["since"])
        share = now["done"] / now["total"] if now["total"] else 0.0
        whole = spent / share if share > 0.05 else pace * record["steps"][now["step"]]["planned"]
        seconds += max(0.0, whole - spent)
    return float(seconds)


def _times(state: Mapping[str, Any]) -> str:
    return f"{clock(state['seconds'])} of {clock(state['planned'])}" if state["seconds"] else ""


def _silence(record: Mapping[str, Any]) -> str:
    """Of a run on another machine that has said nothing for a while: nobody can see from here whether it lives."""
    silent = time.time() - record["heard"]
    far = record["host"] != socket.gethostname()
    return f"nothing heard from {record['host']} for {clock(silent)}" if far and silent > 60 else ""


def _step(record: Mapping[str, Any]) -> str:
    return str(record["now"]["step"]) if record["now"] else ""
