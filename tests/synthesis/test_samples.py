"""Examples for reading: the same ones each time, evenly drawn, with reasons, and harmless to a terminal."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from openafm.cli import app
from openafm.synthesis.samples import samples


def row(number, task, answer="7", **more):
    said = [{"role": "user", "content": f"What is {number}?"}]
    return {
        "id": f"{task}-{number}",
        "task": task,
        "messages": said,
        "answer": answer,
        "lineage": f"rule/{task}/x",
    } | more


@pytest.fixture
def run(tmp_path):
    kept = [row(n, "addition") for n in range(50)] + [row(n, "parity") for n in range(50, 53)]
    rejected = [row(n, "addition", reason="answer_check", evidence="6 | 7") for n in range(40)]
    rejected += [row(99, "parity", answer="\x1b[31mred\nnext", reason="no_question", evidence="\x07")]
    for step, stage in (("math", "math_data"), ("web", "extract")):
        folder = tmp_path / step
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps({"stage": stage}))
        for name, rows in (("examples", kept), ("rejected", rejected)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (tmp_path / "run.json").write_text("{}")
    return tmp_path


def test_an_even_share_of_tasks_and_reasons_the_same_each_time(run):
    found = samples(run, 14)
    assert Counter((s.reason, s.task) for s in found) == {
        ("", "addition"): 5, ("", "parity"): 3, ("answer_check", "addition"): 5, ("no_question", "parity"): 1,
    }  # fmt: skip
    assert found == samples(run, 14) != samples(run, 14, seed=1)
    assert {s.step for s in found} == {"math"}  # other steps' files are no synthetic examples
    assert len(samples(run, 10**6)) == 94 and len(samples(run, 60, only="rejected")) == 41


def test_what_nothing_matches_is_told_with_the_steps_there_are(run, tmp_path):
    with pytest.raises(ValueError, match="made any: math"):
        samples(run, step="code_data")
    with pytest.raises(ValueError, match="kept or rejected"):
        samples(run, only="good")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="openafm run synthesis"):
        samples(tmp_path / "none")


def test_the_verb_prints_lineage_reason_and_no_control_characters(run):
    shown = CliRunner().invoke(app, ["data", "samples", str(run), "--only", "rejected", "--count", "2"])
    assert shown.exit_code == 0 and "\x1b" not in shown.output and "\x07" not in shown.output
    assert "[1] math addition: rejected: answer_check (6 | 7)" in shown.output and "(rule/addition/x)" in shown.output
    told = json.loads(CliRunner().invoke(app, ["data", "samples", str(run), "--json", "--count", "3"]).output)
    assert len(told) == 3 and set(told[0]) >= {"reason", "lineage", "messages", "answer"}
