"""Benchmarks that users bring, in many shapes: each of their questions must be found in pages, and nothing else."""

import csv
import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openafm.data.benchmarks import bring
from openafm.data.decontaminate import add_item
from openafm.data.ngram_index import NgramIndex

WORDS = (
    "amber basalt copper delta ember fjord granite harbour island jungle kelp lagoon marsh nectar orchid pebble".split()
)
DRAW = random.Random(0)
QUESTIONS = [f"What is {' '.join(DRAW.choices(WORDS, k=DRAW.randint(2, 30)))} number {n}?" for n in range(40)]
ANSWERS = [DRAW.choice(WORDS) + " indeed" for _ in QUESTIONS]
ROWS = list(zip(QUESTIONS, ANSWERS, strict=True))


def table(delimiter, header):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([*([header] if header else []), *ROWS])
    return file.getvalue().encode()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


SHAPES = {
    "qa.jsonl": lines({"id": n, "question": q, "answer": a} for n, (q, a) in enumerate(ROWS)),
    "prompts.jsonl.gz": gzip.compress(lines({"prompt": q, "completion": a} for q, a in ROWS)),
    "unknown.jsonl": lines({"Frage": q, "lösung": {"deep": [3, None]}} for q, _ in ROWS),
    "strings.jsonl": lines(QUESTIONS),
    "chats.jsonl": lines(
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in ROWS
    ),
    "nested.json": json.dumps({"version": "1.0", "data": [{"qas": [{"question": q}], "context": a} for q, a in ROWS]}),
    "list.json": json.dumps([{"input": q, "target": a, "choices": [a, "none of these"]} for q, a in ROWS], indent=1),
    "plain.txt": "\r\n".join(f"{n}. {q}" for n, q in enumerate(QUESTIONS, 1)),
    "blocks.txt": "\n\n".join(q.replace(" ", "\n", 1) for q in QUESTIONS),
    "named.csv": table(",", ["question", "answer"]),
    "bare.csv": table(",", None),
    "named.tsv": table("\t", ["Q", "Answer"]),
}


def indexed(items):
    index = NgramIndex()
    for name, rows in items.items():
        for row in rows:
            add_item(index, name, row)
    return index


@pytest.mark.parametrize("name", [*SHAPES, "rows.parquet"])
def test_every_question_is_found_whatever_shape_it_came_in(tmp_path, name):
    if name == "rows.parquet":
        pq.write_table(pa.table({"question": QUESTIONS, "answer": ANSWERS}), tmp_path / name)
    else:
        content = SHAPES[name]
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / "README").write_text("not a benchmark")
    items = bring(str(tmp_path), tmp_path)
    assert list(items) == [name.split(".")[0]] and len(next(iter(items.values()))) >= len(QUESTIONS)
    assert bring(str(tmp_path / name), tmp_path) == items
    index = indexed(items)
    pages = [f"Forum > page 3\n\n{q.upper().replace(' ', '  ')}\nA reply: {' '.join(WORDS)}" for q in QUESTIONS]
    assert all(index.find(pages))
    assert not any(index.find([f"{' '.join(WORDS)} {answer}. So what is number 7?" for answer in ANSWERS]))


def test_long_answers_give_an_item_away_and_short_ones_do_not(tmp_path):
    solution = " ".join(WORDS)
    (tmp_path / "a.jsonl").write_bytes(
        lines([{"question": QUESTIONS[0], "solution": solution, "answer": "copper wire"}])
    )
    index = indexed(bring(str(tmp_path), tmp_path))
    assert index.find([f"x {solution} y", "copper wire", "all about\ncopper wire\nhere"])[1:] == [[], []]
    assert index.find([f"x {solution} y"])[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\nnot json\n', r"x\.jsonl:2 is not JSON"),
        ("x.txt", b"\xff\xfe\x00", "is not UTF-8"),
        ("x.parquet", b"no", "is not a Parquet file"),
        ("x.jsonl", b'{"id": "only an id"}\n', "holds no items"),
        ("x.bin", b"", "holds no items"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        bring(str(tmp_path), tmp_path)


def test_places_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        bring(str(tmp_path / "x"), tmp_path)
    with pytest.raises(ValueError, match="hf:owner/name"):
        bring("hf:../../etc", tmp_path)
