"""Toy stages, a recipe of them, and what is left of its runs."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from openafm.recipe import code, runner, steps
from openafm.recipe.recipe import Recipe, parse
from openafm.recipe.source import parse as parse_yaml
from openafm.stage import Hardware

HARDWARE = Hardware(threads=1)
STAGES = {
    "count": ("toys:count", "numbers"),
    "scale": ("toys:scale", "numbers times something"),
    "walk": ("toys:walk", "a slow walk with checkpoints"),
}
TOYS = '''
"""Toy stages."""
import json, random, time
from pathlib import Path
from openafm.stage import Config, Context, Metrics

class CountConfig(Config):
    upto: int = 5
    parity: bool = False
    """Only says whether numbers are even: 4 and 6 come out alike."""

class ScaleConfig(Config):
    by: int = 2
    fail: str = ""

class WalkConfig(Config):
    steps: int = 40
    pause: float = 0.0

def count(config: CountConfig, context: Context) -> Metrics:
    numbers = [i % 2 if config.parity else i for i in context.track(range(config.upto), "count")]
    (context.out / "deep").mkdir()
    (context.out / "deep" / "numbers.json").write_text(json.dumps(numbers[:4] if config.parity else numbers))
    (context.out / "note.txt").write_text("constant")
    context.note(rate=time.time())
    return {"headline": f"{config.upto} numbers"}

def scale(config: ScaleConfig, context: Context, *, numbers: Path, extra: Path | None = None) -> Metrics:
    if config.fail == "value":
        raise ValueError("numbers.json:3: a bad number; remove it")
    if config.fail == "nospace":
        raise OSError(28, "No space left on device")
    if config.fail == "nan":
        return {"loss": float("nan")}
    if config.fail == "interrupt":
        raise KeyboardInterrupt
    found = json.loads((numbers / "deep" / "numbers.json").read_text())
    (context.out / "scaled.json").write_text(json.dumps([config.by * n for n in found]))
    return {"total": float(sum(found))}

def walk(config: WalkConfig, context: Context, *, parts: dict[str, Path]) -> Metrics:
    saved = context.scratch / "at.json"
    step, place = json.loads(saved.read_text()) if saved.exists() else (0, 0.0)
    started_at = step
    while step < config.steps:
        place += random.Random(f"{context.seed}/{step}").gauss(0, 1)
        step += 1
        new = context.scratch / "at.new"
        new.write_text(json.dumps([step, place]))
        new.replace(saved)
        (context.out / f"{step}.txt").write_text(f"{step}")
        time.sleep(config.pause)
    for step in range(config.steps):
        (context.out / f"{step}.txt").write_text(f"{step}")
    (context.out / f"{config.steps}.txt").unlink(missing_ok=True)
    (context.out / "place.txt").write_text(f"{place!r} {sorted(parts)}")
    context.note(resumed_at=started_at)
    return {"place": place}
'''
RECIPE = """
name: toy
title: a toy
seed: 3
steps:
  count: {run: count, with: {upto: 5}, seconds: 1}
  other: {run: count, with: {upto: 3}}
  double: {run: scale, inputs: {numbers: count}}
  triple: {run: scale, inputs: {numbers: count, extra: other/deep}, with: {by: 3}}
  walk: {run: walk, inputs: {parts: {two: double, three: triple}}}
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A fresh module of toy stages; its path, for changing its code."""
    path = tmp_path / "toys.py"
    path.write_text(TOYS)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    yield path
    forget()


def forget() -> None:
    """What a new process would not know."""
    sys.modules.pop("toys", None)
    for cached in (code.code_digest, code._source, code._imports, code._meaning, steps.signature):
        cached.cache_clear()


def recipe(**changes: str) -> Recipe:
    text = RECIPE
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return parse(parse_yaml("toy.yaml", text), STAGES)


def bring_up(folder: Path, wanted: Recipe, **options) -> tuple[list[str], str]:
    """Names of the steps that were executed, and what was printed."""
    console = Console(record=True, width=200, file=io.StringIO())
    before = runner.run(wanted, folder, hardware=HARDWARE, console=console, **options)
    text = console.export_text()
    return [state.step.name for state in before if f"{state.step.name:<20} 0:0" in text], text


def artifact_bytes(run: Path) -> dict[str, bytes]:
    """Every output file, and of each manifest what belongs to the digest."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            stable = {key: manifest[key] for key in ("key", "config", "inputs", "outputs", "digest", "metrics", "seed")}
            found[str(path.relative_to(run))] = json.dumps(stable).encode()
        elif path.is_file() and path.name not in ("run.json", ".lock"):
            found[str(path.relative_to(run))] = path.read_bytes()
    return found
