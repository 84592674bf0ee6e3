"""Tool use with real tools: requests, calls, results and answers, every call run in the sandbox.

AFM (arXiv 2407.21075, section 4.1.2): single-tool use first, then several tools at hand with similar distractors, calls
side by side, several steps, and requests that no tool at hand serves. The tools are functions of Python's standard
library with JSON schemas (`tool_library.yaml`). Distractors are the most similar tools, by a sentence encoder where the
sources hold one (`models/embedder`), else by spelling. A multi-step request nests one tool's phrase in another's, so
an argument of the second call is the first one's result: calls are run level by level, and each result is held against
the schema of the argument it becomes.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from openafm.sampling import sandbox
from openafm.sampling.embedding import similarities
from openafm.synthesis import tasks
from openafm.synthesis.tasks import Example, Problem

FOLDER = Path(__file__).parent
KINDS = ("single", "several", "parallel", "multi_step", "none")
NEAREST = 6
"""Distractors are drawn from so many of the most similar tools."""
WORDINGS = ("What is {}?", "Tell me {}.", "I need {}.", "Please work out {}.", "Find {}.")
RUNNER = """
import json, sys
def main():
    for code, modules, arguments in json.load(sys.stdin):
        try:
            space = {name.partition(".")[0]: __import__(name) for name in modules}
            print(json.dumps({"value": eval(code, space, arguments)}))
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
main()
"""
"""Runs inside the sandbox: one call a line, each answered by one line."""
_MODULES = re.compile(r"(?<![\w.'\"])([a-z]\w*(?:\.parse)?)(?=\.\w)")


@dataclass(frozen=True)
class LibraryTool:
    """One real function: what a model sees of it (`schema`), and the expression that runs it."""

    name: str
    purpose: str
    call: str
    parameters: dict[str, dict[str, Any]]
    returns: str
    phrase: str

    @property
    def schema(self) -> dict[str, Any]:
        """The function in the form of the OpenAI protocol."""
        properties = {name: dict(rule) for name, rule in self.parameters.items()}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        return {"name": self.name, "description": self.purpose, "parameters": parameters}

    @property
    def modules(self) -> list[str]:
        """Modules of the standard library that the expression names."""
        return sorted(set(_MODULES.findall(self.call)) - set(self.parameters))


@lru_cache(maxsize=1)
def library() -> dict[str, LibraryTool]:
    """Every tool by its name."""
    rows = yaml.safe_load((FOLDER / "tool_library.yaml").read_text())
    return {row["name"]: LibraryTool(**row) for row in rows}


def fault(value: Any, rule: dict[str, Any]) -> str | None:
    """Why a value breaks a JSON schema of the library's kind, or None."""
    kinds: dict[str, Any] = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "array": list}
    if not isinstance(value, kinds[rule["type"]]) or (isinstance(value, bool) and rule["type"] != "boolean"):
        return f"{value!r} is not of type {rule['type']}"
    if rule["type"] in ("integer", "number") and not rule.get("minimum", value) <= value <= rule.get("maximum", value):
        return f"{value!r} is not within {rule.get('minimum')} and {rule.get('maximum')}"
    if "enum" in rule and value not in rule["enum"]:
        return f"{value!r} is none of {', '.join(map(str, rule['enum']))}"
    if rule.get("format") == "date" and not re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        return f"{value!r} is no ISO date"
    if rule["type"] == "array":
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)):
            return f"{len(value)} items are not within {rule.get('minItems')} and {rule.get('maxItems')}"
        return next((why for item in value if (why := fault(item, rule["items"]))), None)
    return None


def draw(rule: dict[str, Any], rng: random.Random) -> Any:
    """A value that a schema allows."""
    if "enum" in rule:
        return rng.choice(rule["enum"])
    if rule["type"] == "integer":
        return rng.randint(rule["minimum"], rule["maximum"])
    if rule["type"] == "array":
        return [draw(rule["items"], rng) for _ in range(rng.randint(rule["minItems"], rule["maxItems"]))]
    some = [word for listed in tasks.words().values() for word in listed]
    match rule["format"]:
        case "date":
            return (date(2000, 1, 1) + timedelta(days=rng.randrange(10_000))).isoformat()
        case "ipv4":
            return ".".join(str(rng.randint(1, 254)) for _ in range(4))
        case "word":
            return rng.choice(some)
        case "markup":
            return f"<b>{rng.choice(some)}</b> & {rng.choice(some)}"
    return " ".join(rng.sample(some, rng.randint(2, 4)))


@dataclass
class Call:
    """One call of a trajectory; an argument may be the result of an earlier call."""

    tool: LibraryTool
    arguments: dict[str, Any]
    phrase: str
    feeds: tuple[int, str] | None = None
    """(number of an earlier call, the argument its result becomes)."""
    value: Any = None

    @property
    def written(self) -> str:
        """The call as the model must write it."""
        return json.dumps({"name": self.tool.name, "arguments": self.arguments}, ensure_ascii=False)


@dataclass
class Trajectory:
    """A request, the calls that serve it, and why it is rejected (None while it is not)."""

    kind: str
    shown: list[LibraryTool]
    calls: list[Call] = field(default_factory=list)
    request: str = ""
    reason: str | None = None
    evidence: str = ""


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else f'"{value}"' if " " in str(value) else str(value)


def _call(tool: LibraryTool, rng: random.Random) -> Call:
    arguments = {name: draw(rule, rng) for name, rule in tool.parameters.items()}
    if tool.name == "replace_word":  # what is replaced stands in the text
        arguments["old"] = rng.choice(arguments["text"].split())
    return Call(tool, arguments, tool.phrase.format(**{name: _shown(v) for name, v in arguments.items()}))


def _after(first: Call, number: int, rng: random.Random) -> Call | None:
    """A call one of whose arguments is the result of `first`: the phrase of that stands in its own."""
    takes = [
        (tool, name)
        for tool in library().values()
        for name, rule in tool.parameters.items()
        if tool.name not in (first.tool.name, "replace_word") and "enum" not in rule and _fits(first.tool.returns, rule)
    ]
    if not takes:
        return None
    tool, argument = rng.choice(takes)
    call = _call(tool, rng)
    shown = {name: _shown(value) for name, value in call.arguments.items()} | {argument: first.phrase}
    return Call(tool, call.arguments, tool.phrase.format(**shown), (number, argument))


def _fits(returned: str, rule: dict[str, Any]) -> bool:
    """Whether results of a kind can be such an argument; only the run tells whether one of them is."""
    if returned == "date":
        return rule.get("format") == "date"
    if returned == "array":
        return (rule["type"], rule.get("items", {}).get("type")) == ("array", "integer")
    if returned == "string":
        return rule.get("format") in ("phrase", "word")
    kind: str = rule["type"]
    return returned == kind


def make(kind: str, similar: np.ndarray, rng: random.Random) -> Trajectory:
    """Draw a trajectory: tools, calls and request; nothing has been run yet. `similar` has a row a tool."""
    tools = list(library().values())
    place = rng.randrange(len(tools))
    tool, near = tools[place], [tools[i] for i in np.argsort(-similar[place]) if i != place][:NEAREST]
    calls = [_call(tool, rng)]
    if kind == "parallel":
        calls.append(_call(rng.choice(near), rng))
    if kind == "multi_step":
        while len(calls) < rng.choice((2, 2, 3)) and (following := _after(calls[-1], len(calls) - 1, rng)):
            calls.append(following)
    needed = {call.tool.name: call.tool for call in calls}
    others = [other for other in near if other.name not in needed]
    count = 0 if kind == "single" else rng.randint(1, 4)
    shown = [*needed.values(), *rng.sample(others, min(count, len(others)))]
    asked = f"{calls[0].phrase}, and {calls[1].phrase}" if kind == "parallel" else calls[-1].phrase
    if kind == "none":
        shown, calls = rng.sample(near, rng.randint(1, 4)), []
    rng.shuffle(shown)
    request = rng.choice(WORDINGS).format(asked)
    reason = "one_step" if kind == "multi_step" and len(calls) == 1 else None
    return Trajectory(kind, shown, calls, request, reason)


def run(calls: Sequence[Call], batch: int = 64) -> list[dict[str, Any]]:
    """Execute calls in the sandbox, many a launch; {"value": …} or {"error": …} for each."""
    batches = [calls[start : start + batch] for start in range(0, len(calls), batch)]
    jobs = [
        sandbox.Job(RUNNER, json.dumps([[call.tool.call, call.tool.modules, call.arguments] for call in some]))
        for some in batches
    ]
    found: list[dict[str, Any]] = []
    for some, result in zip(batches, sandbox.run_all(jobs), strict=True):
        lines = result.stdout.splitlines()
        if result.ok and len(lines) == len(some):
            found += map(json.loads, lines)
        elif len(some) == 1:
            found.append({"error": "timeout" if result.timed_out else result.stderr.strip()[-200:] or "no result"})
        else:  # one of them took all the others with it
            found += run(some, 1)
    return found


def execute(trajectories: Sequence[Trajectory]) -> None:
    """Run every call, first calls first; results become arguments, and what breaks a schema or fails is rejected."""
    for level in range(max((len(t.calls) for t in trajectories), default=0)):
        ready = [t for t in trajectories if not t.reason and len(t.calls) > level]
        for trajectory in ready:
            _fill(trajectory, trajectory.calls[level])
        ready = [t for t in ready if not t.reason]
        for trajectory, told in zip(ready, run([t.calls[level] for t in ready]), strict=True):
            call = trajectory.calls[level]
            if "error" in told:
                trajectory.reason, trajectory.evidence = "execution", f"{call.written}: {told['error']}"
            call.value = told.get("value")


def _fill(trajectory: Trajectory, call: Call) -> None:
    """Put an earlier result in its place, and hold all arguments against the schema."""
    if call.feeds:
        number, argument = call.feeds
        call.arguments = {**call.arguments, argument: trajectory.calls[number].value}
    for name, rule in call.tool.parameters.items():
        if why := fault(call.arguments[name], rule):
            trajectory.reason, trajectory.evidence = "schema", f"{call.tool.name}.{name}: {why}"


def examples(trajectory: Trajectory) -> list[Example]:
    """The turns that a model must learn of a trajectory: its calls, and the answer after the last result."""
    schemas = json.dumps([tool.schema for tool in trajectory.shown], ensure_ascii=False)
    messages = [
        {"role": "system", "content": f"Tools: {schemas}"},
        {"role": "user", "content": trajectory.request},
    ]
    key = f"{trajectory.kind} {trajectory.calls[-1].phrase if trajectory.calls else trajectory.request}"
    if trajectory.kind == "parallel":
        key = f"parallel {trajectory.calls[0].phrase}, and {trajectory.calls[1].phrase}"
    names = [tool.name for tool in trajectory.shown]
    if not trajectory.calls:
        check: dict[str, Any] = {"kind": "calls", "tools": names, "calls": [], "answer": tasks.NO_TOOL}
        return [_turn(trajectory, messages, tasks.NO_TOOL, check, key)]
    found = []
    turns = [trajectory.calls] if trajectory.kind == "parallel" else [[call] for call in trajectory.calls]
    for calls in turns:
        answer = "\n".join(call.written for call in calls)
        wanted = [{"name": call.tool.name, "arguments": call.arguments} for call in calls]
        found.append(_turn(trajectory, messages, answer, {"kind": "calls", "tools": names, "calls": wanted}, key))
        results = "\n".join(json.dumps(call.value, ensure_ascii=False) for call in calls)
        messages = [*messages, {"role": "assistant", "content": answer}, {"role": "tool", "content": results}]
    final = "; ".join(_plain(call.value) for call in turns[-1])
    return [*found, _turn(trajectory, messages, final, {"kind": "text", "answer": final}, key)]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _turn(trajectory: Trajectory, messages: list[dict[str, str]], answer: str, check: Any, key: str) -> Example:
    row = tasks.example(
        f"tool_{trajectory.kind}",
        Problem(json.dumps(messages), answer, key, check),
        lineage=f"library-{trajectory.kind}",
    )
    return {**row, "messages": messages}


def trajectories(count: int, seed: int, embedder: Path) -> tuple[list[Trajectory], str]:
    """Draw and run `count` trajectories of each kind; also what distractors were chosen by."""
    texts = [f"{tool.name.replace('_', ' ')}: {tool.purpose}" for tool in library().values()]
    similar, by = similarities(texts, texts, embedder)
    rng = random.Random(f"{seed}/tool_library")
    drawn: dict[str, Trajectory] = {}
    for kind in KINDS:
        for _ in range(count):
            made = make(kind, similar, rng)
            drawn.setdefault(f"{kind} {made.request}", made)
    found = list(drawn.values())
    execute(found)
    return found, by
