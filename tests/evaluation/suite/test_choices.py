import pytest

pytest.importorskip("lm_eval", reason="the extra evaluation is not installed")
from openafm.evaluation.suite.choices import named_task, own_task
from openafm.evaluation.suite.items import by_metric


def test_own_questions_run(subject, bench, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "the cat?", "choices": ["red", "blue"], "answer": 1}\n' * 3)
    (metric,) = by_metric(own_task(path).measure(subject, bench())).items()
    assert metric[0] == "acc_norm" and len(metric[1]) == 3


def test_an_unknown_task_is_an_error(subject, bench, tmp_path):
    path = tmp_path / "nothing.yaml"
    path.write_text("task: other\n")
    with pytest.raises((ValueError, FileNotFoundError)):
        list(named_task(str(path)).measure(subject, bench()))
