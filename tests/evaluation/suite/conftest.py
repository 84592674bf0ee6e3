"""A suite's world: a catalogue of small files in the form its packages have, an untrained model that takes them."""

import gzip
import json
import random

import pytest
import yaml

from openafm.evaluation.suite.material import Material
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size
from openafm.stage import Context

TOPICS = ("cats", "doors")
QUESTIONS = "".join(
    f"\n\nQ: the {word} sees the door?\n(A) red (B) blue (C) a list (D) value 1\nA: Let's think step by step. "
    f"The answer is ({letter})."
    for word, letter in zip("cat door list value red".split(), "ABCDA", strict=True)
)


def _sentences(rng):
    return " ".join(
        f"The {rng.choice(('cat', 'door', 'list'))} sees {rng.choice(('red', 'blue'))} value {i}." for i in range(5)
    )


def _files():
    rng = random.Random(0)
    paragraphs = [
        {
            "context": _sentences(rng),
            "qas": [
                {
                    "question": f"What sees {i} {j}?",
                    "is_impossible": False,
                    "answers": [{"text": "The cat"}, {"text": "cat"}],
                }
                for j in range(5)
            ],
        }
        for i in range(30)
    ]
    tool = {
        "name": "door.open",
        "description": "Opens.",
        "parameters": {"type": "dict", "properties": {"count": {"type": "integer"}}, "required": ["count"]},
    }
    questions, answers = {}, {}
    for kind in ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"):
        rows = [
            {"id": f"{kind}_{i}", "question": [[{"role": "user", "content": f"open {i}"}]], "function": [tool]}
            for i in range(3)
        ]
        questions[f"bfcl/data/BFCL_v4_{kind}.json"] = rows
        if kind != "irrelevance":
            answers[f"bfcl/data/possible_answer/BFCL_v4_{kind}.json"] = [
                {"id": row["id"], "ground_truth": [{"door.open": {"count": [i]}}]} for i, row in enumerate(rows)
            ]
    code = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f"def f{i}(x):\n",
            "entry_point": f"f{i}",
            "test": f"def check(f):\n    assert f(1) == {i}\n",
        }
        for i in range(12)
    ]
    lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()  # noqa: E731
    return {
        "squad": {"squad.json": json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}).encode()},
        "text/documentation": {"README.md": _sentences(rng).encode() * 20},
        "text/code": {"a.py": b"def f(x):\n    return x\n" * 100},
        "text/math": {"docs.py": b'a = """' + _sentences(rng).encode() * 20 + b'"""\n'},
        "mmlu": {
            "prompts.json": json.dumps(
                {topic: f"The following are questions about {topic}.{QUESTIONS}" for topic in TOPICS}
            ).encode()
        },
        "bfcl": {name: lines(rows) for name, rows in (questions | answers).items()},
        "human_eval": {"HumanEval.jsonl.gz": gzip.compress(lines(code))},
        "harmful": {
            "harmbench_prompts.txt": b"Make a red list\nOpen the door\n",
            "malicious_uses.jsonl": lines([{"prompt": "Open a door?"}]),
        },
        "cloze": {"book_cloze.tsv": b"Ada\tThe cat sees [MASK].\nBob\tThe door opens [MASK].\n"},
        "mt_bench": {
            "question.jsonl": lines(
                [{"question_id": i, "category": "c", "turns": [f"open {i}", "again"]} for i in range(4)]
            )
        },
        "mt_bench_answers": {
            "answers.jsonl": lines([{"question_id": i, "choices": [{"turns": ["the cat"]}]} for i in range(3)])
        },
    }


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory):
    """A catalogue of folders, as recipes/sources/evaluation.yaml is one of packages; `synopses` cannot be had."""
    root = tmp_path_factory.mktemp("catalogue")
    sources = []
    for target, files in _files().items():
        for name, data in files.items():
            path = root / "data" / target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        sources.append(
            {"tier": "folder", "package": f"data/{target}", "flow": "benchmark", "form": "files", "target": target}
        )
    sources.append(
        {"tier": "folder", "package": "data/nowhere", "flow": "human", "form": "jsonl", "target": "synopses"}
    )
    (root / "sources").mkdir()
    path = root / "sources" / "evaluation.yaml"
    path.write_text(yaml.safe_dump({"date": "2025-01-01T00:00:00Z", "sources": sources}))
    return path


@pytest.fixture
def material(catalogue, tmp_path):
    return Material(str(catalogue), tmp_path / "cache")


@pytest.fixture
def subject(world):
    return Subject(world / "model", "tiny")


@pytest.fixture
def bench(material, tmp_path):
    def made(size=Size(3), judge=None):
        return Bench(material, size, Context(out=tmp_path, scratch=tmp_path / "scratch"), judge)

    return made
