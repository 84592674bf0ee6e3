import pyarrow
import pyarrow.parquet
import pytest

from openafm.stage import Context
from openafm.tokenizer import load
from openafm.tokenizer.train import TokenizerConfig, train_tokenizer

ROWS = [
    {"id": f"{flow}{number:02}", "flow": flow, "verdict": verdict, "text": text * 9}
    for flow, text in (("code", "def add(a, b):\n    return a + b\n"), ("web", "The quick brown fox. "))
    for number in range(12)
    for verdict in (["keep"] if number else ["drop"])
]


def run(tmp_path, name, rows, config):
    documents, out = tmp_path / f"{name}-documents", tmp_path / name
    (documents / "documents").mkdir(parents=True)
    out.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows).sort_by("id"), documents / "documents" / "0.parquet")
    metrics = train_tokenizer(config, Context(out=out, scratch=out), documents=documents)
    return out, metrics


def test_the_sample_is_seeded_bounded_and_of_kept_documents(tmp_path):
    config = TokenizerConfig(vocab_size=310, characters_per_flow=1000)
    first, metrics = run(tmp_path, "first", ROWS, config)
    again, _ = run(tmp_path, "again", ROWS[::-1], config)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        assert (first / file).read_bytes() == (again / file).read_bytes()
    assert metrics["vocab_size"] == load(first).vocab_size == 310
    assert {flow: part["characters"] for flow, part in metrics["flows"].items()} == {"code": 1000, "web": 1000}
    assert metrics["flows"]["web"]["bytes_per_token"] > 1.5


def test_too_little_text_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match="lower vocab_size or add text"):
        run(tmp_path, "small", ROWS[:2], TokenizerConfig(vocab_size=5000))
