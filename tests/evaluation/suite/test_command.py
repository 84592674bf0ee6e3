import json

import pytest
from typer.testing import CliRunner

from openafm.cli import app
from openafm.evaluation.suite import material

RUNNER = CliRunner()


@pytest.fixture
def evaluate(world, catalogue, tmp_path, monkeypatch):
    """`openafm evaluate` on the suite's small catalogue."""
    monkeypatch.setattr(material, "CATALOGUE", str(catalogue))
    return lambda *arguments: RUNNER.invoke(app, ["evaluate", *map(str, arguments), "--cache", str(tmp_path / "cache")])


def test_two_ways_of_asking_a_model_stand_side_by_side(evaluate, world, tmp_path):
    import shutil

    shutil.copytree(world / "model", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "rope_base": 700.0}))
    asked = [world / "model", "--against", tmp_path / "copy", "--only", "text", "--only", "summaries"]
    shown = evaluate(*asked, "--out", tmp_path / "out", "--markdown", tmp_path / "table.md")
    assert shown.exit_code == 0, shown.output
    assert "paired bootstrap" in shown.output and "not measured: summaries: data/nowhere cannot be had" in shown.output
    table = (tmp_path / "table.md").read_text()
    assert "| text: code |" in table and "less model" in table
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [model["name"] for model in found["models"]] == ["model", "copy"]
    assert len((tmp_path / "out" / "0-text.jsonl").read_text().splitlines()) == sum(
        row["values"][0]["n"] for row in found["rows"] if row["task"] == "text"
    )
    again = evaluate(*asked, "--json")
    told = json.loads(again.stdout)
    assert told["rows"] == found["rows"] and not any(model["seconds"] for model in told["models"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no model: give a model folder"),
        (["MODEL", "--only", "mathematics"], "no task 'mathematics' in the suite; there are text,"),
        (["MODEL:recovery"], "no adapter 'recovery'; there are none"),
        (["MODEL", "--suite", "huge"], "huge"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_runs(evaluate, world, arguments, message):
    shown = evaluate(*[argument.replace("MODEL", str(world / "model")) for argument in arguments])
    assert shown.exit_code == 2 and message in " ".join(shown.output.split())
