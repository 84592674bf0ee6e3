"""The runner: brings a recipe's run up to date, step by step (`openafm run RECIPE`).

What is current is skipped (the rule: `openafm.recipe.status`), the rest is run in order; a kill or an error loses at
most the work since the current step's last checkpoint. The first start writes run.json with the hardware probe's
choices, which every later start reuses, so that a resumed run ends with the bytes of an unbroken one.
"""

import errno
import fcntl
import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from openafm.recipe import artifacts, processes
from openafm.recipe.artifacts import Manifest
from openafm.recipe.board import Board
from openafm.recipe.estimate import ALMOST_FULL, announce, free_mb, missing_mb
from openafm.recipe.live import Live
from openafm.recipe.progress import Display, clock
from openafm.recipe.recipe import Recipe, Step
from openafm.recipe.status import State, blank_manifest, input_digests, inspect, read_settings, states
from openafm.recipe.summary import finish
from openafm.stage import Context, Hardware

VERSIONED = ("torch", "numpy", "sentencepiece", "tokenizers", "daft", "pyarrow", "fasttext-community", "resiliparse")
"""Packages whose versions a manifest notes (they are not compared)."""


UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class RunError(Exception):
    """A run that could not go on: the message says what to do."""


def run(
    recipe: Recipe,
    runs_dir: Path,
    *,
    command: Sequence[str] = (),
    only: str | None = None,
    start: str | None = None,
    until: str | None = None,
    hardware: Hardware | None = None,
    tensorboard: bool = False,
    console: Console,
) -> list[State]:
    """Bring `runs_dir/recipe.name` up to date; how the steps asked for stood before.

    `start` (`--from`) redoes that step and its followers, `until` stops after a step, `only` runs one step on what is
    there. `command` is kept in run.json, so that `status` finds the recipe again. `hardware` replaces the probe at a
    run's first start, `tensorboard` writes event files. Raises ValueError for unknown steps, RunError for what fails on
    the way.
    """
    selected = _selected(recipe, only, until)
    forced = recipe.followers(recipe.find(start).name) if start else set()
    folder = runs_dir / recipe.name
    planned = {step.name: step.seconds for step in selected}
    board = Board(folder) if tensorboard else None
    with _disk_errors(folder, recipe), _lock(folder), Display(console, planned, board) as display:
        settings = _open(folder, recipe, command, hardware, display)
        hardware = Hardware(**settings["hardware"])
        processes.settle(hardware)
        for name in recipe.steps:
            artifacts.publish(folder, name)
        if only:
            _warn_of_stale_inputs(folder, recipe, recipe.steps[only], hardware, display)
        if board:
            display.line(f"tensorboard: curves of training go to {board.folder} (tensorboard --logdir {board.folder})")
        waiting = _announce(folder, recipe, selected, forced, settings, display)
        display.live = Live(folder, [(step.name, step.seconds, step.name not in waiting) for step in selected])
        found = [_bring_up(folder, recipe, step, hardware, step.name in forced, display) for step in selected]
        processes.announce(None, hardware)
        return found


def run_to_the_end(
    recipe: Recipe,
    runs_dir: Path,
    console: Console,
    *,
    command: Sequence[str] = (),
    only: str | None = None,
    start: str | None = None,
    until: str | None = None,
    tensorboard: bool = False,
) -> None:
    """`run`, then its ending: stage table, report, next commands (`openafm run`); under torchrun on rank 0."""
    if processes.join():
        processes.take_part(recipe, runs_dir / recipe.name)
        return processes.leave()
    started = time.monotonic()
    before = run(
        recipe, runs_dir, command=command, only=only, start=start, until=until, tensorboard=tensorboard, console=console
    )
    processes.leave()
    with _disk_errors(runs_dir / recipe.name, recipe):
        finish(runs_dir / recipe.name, recipe, before, time.monotonic() - started, console)


def _selected(recipe: Recipe, only: str | None, until: str | None) -> list[Step]:
    if only:
        return [recipe.find(only)]
    names = list(recipe.steps)
    last = names.index(recipe.find(until).name) if until else len(names)
    return [recipe.steps[name] for name in names[: last + 1]]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Nobody else runs in this folder meanwhile; the lock ends with the process, also with a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder} is being run by another process: wait for it, or stop it first") from None
        yield


def _open(
    folder: Path, recipe: Recipe, command: Sequence[str], hardware: Hardware | None, display: Display
) -> dict[str, Any]:
    """Write or reuse run.json, and check the disk; the run's settings."""
    path = folder / "run.json"
    settings = read_settings(folder) if path.exists() else _first_start(hardware, display)
    settings |= {
        "recipe": recipe.name,
        "title": recipe.title,
        "seed": recipe.seed,
        "recipe_digest": recipe.digest(),
        "command": list(command),
        "steps": [
            {"name": step.name, "stage": step.stage, "inputs": step.inputs, "planned_seconds": step.seconds}
            for step in recipe.steps.values()
        ],
    }
    artifacts.write_json(path, settings)
    needed, free = missing_mb(folder, recipe), free_mb(folder)
    if free < needed:
        raise RunError(
            f"recipe {recipe.name} needs about {needed:.0f} MB more in {folder}, {free:.0f} MB are free: make room, or "
            "choose another disk with --runs-dir"
        )
    return settings


def _first_start(hardware: Hardware | None, display: Display) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    if hardware is None:
        from openafm.training.hardware import probe

        hardware, measured = probe()
        display.line(f"probe: {hardware.device}, {hardware.threads} threads, {hardware.precision} {measured}")
    machine = {"system": platform.platform(), "python": platform.python_version(), "cpu_count": os.cpu_count()}
    return {"hardware": asdict(hardware), "probe": measured, "machine": machine, "started": time.time()}


def _announce(
    folder: Path, recipe: Recipe, selected: list[Step], forced: set[str], settings: dict[str, Any], display: Display
) -> set[str]:
    """Say what the run will take; the steps that are not current."""
    names = {step.name for step in selected}
    found = [
        replace(state, state="stale") if state.step.name in forced else state
        for state in states(folder, recipe, Hardware(**settings["hardware"]))
        if state.step.name in names
    ]
    if said := announce(folder, recipe, found, settings):
        display.line(said)
    return {state.step.name for state in found if state.state != "current"}


def _warn_of_stale_inputs(folder: Path, recipe: Recipe, step: Step, hardware: Hardware, display: Display) -> None:
    """`--only` takes its inputs as they are, if they are whole."""
    for name in sorted(step.needs()):
        state = inspect(folder, recipe.steps[name], hardware)
        if state.state in ("missing", "corrupt"):
            raise RunError(f"{name}: {state.why}; make it with `openafm run {recipe.name} --only {name}`")
        if state.state == "stale":
            display.line(f"warning: {step.name} reads {name}, which is stale ({state.why})")


def _bring_up(folder: Path, recipe: Recipe, step: Step, hardware: Hardware, forced: bool, display: Display) -> State:
    """Run one step unless it is current; how it stood before."""
    state = inspect(folder, step, hardware)
    if state.state == "current" and not forced:
        artifacts.remove(artifacts.partial(folder, step.name))  # a kill may have left it after publishing
        display.end(step.name, 0.0)
        return state
    if state.state == "corrupt":
        display.line(f"warning: {state.why}: the artifact of {step.name} is corrupt and is made again")
    elif state.state == "current":
        state = replace(state, state="stale", why="asked for by --from")
    if not forced and (lender := _borrow(folder, step, hardware)):
        display.end(step.name, 0.0)
        display.line(f"{step.name:<20} taken over from the run {lender}, which made the very same")
        return state
    if state.state == "stale":
        display.line(f"{step.name} again: {state.why}")
    try:
        manifest = _execute(folder, step, hardware, forced, display)
    except KeyboardInterrupt:
        display.line(f"interrupted in step {step.name}: the same command goes on from there")
        raise
    except Exception as error:
        raise _failure(folder, recipe, step, error) from error
    display.end(step.name, manifest.times["seconds"], _headline(manifest))
    display.line(_outcome(manifest))
    return state


def _borrow(folder: Path, step: Step, hardware: Hardware) -> str | None:
    """Take the step over from another run beside this one, if one has it; that run's name."""
    return artifacts.borrow(folder, step.name, blank_manifest(step, hardware, input_digests(folder, step)).key)


def _execute(folder: Path, step: Step, hardware: Hardware, forced: bool, display: Display) -> Manifest:
    """Run a step's function, seal and publish what it wrote."""
    manifest = blank_manifest(step, hardware, input_digests(folder, step))
    out, scratch = artifacts.prepare(folder, step.name, manifest.key, fresh=forced)
    context = Context(
        out,
        scratch,
        step.seed,
        hardware,
        display.report,
        lambda text: display.line(f"warning: {text}"),
        step.parallelism,
        log=display.log,
    )
    processes.announce(step, hardware)
    display.begin(step.name)
    started = time.time()
    _reset_peak_memory()
    metrics = step.signature.function(step.config, context, **step.paths(folder)) or {}
    processes.meet(step)
    if shutil.disk_usage(out).free < ALMOST_FULL:  # a library may have cut off what it wrote without a word
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _check_plain(metrics, context.notes)
    manifest = artifacts.seal(
        out,
        replace(
            manifest,
            metrics=metrics,
            versions=_versions(),
            notes=context.notes,
            times={"started": round(started, 3), "seconds": round(time.time() - started, 3)},
            peak_memory_mb=_peak_memory_mb(),
        ),
    )
    artifacts.publish(folder, step.name)
    return manifest


def _check_plain(*found: dict[str, Any]) -> None:
    """Metrics and notes go into the manifest: finite numbers, texts, lists and mappings of them."""
    for values in found:
        try:
            json.dumps(values, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"its metrics or notes are not plain JSON ({error}): {values}") from None


def _versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _failure(folder: Path, recipe: Recipe, step: Step, error: Exception) -> RunError:
    """What to tell of a step that failed; the traceback goes to a file beside its scratch."""
    if _is_disk_full(error) or shutil.disk_usage(folder).free < ALMOST_FULL:
        return _full(f"step {step.name}: ", folder, recipe)
    if getattr(error, "errno", None) in UNWRITABLE:
        return RunError(f"step {step.name}: {_unwritable(folder, error)}")
    log = artifacts.partial(folder, step.name) / "error.txt"
    with suppress(OSError):
        log.write_text("".join(traceback.format_exception(error)))
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return RunError(f"step {step.name}: {kind}{error} (traceback: {log}). Finished steps are kept")


@contextmanager
def _disk_errors(folder: Path, recipe: Recipe) -> Iterator[None]:
    """What the disk refuses outside of the steps, said with the remedy."""
    try:
        yield
    except OSError as error:
        if _is_disk_full(error):
            raise _full("", folder, recipe) from error
        if error.errno in UNWRITABLE:
            raise RunError(_unwritable(folder, error)) from error
        raise


def _full(where: str, folder: Path, recipe: Recipe) -> RunError:
    free = shutil.disk_usage(_existing(folder)).free / 1e6
    wanted = f"the recipe plans {recipe.disk_mb:.0f} MB in all" if recipe.disk_mb else "make room"
    return RunError(
        f"{where}the disk of {folder} is full ({free:.1f} MB free; {wanted}). "
        "Finished steps are kept: make room, then the same command goes on"
    )


def _unwritable(folder: Path, error: Exception) -> str:
    return f"cannot write in {folder} ({error}): make it writable, or choose another folder with --runs-dir"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether the disk ran full, also as libraries that are not Python tell it."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _headline(manifest: Manifest) -> str:
    """What a step tells of itself first."""
    headline = manifest.metrics.get("headline")
    if headline is not None:
        return str(headline)
    plain = [(key, value) for key, value in manifest.metrics.items() if isinstance(value, int | float | str)]
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in plain[:4])


def _outcome(manifest: Manifest) -> str:
    """One line on a finished step."""
    planned = f" of {clock(manifest.planned_seconds)}" if manifest.planned_seconds else ""
    return f"{manifest.step:<20} {clock(manifest.times['seconds'])}{planned}  {_headline(manifest)}"


def _reset_peak_memory() -> None:
    """Start the kernel's count of peak memory anew (Linux; elsewhere the peak is that of the whole process)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_memory_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
