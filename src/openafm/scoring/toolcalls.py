"""Tool calls in a model's text: find them, hold them against their schemas, run them on small real tools.

A call is a JSON object {"name": NAME, "arguments": {...}}, or in the short form that small vocabularies need
{NAME: {...}}; a tool is a Python function whose signature is its schema.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


@dataclass(frozen=True)
class Call:
    """A tool call as parsed from text."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """A real function a model may call."""

    name: str
    purpose: str
    function: Callable[..., Any]

    @property
    def parameters(self) -> dict[str, type]:
        """Argument names with their types, in order; all are required."""
        return {name: p.annotation for name, p in inspect.signature(self.function).parameters.items()}

    @property
    def signature(self) -> str:
        """The short form shown to small models: `add(a, b)`."""
        return f"{self.name}({', '.join(self.parameters)})"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON-schema form of the OpenAI protocol."""
        kinds = {int: "integer", float: "number", str: "string"}
        properties = {name: {"type": kinds[kind]} for name, kind in self.parameters.items()}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        return {"name": self.name, "description": self.purpose, "parameters": parameters}


def _add(a: int, b: int) -> int:
    return a + b


def _subtract(a: int, b: int) -> int:
    return a - b


def _multiply(a: int, b: int) -> int:
    return a * b


def _larger(a: int, b: int) -> int:
    return max(a, b)


def _upper(text: str) -> str:
    return text.upper()


def _reverse(text: str) -> str:
    return text[::-1]


def _length(text: str) -> int:
    return len(text)


def _day_after(day: str, days: int) -> str:
    return WEEKDAYS[(WEEKDAYS.index(day.capitalize()) + days) % 7]


def _add_days(start: str, days: int) -> str:
    return (date.fromisoformat(start) + timedelta(days=days)).isoformat()


def _to_minutes(hours: int) -> int:
    return hours * 60


def _to_meters(km: int) -> int:
    return km * 1000


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("add", "Add two whole numbers.", _add),
        Tool("subtract", "Subtract b from a.", _subtract),
        Tool("multiply", "Multiply two whole numbers.", _multiply),
        Tool("larger", "The larger of two whole numbers.", _larger),
        Tool("upper", "Write a text in capitals.", _upper),
        Tool("reverse", "Write a text backwards.", _reverse),
        Tool("length", "Count the letters of a text.", _length),
        Tool("day_after", "The weekday some days after a weekday.", _day_after),
        Tool("add_days", "The ISO date some days after an ISO date.", _add_days),
        Tool("to_minutes", "Hours in minutes.", _to_minutes),
        Tool("to_meters", "Kilometers in meters.", _to_meters),
    )
}
"""The tools that examples may name. All are pure functions of this file: running one is safe for any arguments."""


def parse(text: str) -> list[Call]:
    """Return every JSON tool call in a text, in order, wherever it stands; broken JSON is no call."""
    calls, position, decoder = [], text.find("{"), json.JSONDecoder()
    while position >= 0:
        try:
            found, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            found, end = None, position + 1
        if call := _call(found):
            calls.append(call)
        position = text.find("{", end)
    return calls


def _call(found: Any) -> Call | None:
    """Read a JSON value as a call in either form."""
    match found:
        case {"name": str(name), "arguments": dict(arguments)}:
            return Call(name, arguments)
        case dict() if len(found) == 1:
            name, arguments = next(iter(found.items()))
            return Call(name, arguments) if isinstance(arguments, dict) else None
    return None


def problem(call: Call, allowed: list[str]) -> str | None:
    """Return why a call is not valid against the allowed tools' schemas, or None when it is."""
    if call.name not in allowed or call.name not in TOOLS:
        return f"no tool {call.name!r} among {', '.join(allowed)}"
    parameters = TOOLS[call.name].parameters
    if set(call.arguments) != set(parameters):
        return f"{call.name} takes {', '.join(parameters)}, got {', '.join(map(str, call.arguments)) or 'nothing'}"
    for name, kind in parameters.items():
        if not isinstance(call.arguments[name], kind) or isinstance(call.arguments[name], bool):
            return f"{call.name}.{name} must be {kind.__name__}, got {call.arguments[name]!r}"
    return None


def valid(call: Call, allowed: list[str]) -> bool:
    """Return whether a call names an allowed tool with exactly its arguments, rightly typed."""
    return problem(call, allowed) is None


def execute(call: Call, allowed: list[str]) -> Any:
    """Run a call on the real tool. Raises ValueError for an invalid call or arguments the tool cannot take."""
    if why := problem(call, allowed):
        raise ValueError(why)
    try:
        return TOOLS[call.name].function(**call.arguments)
    except (OverflowError, MemoryError) as error:
        raise ValueError(f"{call.name} failed: {error}") from error
