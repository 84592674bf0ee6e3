"""What of a run is current, and why the rest is not (`openafm status RUN`; the runner asks the same question).

The rule: a step is current while the digests of its stage's code, its config, what it reads (parts of artifacts, and
files that its config names), the seed and the run's hardware choice are those in its manifest, and its files are those
it wrote. Otherwise it and its followers are run again; a follower whose inputs come out byte for byte the same stays
current.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Column, Table

from openafm.recipe.artifacts import Manifest, damage, partial, read_manifest
from openafm.recipe.code import code_digest
from openafm.recipe.progress import clock
from openafm.recipe.recipe import Recipe, Step, load
from openafm.stage import Hardware


@dataclass(frozen=True)
class State:
    """How one step stands."""

    step: Step
    state: Literal["current", "stale", "missing", "corrupt", "behind"]
    """behind: current as it is, but what it reads will be made anew."""
    why: str
    manifest: Manifest | None

    def summary(self) -> dict[str, Any]:
        """As JSON, for `status --json`."""
        seconds = self.manifest.times.get("seconds") if self.manifest else None
        return {
            "step": self.step.name,
            "stage": self.step.stage,
            "state": self.state,
            "why": self.why,
            "planned_seconds": self.step.seconds,
            "seconds": seconds,
            "bytes": self.manifest.size() if self.manifest else 0,
            "metrics": self.manifest.metrics if self.manifest else {},
        }


def blank_manifest(step: Step, hardware: Hardware, inputs: Mapping[str, str]) -> Manifest:
    """What the step's manifest says before the step has run: all that its key is made of."""
    ingredients: dict[str, Any] = {
        "stage": step.stage,
        "config": step.config.model_dump(mode="json"),
        "inputs": {name: {"step": where, "digest": inputs[name]} for name, where in step.references().items()}
        | _outside(step),
        "code": code_digest(step.signature.function.__module__),
        "seed": step.seed,
        "hardware": asdict(hardware),
    }
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
    return Manifest(step=step.name, key=key, planned_seconds=step.seconds, **ingredients)


def _outside(step: Step) -> dict[str, dict[str, str]]:
    """What a step reads from outside the run: the files that its config's method `files()` names, if it has one."""
    paths: list[Path] = getattr(step.config, "files", list)()
    digests: dict[str, hashlib._Hash] = {}
    for path in sorted(paths):  # files of one name in several folders count together
        with path.open("rb") as file:
            digests.setdefault(path.name, hashlib.sha256()).update(hashlib.file_digest(file, "sha256").digest())
    return {name: {"step": "", "digest": digest.hexdigest()} for name, digest in digests.items()}


def input_digests(run: Path, step: Step) -> dict[str, str]:
    """The digest of each input's part of its artifact as it stands; ValueError when one is not there."""
    digests = {}
    for name, reference in step.references().items():
        needed, _, path = reference.partition("/")
        manifest = read_manifest(run / needed)
        if manifest is None:
            raise ValueError(f"step {step.name} reads {needed}, which has not been run")
        digests[name] = manifest.part(path)
    return digests


def inspect(run: Path, step: Step, hardware: Hardware) -> State:
    """How `step` stands, all its files hashed again."""
    try:
        manifest = read_manifest(run / step.name)
        wrong = damage(run / step.name, manifest) if manifest else None
    except ValueError as error:
        return State(step, "corrupt", str(error), None)
    if manifest is None:
        begun = partial(run, step.name).exists()
        return State(step, "missing", "interrupted; it goes on from what it has" if begun else "not run yet", None)
    if wrong:
        return State(step, "corrupt", wrong, manifest)
    try:
        wanted = blank_manifest(step, hardware, input_digests(run, step))
    except ValueError as error:
        return State(step, "stale", str(error), manifest)
    if wanted.key == manifest.key:
        return State(step, "current", "", manifest)
    return State(step, "stale", "; ".join(differences(manifest, wanted)), manifest)


def differences(old: Manifest, new: Manifest) -> list[str]:
    """What makes the keys of two manifests differ, in words."""
    found = [
        f"config {key}: {_short(old.config.get(key))} -> {_short(new.config.get(key))}"
        for key in sorted(old.config.keys() | new.config.keys())
        if old.config.get(key) != new.config.get(key)
    ]
    for name in sorted(old.inputs.keys() | new.inputs.keys()):
        if old.inputs.get(name) != new.inputs.get(name):
            found.append(f"input {name} changed")
    for what in ("stage", "code", "seed", "hardware"):
        if getattr(old, what) != getattr(new, what):
            found.append(f"{what} changed")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def states(run: Path, recipe: Recipe, hardware: Hardware) -> list[State]:
    """How every step stands, in order; a current step that reads one which is not is `behind`."""
    found: dict[str, State] = {}
    for step in recipe.steps.values():
        state = inspect(run, step, hardware)
        waits = sorted(name for name in step.needs() if found[name].state != "current")
        if state.state == "current" and waits:
            state = State(step, "behind", f"after {', '.join(waits)}", state.manifest)
        found[step.name] = state
    return list(found.values())


def read_settings(run: Path) -> dict[str, Any]:
    """The run's run.json; ValueError when it is damaged."""
    path = run / "run.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
        Hardware(**settings["hardware"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is corrupt ({type(error).__name__}: {error}): delete it; the next run measures the machine anew, "
            "and steps made with other choices run again"
        ) from None
    return settings


def of_run(run: Path) -> list[State]:
    """How the steps of the run in this folder stand, by the recipe it was last run with (`openafm status`)."""
    settings = read_settings(run)
    if not settings.get("command"):
        raise ValueError(f"{run / 'run.json'} does not name its recipe: bring the run up to date with `openafm run`")
    name, *overrides = settings["command"]
    return states(run, load(name, overrides), Hardware(**settings["hardware"]))


def table(found: list[State]) -> Table:
    """The states for the terminal."""
    drawn = Table("step", "state", Column("planned", justify="right"), Column("spent", justify="right"), "why")
    for state in found:
        seconds = state.manifest.times["seconds"] if state.manifest else None
        spent = clock(seconds) if seconds is not None else ""
        drawn.add_row(state.step.name, state.state, clock(state.step.seconds), spent, escape(state.why))
    return drawn
