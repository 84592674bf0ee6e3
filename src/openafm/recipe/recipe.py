"""A recipe: YAML read into typed steps, each a stage with its config and named inputs (`openafm run RECIPE`).

    name: nano
    title: the whole recipe in half an hour
    seed: 0                       # of every step, unless it has one of its own
    disk_mb: 3000                 # free space the run needs
    size: 7M                      # the dial of pretraining steps (openafm.model.presets), where they leave it open
    parallelism: {tensor: 1}      # how torchrun's processes share training steps (a step may have its own)
    defaults: {pretrain: {micro: 1}}   # config keys shared by all steps of a stage
    steps:
      teacher:
        run: pretrain             # the stage, a line of openafm.recipe.steps
        seconds: 170              # planned, for the progress bar
        inputs: {shards: shards, models: {writer: fetch/models/writer}}
        with: {tokens: 500_000}   # the stage's config

A group of inputs may be a pattern of step names, or several (`models: [core-*, adamw-*]`), and one step may stand for
many (openafm.recipe.matrix). What is wrong in it is one ValueError that names the file, the line and the remedy.
"""

import difflib
import fnmatch
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from openafm.recipe import source as yaml_source
from openafm.recipe.matrix import expand
from openafm.recipe.source import Keys, Source
from openafm.recipe.steps import STAGES, Signature, Stages, signature
from openafm.stage import Config, Parallelism

Reference = str | dict[str, str]
"""`step` or `step/path/in/its/artifact`, or a named group of those."""
Kind = TypeVar("Kind", bound=Config)

RECIPE_KEYS = ("name", "title", "seed", "disk_mb", "size", "parallelism", "defaults", "steps")
STEP_KEYS = ("run", "inputs", "seconds", "seed", "matrix", "parallelism", "with")


@dataclass(frozen=True)
class Step:
    """One line of the factory: a stage bound to its config and inputs."""

    name: str
    stage: str
    signature: Signature
    config: Config
    inputs: dict[str, Reference]
    seconds: float
    """Planned."""
    seed: int = 0
    """The step's own over the recipe's."""
    parallelism: Parallelism = field(default_factory=Parallelism)
    """The step's own over the recipe's."""

    def references(self) -> dict[str, str]:
        """Every single input as `name` or `name.member` -> `step/path`."""
        flat: dict[str, str] = {}
        for name, reference in self.inputs.items():
            members = {name: reference} if isinstance(reference, str) else reference
            flat |= {name if isinstance(reference, str) else f"{name}.{key}": value for key, value in members.items()}
        return flat

    def paths(self, run: Path) -> dict[str, Any]:
        """The stage's keyword arguments, in the folder of a run."""
        return {
            name: run / reference
            if isinstance(reference, str)
            else {key: run / path for key, path in reference.items()}
            for name, reference in self.inputs.items()
        }

    def needs(self) -> set[str]:
        """The steps this one reads."""
        return {reference.partition("/")[0] for reference in self.references().values()}


@dataclass(frozen=True)
class Recipe:
    """A named list of steps, ordered so that each comes after those it reads."""

    name: str
    title: str
    seed: int
    disk_mb: float
    steps: dict[str, Step]

    def followers(self, name: str) -> set[str]:
        """The step and every step that reads it, directly or not."""
        found = {name}
        for step in self.steps.values():
            if step.needs() & found:
                found.add(step.name)
        return found

    def find(self, name: str) -> Step:
        """The step called `name`; ValueError with the closest names when there is none."""
        if name not in self.steps:
            raise ValueError(f"no step called {name!r} in recipe {self.name}{_closest(name, self.steps)}")
        return self.steps[name]

    def digest(self) -> str:
        """SHA-256 of everything the recipe says."""
        steps = {
            step.name: [step.stage, step.config.model_dump(mode="json"), step.inputs, step.seed]
            for step in self.steps.values()
        }
        return hashlib.sha256(json.dumps([self.name, self.seed, steps], sort_keys=True).encode()).hexdigest()


def load(name: str, overrides: Sequence[str] = (), stages: Stages = STAGES) -> Recipe:
    """Read the recipe `name` (a path or a bare name) with `--set` overrides; ValueError for all that is wrong in it."""
    return parse(yaml_source.read(name, overrides), stages)


def parse(source: Source, stages: Stages = STAGES) -> Recipe:
    """Check and type a recipe's YAML."""
    expand(source)
    values = source.values
    _known(source, (), values, RECIPE_KEYS)
    name = _typed(source, ("name",), values, str)
    if not name or "/" in name or name.startswith("."):
        raise source.error(("name",), f"{name!r} cannot name the run's folder")
    bodies = _typed(source, ("steps",), values, dict)
    defaults = _typed(source, ("defaults",), values, dict, {})
    for stage in defaults:
        _check_stage(source, ("defaults", stage), stage, stages)
    steps = {step: _step(source, step, body, defaults, stages, bodies) for step, body in bodies.items()}
    for step in steps.values():
        _check_references(source, step, steps)
    return Recipe(
        name=name,
        title=_typed(source, ("title",), values, str, ""),
        seed=_typed(source, ("seed",), values, int, 0),
        disk_mb=_typed(source, ("disk_mb",), values, (int, float), 0),
        steps=_ordered(source, steps),
    )


def _step(source: Source, name: str, body: Any, defaults: dict[str, Any], stages: Stages, steps: Iterable[str]) -> Step:
    keys: Keys = ("steps", str(name))
    if not isinstance(body, dict):
        raise source.error(keys, f"a step is a mapping with the keys {', '.join(STEP_KEYS)}")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+[\w.-]*", name):
        raise source.error(keys, "a step's name is letters, digits, -, _ and, not at its beginning, dots")
    _known(source, keys, body, STEP_KEYS)
    stage = _typed(source, (*keys, "run"), body, str)
    _check_stage(source, (*keys, "run"), stage, stages)
    asked = signature(stages[stage][0])
    given = _typed(source, (*keys, "with"), body, dict, {})
    shared = defaults.get(stage) or {}
    if "size" in source.values and "size" in asked.config.model_fields:
        shared = {"size": source.values["size"]} | shared
    config = _config(source, (*keys, "with"), ("defaults", stage), asked.config, given, shared)
    others = [other for other in steps if other != name]
    named = _typed(source, (*keys, "inputs"), body, dict, {})
    named = {key: _matching(reference, others) for key, reference in named.items()}
    inputs = _inputs(source, (*keys, "inputs"), named, asked)
    seconds = float(_typed(source, (*keys, "seconds"), body, (int, float), 0))
    own = _typed(source, (*keys, "parallelism"), body, dict, {})
    for_all = _typed(source, ("parallelism",), source.values, dict, {})
    parallelism = _config(source, (*keys, "parallelism"), ("parallelism",), Parallelism, own, for_all)
    seed = _typed(source, (*keys, "seed"), body, int, _typed(source, ("seed",), source.values, int, 0))
    return Step(name, stage, asked, config, inputs, seconds, seed, parallelism)


def _matching(reference: Any, others: list[str]) -> Any:
    """Patterns (`core-*`; `*` for all), one or a list, as the group of the steps they fit, each under its own name."""
    patterns = reference if isinstance(reference, list) else [reference]
    if not all(isinstance(pattern, str) and "*" in pattern for pattern in patterns):
        return reference
    return {other: other for pattern in patterns for other in fnmatch.filter(others, pattern)} or reference


def _config(
    source: Source, keys: Keys, shared_keys: Keys, kind: type[Kind], given: dict[str, Any], shared: dict[str, Any]
) -> Kind:
    """A step's config of this kind, out of its own keys over those that the recipe has for several steps."""
    try:
        return kind.model_validate(yaml_source.merged(shared, given))
    except ValidationError as errors:
        error = errors.errors()[0]
    path = tuple(str(part) for part in error["loc"])
    where = (*keys, *path) if path[:1] and path[0] in given else (*shared_keys, *path)
    if error["type"] == "extra_forbidden":
        owner = _field_type(kind, path[:-1])
        raise source.error(where, f"unknown key{_closest(path[-1], owner.model_fields if owner else ())}")
    message = error["msg"].removeprefix("Value error, ")
    raise source.error(where if path else keys, f"{message} (given: {error['input']!r})" if path else message)


def _field_type(kind: type[BaseModel], path: Keys) -> type[BaseModel] | None:
    """The nested model that `path` leads to, for naming its keys."""
    for name in path:
        field = kind.model_fields.get(name)
        options = _models(field.annotation) if field is not None else []
        if not options:
            return None
        kind = options[0]
    return kind


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType):
        return [model for option in typing.get_args(annotation) for model in _models(option)]
    return []


def _inputs(source: Source, keys: Keys, given: dict[str, Any], asked: Signature) -> dict[str, Reference]:
    """The step's inputs, each of the kind that the stage's parameter wants."""
    _known(source, keys, given, tuple(asked.inputs))
    inputs: dict[str, Reference] = {}
    for name, wanted in asked.inputs.items():
        reference = given.get(name)
        if reference is None and wanted.required:
            raise source.error(keys, f"input {name!r} is missing: add `{name}: STEP` (or STEP/path)")
        if reference is None:
            continue
        members = reference.values() if wanted.group and isinstance(reference, dict) else [reference]
        if wanted.group != isinstance(reference, dict) or not all(isinstance(member, str) for member in members):
            group = "a mapping of names to steps, or a pattern that fits their names, such as 'core-*'"
            shape = group if wanted.group else "a step's name, or STEP/path"
            raise source.error((*keys, name), f"must be {shape}")
        inputs[name] = reference
    return inputs


def _check_stage(source: Source, keys: Keys, stage: str, stages: Stages) -> None:
    if stage not in stages:
        raise source.error(keys, f"no stage called {stage!r}{_closest(stage, stages)}")


def _check_references(source: Source, step: Step, steps: dict[str, Step]) -> None:
    for name, reference in step.references().items():
        needed = reference.partition("/")[0]
        keys = ("steps", step.name, "inputs", *name.split(".", 1))
        if needed not in steps:
            raise source.error(keys, f"no step called {needed!r}{_closest(needed, steps)}")
        if ".." in reference.split("/"):
            raise source.error(keys, f"{reference!r} leaves the artifact of {needed}")


def _ordered(source: Source, steps: dict[str, Step]) -> dict[str, Step]:
    """The steps so that each follows what it reads, otherwise as written."""
    ordered: dict[str, Step] = {}
    while len(ordered) < len(steps):
        ready = (step for step in steps.values() if step.name not in ordered and step.needs() <= ordered.keys())
        step = next(ready, None)
        if step is None:
            rest = [name for name in steps if name not in ordered]
            raise source.error(("steps", rest[0]), f"these steps wait for each other: {', '.join(rest)}")
        ordered[step.name] = step
    return ordered


def _known(source: Source, keys: Keys, values: dict[str, Any], known: Iterable[str]) -> None:
    for key in values:
        if key not in known:
            raise source.error((*keys, str(key)), f"unknown key{_closest(str(key), known)}")


def _typed(source: Source, keys: Keys, values: dict[str, Any], kind: Any, default: Any = None) -> Any:
    """The value of the last of `keys`, of the right type; an error when it is missing and has no default."""
    value = values.get(keys[-1], default)
    if value is None and default is None:
        raise source.error(keys[:-1], f"{keys[-1]!r} is missing")
    value = default if value is None else value
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {str: "text", int: "a whole number", dict: "a mapping", (int, float): "a number"}
        raise source.error(keys, f"must be {names[kind]}, not {value!r}")
    return value


def _closest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'? known: ..." for an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(sorted(known)) or 'none'})"
