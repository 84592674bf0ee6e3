"""Small real objects that many tests share."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise
from openafm.stage import Context

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser():
    """Chromium, for tests that open a page."""
    from tests.browser import opened

    with opened() as found:
        yield found


@pytest.fixture
def tiny_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=64,
        d_model=16,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=24,
        rope_base=500.0,
        max_length=32,
    )


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> Transformer:
    return initialise(Transformer(tiny_config), 0).eval()


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A stage's context with its own folders."""
    (tmp_path / "out").mkdir()
    (tmp_path / "scratch").mkdir()
    return Context(out=tmp_path / "out", scratch=tmp_path / "scratch", seed=1)


@pytest.fixture
def make_context(tmp_path):
    """Contexts with folders of their own."""

    def make(name):
        for folder in ("out", "scratch"):
            (tmp_path / name / folder).mkdir(parents=True)
        return Context(tmp_path / name / "out", tmp_path / name / "scratch")

    return make


@pytest.fixture
def token_shards(tmp_path: Path) -> Path:
    """Token shards of two sources over a vocabulary of 64: one counts up, one counts in threes (both learnable)."""
    folder = tmp_path / "shards"
    index: dict = {"vocab_size": 64, "dtype": "uint16", "splits": {}}
    for split, tokens in (("train", 6000), ("heldout", 1500)):
        (folder / split).mkdir(parents=True)
        index["splits"][split] = {}
        for name, stride in (("web", 1), ("code", 3)):
            ids = (np.arange(tokens) * stride % 60 + 4).astype(np.uint16)
            ids.tofile(folder / split / f"{name}.bin")
            np.save(folder / split / f"{name}.offsets.npy", np.array([0, tokens], dtype=np.int64))
            index["splits"][split][name] = {"tokens": tokens, "documents": 1, "bytes": 4 * tokens}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The folder of a run of the recipe tiny, made once for all tests that read one; nobody changes it."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "openafm", "run", "tiny", "--runs-dir", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "tiny"
