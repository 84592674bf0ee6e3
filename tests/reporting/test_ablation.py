"""An ablation's statistics against scipy's, its verdicts, and what is written."""

import json
import xml.etree.ElementTree as ET

import pytest
from scipy import stats

from openafm.reporting.ablation import (
    AblationTableConfig,
    Claim,
    ablation_table,
    differences,
    mean,
    verdict,
)  # fmt: skip
from openafm.stage import Context

CONFIG = AblationTableConfig(title="Arms", reported="a is better", metrics=["top1/all", "end_loss"], bigger="More.")


def row(arm, seed, top1, x=None, end=5.0, diverged=False, **more):
    metrics = {} if diverged or x == 0.1 else {"top1/all": top1, "bits_per_byte/all": 2 - top1} | more
    found = {"arm": arm, "step": f"{arm}-{seed}", "seed": seed, "metrics": metrics, "end_loss": end}
    found |= {"diverged": diverged, "student_flops": 2e12, "teacher_flops": 0.0, "parameters": 1}
    return found | ({"x": x} if x is not None else {})


A, B = [0.30, 0.32, 0.31], [0.28, 0.31, 0.28]
ROWS = [row("a", s, v) for s, v in enumerate(A)] + [row("b", s, v) for s, v in enumerate(B)]


def test_means_and_paired_differences_are_students():
    told = mean(A)
    low, high = stats.t.interval(0.95, 2, loc=stats.tmean(A), scale=stats.sem(A))
    assert (told.value - told.half, told.value + told.half) == pytest.approx((low, high))
    found = differences(ROWS, "a", "b", "top1/all")
    assert found == pytest.approx([x - y for x, y in zip(A, B, strict=True)])
    assert mean([1.0]).half is None
    assert differences([*ROWS, row("a", 9, 0.9)], "a", "b", "top1/all") == found, "a seed of one arm alone is left out"


@pytest.mark.parametrize(
    ("first", "second", "relation", "within", "word"),
    [
        ([3.0, 3.1, 3.2], [1.0, 1.1, 1.3], "above", 0, "shown"),
        ([3.0, 3.1, 3.2], [1.0, 1.1, 1.3], "below", 0, "refuted"),
        ([3.0, 3.1, 3.2], [2.0, 3.2, 3.0], "above", 0, "open"),
        ([3.0, 3.1, 3.2], [3.01, 3.11, 3.2], "level", 0.1, "shown"),
        ([3.0, 3.1, 3.2], [2.0, 3.2, 3.0], "level", 0.1, "open"),
        ([3.0, 3.1, 3.2], [1.0, 1.1, 1.3], "level", 0.1, "refuted"),
        ([3.0], [1.0], "above", 0, "open"),
    ],
)
def test_a_claim_is_shown_only_where_the_interval_says_so(first, second, relation, within, word):
    rows = [row("a", s, v) for s, v in enumerate(first)] + [row("b", s, v) for s, v in enumerate(second)]
    claim = Claim(says="", metric="top1/all", first="a", second="b", relation=relation, within=within)
    found = verdict(claim, rows)
    assert found["verdict"] == word
    if len(first) > 1 and relation == "above":  # the paired t test of scipy agrees
        assert (stats.ttest_rel(first, second).pvalue < 0.05) == (word != "open")


def test_a_claim_about_an_arm_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="no seed has both arms 'a' and 'c'"):
        verdict(Claim(says="x", metric="top1/all", first="a", second="c"), ROWS)


def test_table_results_and_figure_are_written(tmp_path):
    measured, out = tmp_path / "measured", tmp_path / "out"
    measured.mkdir(), out.mkdir()
    rows = [
        row(arm, s, v, x, 5 - x) for arm, vs in (("a", A), ("b <", B)) for s, v in enumerate(vs) for x in (0.1, 0.2)
    ]
    rows.append(row("b <", 0, 0, 0.4, 9.0, diverged=True))
    (measured / "ablation.json").write_text(json.dumps({"x": "lr", "arms": ["a", "b <"], "rows": rows}))
    claim = Claim(says="a is ahead", metric="top1/all", first="a", second="b <")
    config = CONFIG.model_copy(update={"claims": [claim], "plot": "end_loss"})
    checked = tmp_path / "coordinates"
    checked.mkdir()
    moved = {"mlp 0": {"mean": [1.0, 1.1], "slope": 0.1, "slopes": [0.0, 0.2]}}
    (checked / "coordinates.json").write_text(
        json.dumps({"widths": [64, 128], "movement": {"muParam (simple)": moved, "standard": moved}})
    )
    metrics = ablation_table(config, Context(out, tmp_path), measured=measured, coordinates=checked)
    assert metrics["open"] == 1 and metrics["shown"] == 0
    text = (out / "table.md").read_text()
    assert "| a | 0.2 | 31.0 ± 2.5% | 4.800 ± 0.000 | 2.0 TFLOP |" in text
    assert "| b < | 4.900 | 4.800 |  (1 of 1 diverged) | 0.2, 0.2, 0.2 |" in text
    assert "| a is ahead | a - b <, top-1 | +2.00 points [-0.48, +4.48] | open |" in text
    assert "| mlp 0 | +0.10 (+0.00 to +0.20) | +0.10 (+0.00 to +0.20) |" in text
    assert json.loads((out / "results.json").read_text())["verdicts"][0]["n"] == 3
    for name in ("figure.svg", "coordinates.svg"):
        drawn = (out / name).read_text()
        assert ET.fromstring(drawn.encode()).tag.endswith("svg") and "--c0:#" in drawn
