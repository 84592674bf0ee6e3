"""Synthetic data passes the documents' filters: what is planted in each kind of example goes, the rest stays."""

import json
from pathlib import Path

import numpy as np
import pytest

from openafm.data.screen import ScreenConfig, screen
from openafm.stage import Context

QUESTION = "A shop sells apples in bags of seven. How many bags hold ninety one apples, and what is left?"
CARD = "4111 1111 1111 1111"  # passes the Luhn check
PARTS = ("math_data", "tool_data", "code_data", "human_data", "summaries")


def example(part: str, number: int, asked: str, answer: str, checked: bool) -> dict:
    check = {"kind": "text", "answer": answer} if checked else None
    turn = [{"role": "user", "content": asked}]
    return {"id": f"{part}-{number}", "task": part, "messages": turn, "answer": answer, "check": check,
            "origin": "synthetic", "lineage": f"writer/{part}/{number}"}  # fmt: skip


def clean_rows(part: str) -> list[dict]:
    checked = part in ("math_data", "tool_data")
    return [example(part, n, f"{part}: what is {n} plus {n + 40}?", str(2 * n + 40), checked) for n in range(6)]


def planted(part: str) -> list[dict]:
    again = clean_rows(part)[0] | {"id": f"{part}-again"}
    return [
        example(part, 90, f"Put it on my card {CARD} please.", "Done.", False),
        example(part, 91, "What was asked in the test?", QUESTION.upper().replace(" ", "  "), False),
        example(part, 92, "What do you think?", "What the fuck is this shit, you bitch and asshole?", False),
        example(part, 93, "Who is the contact? Write to jane.roe@mail.org", "jane.roe@mail.org", True),
        again,
    ]


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def long_part(folder: Path) -> list[dict]:
    """Three long texts, the card in the second; their tokens are their number."""
    texts = ["A quiet text about rivers and hills.", f"The number {CARD} was on the desk.", f"It said: {QUESTION}"]
    rows = [
        {"id": f"long-{n}", "text": text, "questions": [{"question": "Code?", "answer": str(n), "depth": 0.5}]}
        for n, text in enumerate(texts)
    ]
    for name, split in (("long_qa", "train"), ("heldout", "heldout")):
        write(folder / f"{name}.jsonl", rows)
        (folder / split).mkdir()
        np.repeat(np.arange(3), [4, 5, 6]).astype("<u2").tofile(folder / split / "long_qa.bin")
        np.save(folder / split / "long_qa.offsets.npy", np.array([0, 4, 9, 15]))
    counts = {"tokens": 15, "documents": 3, "bytes": 100}
    splits = {"train": {"long_qa": counts}, "heldout": {"long_qa": dict(counts)}}
    (folder / "index.json").write_text(json.dumps({"vocab_size": 9, "dtype": "uint16", "splits": splits}))
    return rows


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("screen")
    write(folder / "sources" / "benchmarks" / "shop.jsonl", [{"id": "1", "text": QUESTION}])
    (folder / "sources" / "words").mkdir()
    parts = {}
    for part in PARTS:
        parts[part] = folder / part
        write(folder / part / "examples.jsonl", clean_rows(part) + planted(part))
        write(folder / part / "rejected.jsonl", [example(part, 80, "x", "y", False) | {"reason": "copy"}])
    parts["long_qa"] = folder / "long_qa"
    (folder / "long_qa").mkdir()
    long_part(folder / "long_qa")
    (folder / "out").mkdir()
    metrics = screen(ScreenConfig(), Context(folder / "out", folder), parts=parts, sources=folder / "sources")
    return folder, metrics


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("part", PARTS)
def test_what_is_planted_in_each_kind_of_example_goes_and_the_rest_stays(done, part):
    folder, metrics = done
    assert lines(folder / "out" / part / "examples.jsonl") == clean_rows(part)
    rejected = lines(folder / "out" / part / "rejected.jsonl")
    assert [row["reason"] for row in rejected] == [
        "copy", "pii.card", "benchmark.shop", "safety.profanity", "pii.email", "duplicate.exact",
    ]  # fmt: skip
    text = (folder / "out" / part / "rejected.jsonl").read_text()
    assert CARD not in text and "jane.roe" not in text
    assert metrics["parts"][part]["kept"] == 6 and sum(metrics["parts"][part].values()) == 11


def test_long_texts_lose_the_document_and_its_tokens(done):
    folder, metrics = done
    for name, split in (("long_qa", "train"), ("heldout", "heldout")):
        assert [row["id"] for row in lines(folder / "out" / "long_qa" / f"{name}.jsonl")] == ["long-0"]
        tokens = np.fromfile(folder / "out" / "long_qa" / split / "long_qa.bin", "<u2")
        assert tokens.tolist() == [0] * 4
        assert np.load(folder / "out" / "long_qa" / split / "long_qa.offsets.npy").tolist() == [0, 4]
    index = json.loads((folder / "out" / "long_qa" / "index.json").read_text())
    assert (
        index["splits"]["train"]["long_qa"]["tokens"] == 4 and index["splits"]["heldout"]["long_qa"]["documents"] == 1
    )
    assert metrics["parts"]["long_qa"] == {"benchmark.shop": 2, "kept": 2, "pii.card": 2}


def test_what_nobody_checks_is_redacted(tmp_path):
    rows = [example("human_data", 0, "Where do I write to? It said jane.roe@mail.org.", "To jane.roe@mail.org.", False)]
    write(tmp_path / "part" / "examples.jsonl", rows)
    write(tmp_path / "sources" / "benchmarks" / "shop.jsonl", [{"id": "1", "text": QUESTION}])
    (tmp_path / "out").mkdir()
    context = Context(tmp_path / "out", tmp_path)
    screen(ScreenConfig(), context, parts={"part": tmp_path / "part"}, sources=tmp_path / "sources")
    (row,) = lines(tmp_path / "out" / "part" / "examples.jsonl")
    assert row["answer"] == "To <EMAIL>." and row["messages"][0]["content"] == "Where do I write to? It said <EMAIL>."


def test_a_recipe_without_benchmarks_is_screened_and_says_so(tmp_path):
    write(tmp_path / "part" / "examples.jsonl", planted("math_data"))
    (tmp_path / "out").mkdir()
    context = Context(tmp_path / "out", tmp_path)
    metrics = screen(ScreenConfig(), context, parts={"math": tmp_path / "part"}, sources=tmp_path / "sources")
    assert metrics["benchmarks"] == [] and "no benchmark" in metrics["headline"]
    assert "pii.card" in metrics["parts"]["math"] and not any("benchmark" in why for why in metrics["parts"]["math"])
