import ast
import json
import random

import numpy as np
import pytest

from openafm.sampling import sandbox
from openafm.scoring import checks
from openafm.synthesis import tool_library, tool_use
from openafm.synthesis.tool_library import KINDS, library

needs_sandbox = pytest.mark.skipif(sandbox.backend() == "none", reason="no sandbox here")


def valid_expression(tool):
    """Whether a tool's expression uses all of its parameters."""
    names = {node.id for node in ast.walk(ast.parse(tool.call)) if isinstance(node, ast.Name)}
    return set(tool.parameters) <= names


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return tool_library.trajectories(12, 3, tmp_path_factory.mktemp("no-embedder"))


def test_every_tool_is_whole():
    assert len(library()) >= 50
    for tool in library().values():
        assert valid_expression(tool) and tool.name.isidentifier()
        assert all(f"{{{name}}}" in tool.phrase for name in tool.parameters)
        for number in range(20):
            drawn = {name: tool_library.draw(rule, random.Random(number)) for name, rule in tool.parameters.items()}
            assert not any(tool_library.fault(drawn[name], rule) for name, rule in tool.parameters.items())


@needs_sandbox
def test_every_tool_runs_and_agrees_with_python():
    calls = [
        tool_library._call(tool, random.Random(f"{tool.name}{n}")) for tool in library().values() for n in range(3)
    ]
    for call, told in zip(calls, tool_library.run(calls), strict=True):
        space = {m.partition(".")[0]: __import__(m) for m in call.tool.modules}
        # our own expression and drawn arguments: a second program, outside the sandbox
        assert told == {"value": eval(call.tool.call, space, dict(call.arguments))}, call
        kind = {"integer": int, "number": float, "string": str, "date": str, "boolean": bool, "array": list}
        assert isinstance(told["value"], kind[call.tool.returns])


@needs_sandbox
def test_a_call_that_takes_the_others_with_it_is_run_alone():
    tool = library()["gcd"]
    evil = tool_library.LibraryTool("evil", "", "__import__('os')._exit(0)", {}, "integer", "")
    wrong = tool_library.LibraryTool("wrong", "", "1 / 0", {}, "integer", "")
    calls = [tool_library.Call(t, a, "") for t, a in ((tool, {"a": 4, "b": 6}), (evil, {}), (wrong, {}))]
    told = tool_library.run(calls)
    assert told[0] == {"value": 2} and "error" in told[1] and "ZeroDivisionError" in told[2]["error"]


@needs_sandbox
def test_every_kind_is_made_and_every_turn_passes_its_own_check(found):
    trajectories, by = found
    assert by == "spelling" and {t.kind for t in trajectories if not t.reason} == set(KINDS)
    for trajectory in trajectories:
        if trajectory.reason:
            assert trajectory.reason in ("schema", "execution", "one_step")
            continue
        for row in tool_library.examples(trajectory):
            assert checks.passes(row, row["answer"]) and checks.grades(row, row["answer"])[1] == 2
            assert row["messages"][-1]["role"] in ("user", "tool")
            schemas = json.loads(row["messages"][0]["content"].removeprefix("Tools: "))
            assert {schema["name"] for schema in schemas} == {tool.name for tool in trajectory.shown}
            assert not checks.passes(row, '{"name": "gcd", "arguments": {}}')


@needs_sandbox
def test_later_calls_take_the_results_of_earlier_ones(found):
    steps = [t for t in found[0] if t.kind == "multi_step" and not t.reason]
    assert steps
    for trajectory in steps:
        for call in trajectory.calls[1:]:
            number, argument = call.feeds
            assert call.arguments[argument] == trajectory.calls[number].value
        rows = tool_library.examples(trajectory)
        assert len(rows) == len(trajectory.calls) + 1
        assert len({row["lineage"].split("/", 2)[2] for row in rows}) == 1  # all turns share a split


def test_distractors_are_the_most_similar_tools():
    tools = list(library())
    similar = np.zeros((len(tools), len(tools)))
    similar[:, :7] = np.linspace(1, 0.5, 7)
    for number in range(20):
        made = tool_library.make("none", similar, random.Random(number))
        assert 1 <= len(made.shown) <= 4 and {tool.name for tool in made.shown} <= set(tools[:7])


@pytest.mark.parametrize(
    ("value", "rule"),
    [(True, {"type": "integer"}), (1.5, {"type": "integer"}), (5, {"type": "integer", "maximum": 4}),
     ("x", {"type": "array"}),
     ("z", {"type": "string", "enum": ["a"]}), ("1 May", {"type": "string", "format": "date"}),
     ([1, "a"], {"type": "array", "items": {"type": "integer"}}), ([], {"type": "array", "minItems": 1, "items": {}})],
)  # fmt: skip
def test_what_breaks_a_schema_is_said(value, rule):
    assert tool_library.fault(value, rule)


@needs_sandbox
def test_the_step_takes_the_library_in(context, tmp_path):
    (tmp_path / "empty").mkdir()
    config = tool_use.ToolConfig(per_tool_task=2, per_instruction_task=2, library=5)
    first, again = context("a"), context("b", scratch="other")
    metrics = tool_use.tool_data(config, first, sources=tmp_path / "empty")
    assert metrics == tool_use.tool_data(config, again, sources=tmp_path / "empty")
    assert (first.out / "examples.jsonl").read_bytes() == (again.out / "examples.jsonl").read_bytes()
    assert metrics["distractors_by"] == "spelling" and metrics["yield"]["library-multi_step"]["kept"] > 0
    assert metrics["reasons"].get("copy", 0) == 0
