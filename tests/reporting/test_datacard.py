import json

import pytest

from openafm.data import documents
from openafm.reporting.datacard import data_card


def write(run, step, stage, metrics=None, config=None, **files):
    (run / step).mkdir(parents=True, exist_ok=True)
    manifest = {"step": step, "stage": stage, "config": config or {}, "metrics": metrics or {}, "inputs": {}}
    (run / step / "manifest.json").write_text(json.dumps(manifest))
    for name, value in files.items():
        (run / step / f"{name}.json").write_text(json.dumps(value))


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "mine"
    source = {"package": "sqlite-doc", "version": "3", "flow": "web", "licence": "blessing", "terms": "none | <b>",
              "stages": "all"}  # fmt: skip
    write(run, "fetch", "fetch", licences={"sources": [source], "missing": {"lost": "404"}, "tiers_missing": {}})
    rows = [documents.document(f"http://a/{n}", "web", f"text {n}", language="en", licence="MIT") for n in range(6)]
    rows += [documents.document("http://b/0", "code", "x = 1", licence="MIT", code_language="Python")]
    extract = [*rows, documents.document("http://a/x", "web", "a card", planted="card")]
    write(run, "extract", "extract")
    documents.write(extract, run / "extract")
    found = {"card": {"planted": 1, "caught": 1, "recall": 1.0}}
    hits = {"redacted.email": {"hits": 4, "true": 3, "false": 1}}
    write(run, "clean", "clean", {"planted_recall": found, "precision_on_real": hits})
    documents.write([*rows, documents.drop(extract[-1], "clean", "pii.card")], run / "clean")
    benchmark = {"shop": {"items": 3, "ngrams": 30, "too_short": 1}}
    write(
        run, "tests_out", "decontaminate", {"rule": "n = 13", "benchmarks": benchmark, "dropped": {"benchmark.shop": 1}}
    )
    rows[0] = documents.drop(rows[0], "decontaminate", "benchmark.shop")
    documents.write([*rows, documents.drop(extract[-1], "clean", "pii.card")], run / "tests_out")
    splits = {"train": {"web": {"tokens": 1234}}, "heldout": {"web": {"tokens": 56}}}
    write(run, "shards", "shards", {"splits": splits})
    write(run, "core", "pretrain", {"epochs": {"web": 0.5}}, {"mixture": {"web": 1.0}, "tokens": 900, "max_epochs": 4})
    write(run, "screen", "screen", {"parts": {"math": {"kept": 9, "pii.card": 1}}})
    steps = ("fetch", "extract", "clean", "tests_out", "shards", "core", "screen")  # not in the order of the alphabet
    (run / "run.json").write_text(json.dumps({"steps": [{"name": name} for name in steps]}))
    return run


def test_the_card_says_what_is_in_the_shards_and_how_it_got_there(run):
    card = data_card(run)
    for line in (
        "| sqlite-doc | 3 | web | blessing | none \\| &lt;b&gt; | all |", "Not to be had on that machine: lost.",
        "| web | 7 | 5 | 71.4% | 0.00 | 1,234 | 56 |", "| clean | pii.card | 0 | 1 |",
        "| decontaminate | benchmark.shop | 1 | 0 |", "| en | 5 |", "| Python | 1 |", "| web | MIT | 5 |",
        "| clean: card | 1 | 100.0% |  |  |", "| clean: redacted.email |  |  | 4 | 75.0% |",
        "| shop | 3 | 30 | 1 | 1 |",
        "| core | web 1 | 900 | web 0.5 | 4 |", "| screen | math | 9 | pii.card 1 |",
    ):  # fmt: skip
        assert line in card.splitlines(), line
    titles = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
    assert titles == ["Sources, licences and terms", "Counts", "Filters", "Languages and licences of what is kept",
                      "Personal data", "Quality by a model", "Decontamination", "Mixtures",
                      "Synthetic and human examples", "Known limits"]  # fmt: skip
    assert "<b>" not in card


def test_a_run_without_documents_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="--until shards"):
        data_card(tmp_path)
