"""A policy of a few thousand weights, its tokenizer, and checked examples: made once for the folder."""

import random

import pytest
import torch

from openafm import jsonl
from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import load_model, save_model
from openafm.model.muparam import initialise
from openafm.posttraining.reward import RewardModel
from openafm.stage import Context
from openafm.synthesis import tasks
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

CHOSEN = ("addition", "comparison", "parity", "copying")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    drawn = {task: tasks.draw(task, 80, 0) for task in CHOSEN}
    held = [example for task in CHOSEN for example in drawn[task][:8]]
    known = {example["lineage"] for example in held}
    rows = [e for task in CHOSEN for e in [e for e in drawn[task][8:] if e["lineage"] not in known][:40]]
    random.Random(0).shuffle(rows)
    jsonl.write(folder / "train.jsonl", rows)
    jsonl.write(folder / "train_a.jsonl", rows)
    jsonl.write(folder / "train_b.jsonl", [row for row in rows if row["task"] == "parity"])
    jsonl.write(folder / "validation.jsonl", held[::2])
    jsonl.write(folder / "heldout.jsonl", held[1::2])
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory, examples):
    folder = tmp_path_factory.mktemp("model")
    texts = [f"{e['messages'][0]['content']} {e['answer']}" for t in tasks.TASKS for e in tasks.draw(t, 20, 1)]
    write_tokenizer(folder, train_sentencepiece(texts, 420))
    config = ModelConfig(
        vocab_size=420, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64, rope_base=500.0,
        max_length=128,
    )  # fmt: skip
    save_model(initialise(Transformer(config), 0), folder)
    return folder


@pytest.fixture(scope="session")
def reward(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    RewardModel(load_model(model), seed=2).save(folder, tokenizer=model)
    return folder


@pytest.fixture
def context(tmp_path):
    """Make contexts by name; the same name again is the same step, started over with its scratch kept."""

    def make(name="step", seed=0):
        out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        if out.exists():
            out.rename(tmp_path / f"{name}-killed-{len(list(tmp_path.iterdir()))}")
        out.mkdir()
        scratch.mkdir(exist_ok=True)
        return Context(out=out, scratch=scratch, seed=seed)

    return make


@pytest.fixture
def same_files():
    """Compare two artifacts byte by byte."""

    def compare(one, other):
        files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
        assert files
        for file in files:
            assert (one / file).read_bytes() == (other / file).read_bytes(), file

    return compare


class KilledError(Exception):
    """Raised by a test to stop a stage midway."""


@pytest.fixture
def kill():
    """Make a context die when its progress bar has moved for the `count`-th time under a label."""

    def arm(context, label, count):
        seen = 0

        def report(current, done, total):
            nonlocal seen
            seen += current.startswith(label)
            if seen == count:
                raise KilledError

        context.report = report
        return KilledError

    return arm
