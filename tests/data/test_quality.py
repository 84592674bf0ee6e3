import itertools
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import documents, grading
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


def test_rules_and_endpoints_judge_too(tmp_path, endpoint):
    rows = corpus(30)
    documents.write(rows, tmp_path / "in")
    found = {}
    for name, options in (
        ("rules", {"grader": "rules"}),
        ("endpoint", {"grader": "endpoint", "endpoint": endpoint, "endpoint_model": "strong", "asked_again": 6}),
    ):
        (tmp_path / name).mkdir()
        context = Context(out=tmp_path / name, scratch=tmp_path / f"{name}-scratch")
        context.scratch.mkdir()
        metrics = judge(JudgeConfig(documents=12, **options), context, documents=tmp_path / "in", sources=tmp_path)
        found[name] = [json.loads(line) for line in (tmp_path / name / "judgements.jsonl").read_text().splitlines()]
        assert metrics["judged"] == len(found[name]) == 12 and metrics["against_hand_labels"] == {"n": 0}
    texts = {row["id"]: row["text"] for row in rows}
    assert all(line["score"] == round(grading.grade(texts[line["id"]]), 4) for line in found["rules"])
    good = {row["id"]: row["url"].startswith("http://good") for row in rows}
    assert all((line["score"] > 0) == good[line["id"]] for line in found["endpoint"])
    assert sum(line["again"] is not None for line in found["endpoint"]) == 6
    with pytest.raises(ValueError, match="endpoint_model"):
        JudgeConfig(grader="endpoint", endpoint=endpoint)


@pytest.fixture
def endpoint():
    """An OpenAI-compatible endpoint that echoes: a page is good to it when it has a word of `GOOD`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
            yes, good = prompt.endswith(" Yes"), any(word in prompt for word in GOOD)
            at = prompt.rindex(" ")
            told = {"text_offset": [0, at], "token_logprobs": [None, -0.1 if yes == good else -2.0]}
            answer = json.dumps({"choices": [{"logprobs": told, "text": prompt}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_labels_by_hand_measure_a_judge_and_hold_only_for_the_same_text():
    labels = grading.read_labels()
    assert len(labels) == 50 and 15 <= sum(good for _, good in labels.values()) <= 35
    rows, hashes = [], {}
    for number, (url, (hashed, good)) in enumerate(sorted(labels.items())):
        rows.append({"id": str(number), "url": url, "text": url, "good": good})
        hashes[url] = hashed
    right = {row["id"]: float(row["good"]) for row in rows}
    assert grading.against_labels(rows, right, area_under_curve, 0) == {"n": 0}  # the text is another one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading, "evidence_hash", lambda text: hashes[text])
        found = grading.against_labels(rows, right, area_under_curve, 0)
        assert found["auc"] == 1.0 and found["n"] == 50 and not found["at_chance"]
        blind = grading.against_labels(rows, {row["id"]: int(row["id"]) * 7 % 50 for row in rows}, area_under_curve, 0)
        assert 0.2 < blind["auc"] < 0.8


def test_the_rules_grade_prose_above_lists_listings_and_fragments():
    prose = "The river rises in the hills to the north and is joined by two streams. It was named after a mill. " * 8
    listing = "```\n" + "x = compute(y)\n" * 60 + "```\n"
    items = "".join(f"- entry {n}\n" for n in range(60))
    assert grading.grade(prose) > grading.grade("A short fragment of text") > grading.grade(listing)
    assert grading.grade(prose) > grading.grade(items) and grading.grade("") == 0.0


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


def test_reference_texts_can_stand_in_for_a_judge(tmp_path):
    (tmp_path / "out").mkdir()
    draw = random.Random(2)
    books = [
        documents.document(f"http://book/{n}", "licensed", " ".join(draw.choices(GOOD, k=60)) + f" {n}")
        for n in range(40)
    ]
    documents.write([*corpus(), *books], tmp_path / "in")
    (tmp_path / "in" / "judgements.jsonl").write_text("")
    context = Context(out=tmp_path / "out", scratch=tmp_path)
    config = QualityConfig(positives="references", drop_share=0.2)
    metrics = quality(config, context, documents=tmp_path / "in", judgements=tmp_path / "in")
    dropped = [row["url"] for row in documents.read(tmp_path / "out").to_pylist() if row["verdict"] == "drop"]
    assert metrics["held_out"]["n"] == 80 and len(dropped) == 16
    assert all(url.startswith("http://poor") for url in dropped)


def test_a_judge_at_chance_drops_nothing(tmp_path):
    draw = random.Random(1)
    metrics, rows = run_quality(tmp_path, lambda row: draw.random())
    assert metrics["held_out"]["at_chance"] and "better than chance" in metrics["why_not"]
    assert all(row["verdict"] == "keep" for row in rows)
    metrics, _ = run_quality(tmp_path, lambda row: draw.random(), "few", judged=6)
    assert "too few" in metrics["why_not"]
