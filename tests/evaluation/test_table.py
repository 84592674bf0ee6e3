import json

from rich.console import Console

from openafm.evaluation.table import columns, render, stage_table


def _write(folder, model, rows):
    folder.mkdir()
    listed = [{"metric": m, "value": v, "low": low, "high": high, "n": n} for m, v, low, high, n in rows]
    found = {"model": model, "parameters": 1_050_000, "rows": listed, "samples": []}
    (folder / "evaluation.json").write_text(json.dumps(found))
    return folder


def test_the_table_keeps_the_order_and_leaves_out_what_nobody_measured(tmp_path):
    evaluations = {
        "evaluate_core": _write(tmp_path / "a", "core", [("bits_per_byte/web", 2.512, 2.4, 2.62, 16)]),
        "evaluate_later": tmp_path / "not-run",
        "evaluate_sft": _write(
            tmp_path / "b", "sft [x]", [("bits_per_byte/web", 2.6, None, None, 1), ("task/all", 0.5, 0.31, 0.69, 24)]
        ),
    }
    rows = stage_table(evaluations)
    assert [row.model for row in rows] == ["core", "sft [x]"]
    assert [metric for metric, _ in columns(rows)] == ["bits_per_byte/web", "task/all"]
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(render(rows))
    text = captured.get()
    assert "2.51 ±0.11" in text and "2.60 n = 1" in text and "50.0 31–69" in text and "1.05M" in text
    assert "sft [x]" in text
    assert text.splitlines()[-2].split() == ["n", "1", "to", "16", "24"]
