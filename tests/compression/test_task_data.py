import json

import pytest

from openafm.compression.task_data import TaskDataConfig, task_data


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return TaskDataConfig(data=str(path))


GOOD = [{"text": f"text {i}", "summary": f"sum {i}"} for i in range(9)]
ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


def test_every_form_becomes_an_example(tmp_path, make_context):
    whole = {"messages": [*ASKED, {"role": "assistant", "content": "a"}]}
    rows = [*GOOD, "", {"messages": ASKED, "answer": "a", "source": 7}, whole, {"text": "t", "answer": "a\u2028b"}]
    context = make_context("out")
    assert task_data(write(tmp_path / "d.jsonl", rows), context)["examples"] == 12
    made = [json.loads(line) for line in (context.out / "examples.jsonl").read_text().split("\n") if line]
    assert made[0]["messages"] == [{"role": "user", "content": "Sum up: text 0"}] and made[0]["answer"] == "sum 0"
    assert made[9]["source"] == "7" and made[9]["id"] == f"{tmp_path / 'd.jsonl'}:11"
    assert made[10]["messages"] == ASKED and made[10]["answer"] == "a" and made[11]["answer"] == "a\u2028b"
    assert made[9]["messages"] == made[10]["messages"] and made[10]["source"] != made[0]["source"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"summary": "s"}, 'neither "messages" nor "text"'),
        ({"text": "t"}, 'no "answer"'),
        ({"text": "t", "answer": " "}, "empty"),
        ({"text": 1, "answer": "a"}, 'nor "text"'),
        ({"messages": [], "answer": "a"}, "list of at least one"),
        ({"messages": "x", "answer": "a"}, "list of at least one"),
        ({"messages": [{"role": "user"}], "answer": "a"}, 'text under "content"'),
        ({"messages": [{"role": "boss", "content": "x"}], "answer": "a"}, "role 'boss' is not one of"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "nothing comes before"),
    ],
)
def test_the_line_at_fault_is_named(tmp_path, make_context, line, message):
    config = write(tmp_path / "d.jsonl", [*GOOD, "", line])
    with pytest.raises(ValueError, match=rf"d\.jsonl:11.*{message}"):
        task_data(config, make_context("out"))


def test_too_few_and_missing(tmp_path, make_context):
    config = write(tmp_path / "d.jsonl", GOOD)
    assert config.files() == [tmp_path / "d.jsonl"]
    with pytest.raises(ValueError, match="9 examples: give at least 10"):
        task_data(config, make_context("few"))
    with pytest.raises(ValueError, match="does not exist"):
        task_data(TaskDataConfig(data=str(tmp_path / "x.jsonl")), make_context("none"))
