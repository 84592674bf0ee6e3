"""Sources with a writer of a few thousand random weights, human rows, and shards: real objects, tiny."""

import json

import numpy as np
import pytest

from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.model.muparam import initialise
from openafm.stage import Context
from openafm.tokenizer import load
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

PROSE = "The quick fox runs over the old bridge while people read long books about rivers and hills. "


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, train_sentencepiece([PROSE * 30, "The code of the red cup is 1234. Question Answer"], 320))
    return folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory, tokenizer_folder):
    folder = tmp_path_factory.mktemp("sources")
    config = ModelConfig(
        vocab_size=320, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16, rope_base=500.0,
        max_length=1024,
    )  # fmt: skip
    save_model(initialise(Transformer(config), 0), folder / "models" / "writer", tokenizer_folder)
    (folder / "human").mkdir()
    rows = [
        {"id": f"pkg/{i}", "source": "apt", "text": f"Tool {i} sorts files. It is fast.\nIt has {i} modes.",
         "summary": f"tool {i} that sorts files" if i % 5 else "unrelated wooden elephant"}
        for i in range(60)
    ]  # fmt: skip
    (folder / "human" / "synopses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory, tokenizer_folder):
    """Token shards in which every text says its flow and split."""
    folder, tokenizer = tmp_path_factory.mktemp("shards"), load(tokenizer_folder)
    index = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "splits": {"train": {}, "heldout": {}}}
    for split in index["splits"]:
        (folder / split).mkdir()
        for flow in ("web", "code"):
            texts = [tokenizer.encode(f"{flow} {split} {PROSE * 6}") for _ in range(12)]
            tokens = [token for text in texts for token in [*text, tokenizer.eos_id]]
            np.array(tokens, "<u2").tofile(folder / split / f"{flow}.bin")
            index["splits"][split][flow] = {"tokens": len(tokens)}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def context(tmp_path):
    """Make contexts; equal scratch names resume."""

    def make(name: str, scratch: str = "scratch", seed: int = 0) -> Context:
        for folder in (tmp_path / name, tmp_path / scratch):
            folder.mkdir(exist_ok=True)
        return Context(out=tmp_path / name, scratch=tmp_path / scratch, seed=seed)

    return make
