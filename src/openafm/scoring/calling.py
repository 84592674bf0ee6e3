"""Whether calls of tools are those that were wanted: the rules of the Berkeley Function Calling Leaderboard.

BFCL (Patil et al., 2025) compares syntax trees, not results: the function's name, every argument present and of its
type, its value among those allowed (an allowed "" means that it may be left out), texts up to case, spaces and the
marks `,./-_*^`. Calls made side by side match in any order. The rules for Python; written from the leaderboard's
checker, which `benchmarks/tool_checks.py` holds this against.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from openafm.scoring.toolcalls import Call

TYPES: dict[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
}  # fmt: skip
"""BFCL's names of types to Python's."""
JSON_TYPES = {"float": "number", "array": "array", "tuple": "array", "dict": "object", "any": "string"}
"""BFCL's names of types to JSON schema's, where they differ."""
_UNSEEN = re.compile(r"[ ,./\-_*^]")


def as_wanted(calls: Sequence[Call], wanted: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether `calls` are the wanted ones, each `{function: {argument: allowed values}}`, of these `tools`.

    A dot in a function's name may be written as an underscore, since many protocols allow none.
    """
    if len(calls) != len(wanted):
        return False
    described, left = {tool["name"]: tool for tool in tools}, list(calls)
    for expected in wanted:
        ((name, arguments),) = expected.items()
        at = next((i for i, call in enumerate(left) if _is(call, name, arguments, described[name])), None)
        if at is None:
            return False
        del left[at]  # by place: 5 and 5.0 are equal, and not both may be wanted
    return True


def calls_a_tool(calls: Sequence[Call], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any of these tools is called: wrong where none fits the request."""
    names = {name for tool in tools for name in (tool["name"], tool["name"].replace(".", "_"))}
    return any(call.name in names for call in calls)


def schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as BFCL describes it, in the JSON schema that models are shown."""
    return {**tool, "name": tool["name"].replace(".", "_"), "parameters": _json_types(tool["parameters"])}


def _json_types(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: JSON_TYPES.get(part, part) if key == "type" and isinstance(part, str) else _json_types(part)
            for key, part in value.items()
        }
    return [_json_types(part) for part in value] if isinstance(value, list) else value


def _is(call: Call, name: str, allowed: Mapping[str, list[Any]], tool: Mapping[str, Any]) -> bool:
    """Whether one call is the wanted one."""
    parameters = tool["parameters"]["properties"]
    if call.name not in (name, name.replace(".", "_")):
        return False
    if any(needed not in call.arguments for needed in tool["parameters"]["required"]):
        return False
    if any(argument not in parameters or argument not in allowed for argument in call.arguments):
        return False
    if any(argument not in call.arguments and "" not in values for argument, values in allowed.items()):
        return False
    return all(_fits(value, allowed[argument], parameters[argument]) for argument, value in call.arguments.items())


def _fits(value: Any, allowed: Sequence[Any], parameter: Mapping[str, Any]) -> bool:
    """Whether an argument has its type and one of the allowed values."""
    kind: Any = TYPES[parameter["type"]]
    inner = TYPES.get(parameter.get("items", {}).get("type")) if parameter["type"] in ("array", "tuple") else None
    if parameter["type"] == "float" and type(value) is int:
        value = float(value)
    shown = _kind(allowed)
    if type(value) is not kind:  # a variable may be wanted, which is of another type
        return type(value) is shown and value in allowed
    if inner is not None and not any(_all_of(value, inner, one) for one in allowed):
        return False
    if shown not in (None, kind):
        return value in allowed
    if kind is dict:
        return _dict_fits(value, allowed)
    if kind is list and inner is dict:
        return any(_dicts_fit(value, one) for one in allowed)
    if kind is list:
        return [_text(part) for part in value] in [[_text(part) for part in one] for one in allowed]
    return _text(value) in [_text(one) for one in allowed]


def _kind(allowed: Sequence[Any]) -> type | None:
    """The type of the allowed values; None where the argument can only be left out."""
    return next((type(one) for one in allowed if one != ""), None)


def _all_of(value: Sequence[Any], inner: type, allowed: Any) -> bool:
    """Whether a list's entries have the entries' type, or that of the values allowed."""
    return not isinstance(allowed, list) or all(type(part) in (inner, _kind(allowed)) for part in value)


def _dicts_fit(values: Sequence[Any], allowed: Sequence[Any]) -> bool:
    """Whether mappings fit the allowed ones one by one, in their order."""
    return len(values) == len(allowed) and all(
        isinstance(value, dict) and _dict_fits(value, [one]) for value, one in zip(values, allowed, strict=True)
    )


def _dict_fits(value: Mapping[str, Any], allowed: Sequence[Any]) -> bool:
    """Whether every entry has one of the values allowed under its name, and none that is needed lacks."""
    return any(
        all(key in one and _text(part) in [_text(value) for value in one[key]] for key, part in value.items())
        and all(key in value or "" in values for key, values in one.items())
        for one in allowed
        if isinstance(one, dict)
    )


def _text(value: Any) -> Any:
    """A text without case, spaces and marks; anything else as it is."""
    return _UNSEEN.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
