"""The second program agrees with what the steps keep, and finds what is planted."""

import importlib.util
import json
from pathlib import Path

import pytest

from openafm.sampling import sandbox
from openafm.synthesis import code, mathematics, tool_use

pytest.importorskip("jsonschema")
_spec = importlib.util.spec_from_file_location("reverify", Path(__file__).parents[2] / "benchmarks" / "reverify.py")
reverify = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reverify)

pytestmark = pytest.mark.skipif(sandbox.backend() == "none", reason="no sandbox here")


@pytest.fixture
def steps(context, tmp_path):
    (tmp_path / "empty").mkdir()
    made = {
        mathematics.math_data: mathematics.MathConfig(per_task=25, seeds=25),
        tool_use.tool_data: tool_use.ToolConfig(per_tool_task=30, per_instruction_task=30, library=6),
        code.code_data: code.CodeConfig(topics=12, per_task=40, outputs=3),
    }
    folders = {}
    for stage, config in made.items():
        made_by = context(stage.__name__)
        stage(config, made_by, sources=tmp_path / "empty")
        folders[stage.__name__] = made_by.out
    return folders


def test_everything_kept_is_solved_again_and_found_right(steps):
    for name, folder in steps.items():
        counts = reverify.reverify(folder)
        assert sum(c["right"] for c in counts.values()) > 60, name
        assert not any(c["wrong"] or c["unread"] for c in counts.values()), (name, counts)


def test_planted_errors_are_found(steps):
    changed = {
        "addition": lambda a: str(int(a) + 1), "sorting": lambda a: a.replace(",", " ,", 1)[::-1],
        "weekday": lambda a: "Monday" if a != "Monday" else "Friday", "single_tool": lambda a: a.replace("{", "[", 1),
        "tool_multi_step": lambda a: a + "1", "tool_none": lambda a: "Yes.", "code_output": lambda a: a + "0",
        "code_solution": lambda a: "f = lambda x: None", "math_reverse": lambda a: str(int(a) + 3),
    }  # fmt: skip
    for folder in steps.values():
        for path in folder.glob("*s.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            rows = [{**row, "answer": changed[row["task"]](row["answer"])} for row in rows if row["task"] in changed]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for task, verdicts in reverify.reverify(folder).items():
            assert set(verdicts) == {"wrong"}, (task, verdicts)
