"""The second program agrees with what the steps keep, and finds what is planted."""

import json
import sys
from pathlib import Path

import pytest

from openafm.sampling import sandbox
from openafm.synthesis import code, mathematics, tool_use

pytest.importorskip("jsonschema")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import reverify
import wordings

needs_sandbox = pytest.mark.skipif(sandbox.backend() == "none", reason="no sandbox here")


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


@needs_sandbox
def test_everything_kept_is_solved_again_and_found_right(steps):
    for name, folder in steps.items():
        counts = reverify.reverify(folder)
        assert sum(c["right"] for c in counts.values()) > 60, name
        assert not any(c["wrong"] or c["unread"] for c in counts.values()), (name, counts)


@needs_sandbox
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


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        ("Sam has 8 books, buys 3 more and gives away 2. How many books are left?", 9),
        ("A bus has 12 people and 5 get off. How many people are on the bus now?", 7),
        ("A train has 6 red cars and 2 blue cars. How many cars does it have?", 8),
        ("I take a number from 9 and get 5. What was the number?", 4),
        ("What number plus 8 is 19?", 11),
        ("What is the difference of 5 and 62?", 57),
        ("There are 6 people and 5 people are left. How many people do you have?", None),
        ("Ben has 8 coins on his wallet. He takes 2 more. How many more does he have left?", None),
        ("Tom has 8 apples. Ann eats 3 apples. How many apples does Tom have now?", None),
        ("There are 6 snails, each of which is 4 feet long. How many feet do they each have?", None),
    ],
)
def test_problems_in_a_writers_words_are_read_or_left(problem, answer):
    assert wordings.solved(problem) == answer


@pytest.mark.parametrize(
    ("request_", "name", "arguments", "verdict"),
    [
        ("Can you take 6 from 17?", "subtract", {"a": 17, "b": 6}, "right"),
        ("Can you take 17 from 6?", "subtract", {"a": 17, "b": 6}, "wrong"),
        ("What is 12 multiplied by 5?", "multiply", {"a": 5, "b": 12}, "right"),
        ("What is 12 multiplied by 5?", "add", {"a": 5, "b": 12}, "wrong"),
        ("Spell cow backwards.", "reverse", {"text": "cow"}, "right"),
        ("What day is 3 days after Friday?", "day_after", {"day": "Friday", "days": 3}, "right"),
        ("How many minutes are in 8 hours?", "to_minutes", {"hours": 9}, "wrong"),
        ("What about 3 and 4?", "add", {"a": 3, "b": 4}, "unread"),
    ],
)
def test_requests_in_a_writers_words_name_their_call(request_, name, arguments, verdict):
    assert reverify.own_words(request_, name, arguments) == verdict
