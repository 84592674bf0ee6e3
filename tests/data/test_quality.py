import itertools
import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import documents
from openafm.data.quality import (
    JudgeConfig,
    QualityConfig,
    agreement,
    area_under_curve,
    judge,
    quality,
    rank_correlation,
)
from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.stage import Context
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

GOOD = ["theorem", "states", "proof", "follows", "argument", "explains", "method", "because", "therefore", "works"]
POOR = ["click", "here", "buy", "cheap", "menu", "login", "share", "cookie", "subscribe", "sale"]


def corpus(pages: int = 80) -> list[documents.Row]:
    draw, rows = random.Random(4), []
    for number in range(pages):
        source = (GOOD, POOR)[number % 2]
        text = " ".join(draw.choices(source, k=60)) + f" {number}"
        rows.append(documents.document(f"http://{('good', 'poor')[number % 2]}/{number}", "web", text))
    return [*rows, documents.document("http://code/1", "code", "x = 1")]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=12))
def test_area_under_curve_is_the_share_of_pairs_in_order(rows):
    positive, negative = ([score for score, label in rows if label == wanted] for wanted in (True, False))
    pairs = list(itertools.product(positive, negative))
    expected = sum((p > n) + (p == n) / 2 for p, n in pairs) / len(pairs) if pairs else 0.5
    assert area_under_curve(np.array(rows, float)) == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=12))
def test_rank_correlation_is_spearmans(rows):
    stats = pytest.importorskip("scipy.stats")
    table = np.array(rows, float)
    if min(table.std(axis=0)) > 0:
        assert rank_correlation(table) == pytest.approx(stats.spearmanr(table[:, 0], table[:, 1]).statistic)
    else:
        assert rank_correlation(table) == 0


def test_agreement_tells_a_sure_judge_from_a_blind_one():
    draw = np.random.default_rng(0)
    score = draw.normal(size=(100, 1)) + 5  # always yes, which says nothing
    sure = agreement(np.hstack([score, score + draw.normal(size=(100, 1)) / 10]))
    blind = agreement(np.hstack([score, draw.normal(size=(100, 1))]))
    assert sure["same_decision"] > 0.9 and sure["rank_correlation"] > 0.9 and not sure["at_chance"]
    assert blind["at_chance"] and sure["yes_share"] == [1.0, 1.0]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_tokenizer(folder, train_sentencepiece([" ".join(GOOD + POOR) * 9], 320))
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 16}
    torch.manual_seed(0)
    save_model(Transformer(ModelConfig(vocab_size=320, max_length=512, **shape)), folder / "models" / "writer", folder)
    return folder


def run_judge(tmp_path, sources, name, pages=30, stop_after=None):
    out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
    for path in (out, scratch):
        path.mkdir(exist_ok=True)

    def report(label, done, total):
        if stop_after is not None and done >= stop_after:
            raise KeyboardInterrupt

    documents.write(corpus(pages), tmp_path / f"{name}-in")
    context = Context(out=out, scratch=scratch, report=report)
    config = JudgeConfig(documents=20, tokens=32, asked_again=12, batch=8)
    return judge(config, context, documents=tmp_path / f"{name}-in", sources=sources)


def test_a_killed_judge_goes_on_to_the_same_bytes(tmp_path, sources):
    metrics = run_judge(tmp_path, sources, "whole")
    with pytest.raises(KeyboardInterrupt):
        run_judge(tmp_path, sources, "killed", stop_after=16)
    part = tmp_path / "killed-scratch" / "judgements.jsonl"
    assert len(part.read_text().splitlines()) == 16
    part.write_bytes(part.read_bytes()[:-20])  # killed while writing
    assert run_judge(tmp_path, sources, "killed") == metrics
    files = [tmp_path / name / "judgements.jsonl" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    judged = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert metrics["judged"] == len(judged) == 20 and metrics["n"] == 12
    assert sum(line["again"] is not None for line in judged) == 12


def test_nobody_is_judged_without_a_model(tmp_path):
    assert run_judge(tmp_path, tmp_path, "none") == {"judge": "none", "judged": 0}


def run_quality(tmp_path, score_of, name="quality", judged=60, **options):
    (tmp_path / name).mkdir()
    rows = corpus()
    documents.write(rows, tmp_path / f"{name}-in")
    lines = [{"id": row["id"], "score": score_of(row), "again": None} for row in rows[:judged]]
    (tmp_path / f"{name}-in" / "judgements.jsonl").write_text("\n".join(map(json.dumps, lines)))
    context = Context(out=tmp_path / name, scratch=tmp_path)
    folder = tmp_path / f"{name}-in"
    metrics = quality(QualityConfig(**options), context, documents=folder, judgements=folder)
    return metrics, documents.read(tmp_path / name).to_pylist()


def test_the_classifier_learns_the_judges_taste(tmp_path):
    metrics, rows = run_quality(tmp_path, lambda row: 1.0 + (row["url"].startswith("http://good")), drop_share=0.25)
    dropped = [row for row in rows if row["verdict"] == "drop"]
    assert len(dropped) == 20 and all(row["url"].startswith("http://poor") for row in dropped)
    assert metrics["held_out"]["auc"] > 0.95 and metrics["dropped"] == {"quality.low": 20}
    assert all((row["quality"] == -1) == (row["flow"] == "code") for row in rows)
    again, rows_again = run_quality(
        tmp_path, lambda row: 1.0 + (row["url"].startswith("http://good")), "again", drop_share=0.25
    )
    assert (again, rows_again) == (metrics, rows)


def test_a_judge_at_chance_drops_nothing(tmp_path):
    draw = random.Random(1)
    metrics, rows = run_quality(tmp_path, lambda row: draw.random())
    assert metrics["held_out"]["at_chance"] and "better than chance" in metrics["why_not"]
    assert all(row["verdict"] == "keep" for row in rows)
    metrics, _ = run_quality(tmp_path, lambda row: draw.random(), "few", judged=6)
    assert "too few" in metrics["why_not"]
