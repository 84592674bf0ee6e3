"""One tiny world: a tokenizer, held-out shards of two flows, an untrained model, four problems."""

import json
import random

import numpy as np
import pytest

from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.model.muparam import initialise
from openafm.tokenizer import load
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

WORDS = (
    "the",
    "a",
    "cat",
    "door",
    "red",
    "blue",
    "sees",
    "opens",
    "1",
    "2",
    "3",
    "value",
    "of",
    "list",
    "–",
    "naïve",
    "π",
)


def _texts(seed, count):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=120)) for _ in range(count)]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    (root / "tokenizer").mkdir()
    write_tokenizer(root / "tokenizer", train_sentencepiece(_texts(0, 30), 320))
    tokenizer = load(root / "tokenizer")
    index = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "splits": {"train": {}, "heldout": {}}}
    (root / "shards" / "heldout").mkdir(parents=True)
    for seed, flow in enumerate(("code", "web"), 1):
        texts = _texts(seed, 8)
        tokens = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.eos_id]]
        np.array(tokens, dtype=np.uint16).tofile(root / "shards" / "heldout" / f"{flow}.bin")
        size = sum(len(text.encode()) for text in texts)
        index["splits"]["heldout"][flow] = {"tokens": len(tokens), "documents": 8, "bytes": size}
    (root / "shards" / "index.json").write_text(json.dumps(index))
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=32,
        rope_base=500.0, max_length=512,
    )  # fmt: skip
    save_model(initialise(Transformer(shape), 0), root / "model", root / "tokenizer")
    (root / "examples").mkdir()
    problems = [
        {
            "id": f"p{i}", "task": ("add", "copy")[i % 2], "messages": [{"role": "user", "content": f"{i} + 1 ="}],
            "answer": str(i + 1), "check": {"kind": "number", "answer": str(i + 1)},
        }
        for i in range(4)
    ]  # fmt: skip
    (root / "examples" / "heldout.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    return root
