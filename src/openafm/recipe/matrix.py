"""One step for many: a step with a `matrix` stands for one step of each combination of its values.

    core:
      matrix: {lr: [0.005, 0.01], seed: [1, 2, 3]}     # steps core-0.005-1, core-0.005-2 ... core-0.01-3
      run: pretrain
      seed: $seed
      inputs: {shards: shards}
      with: {lr: $lr}

`$name` is replaced by the combination's value wherever it stands in the step, in other texts too: `teacher-$seed`.
"""

import itertools
from collections.abc import Mapping
from string import Template
from typing import Any

from openafm.recipe.source import Keys, Source


def expand(source: Source) -> None:
    """Replace every step that has a `matrix` in `source` by its steps; ValueError for a matrix that is none."""
    steps = source.values.get("steps")
    if not isinstance(steps, dict):
        return
    found: dict[str, Any] = {}
    for name, body in steps.items():
        if not isinstance(body, dict) or "matrix" not in body:
            found[name] = body
            continue
        for values in _combinations(source, ("steps", name, "matrix"), body["matrix"]):
            made = "-".join([name, *map(str, values.values())])
            rest = {key: value for key, value in body.items() if key != "matrix"}
            found[made] = _filled(source, ("steps", name), rest, values)
            source.places |= {
                ("steps", made, *keys[2:]): place
                for keys, place in source.places.items()
                if keys[:2] == ("steps", name)
            }
    source.values["steps"] = found


def _combinations(source: Source, keys: Keys, matrix: Any) -> list[dict[str, Any]]:
    """Every choice of one value for each name, the last name's values the fastest."""
    if not isinstance(matrix, dict) or not matrix:
        raise source.error(keys, "a matrix is a mapping of names to lists of values, such as {seed: [1, 2, 3]}")
    for name, values in matrix.items():
        if not isinstance(values, list) or not values or any(isinstance(value, dict | list) for value in values):
            raise source.error((*keys, name), "must be a list of numbers or texts")
        if len(set(map(str, values))) < len(values):
            raise source.error((*keys, name), f"names a value twice: {values}")
    return [dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())]


def _filled(source: Source, keys: Keys, value: Any, values: Mapping[str, Any]) -> Any:
    """`value` with each `$name` in it replaced; a text of `$name` alone becomes the value itself."""
    if isinstance(value, dict):
        return {key: _filled(source, (*keys, str(key)), part, values) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(source, keys, part, values) for part in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    if value[1:] in values and value.startswith("$"):
        return values[value[1:]]
    try:
        return Template(value).substitute(values)
    except (KeyError, ValueError):
        known = ", ".join(f"${name}" for name in values)
        raise source.error(keys, f"{value!r} names no value of this step's matrix (known: {known})") from None
