"""A tiny run on disk: a chat model and a package with two adapters, for what serves, scans and fuzzes."""

import json
from pathlib import Path

from tests.engine.random_models import random_adapter

from openafm.compression.embedding import quantize_embedding
from openafm.compression.package import write_package
from openafm.compression.palettize import palettize
from openafm.engine import Package
from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.model.muparam import initialise
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

SHAPE = ModelConfig(vocab_size=300, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48)


def toy_run(root: Path) -> Path:
    """A run with a finished teacher, an unfinished SFT, and an unfinished package with two adapters, in `root`."""
    (root / "tokenizer").mkdir(parents=True)
    text = "some words to learn from, a few of them twice"
    write_tokenizer(root / "tokenizer", train_sentencepiece([text] * 4, 300))
    model = initialise(Transformer(SHAPE), 0).eval().requires_grad_(False)
    for step in ("teacher", "sft"):
        save_model(model, root / step, root / "tokenizer")
    stages = {"teacher": "pretrain", "recovery": "recovery", "sft": "sft", "sft_again": "sft"}
    steps = [{"name": name, "stage": stage} for name, stage in stages.items()]
    (root / "run.json").write_text(json.dumps({"steps": steps}))
    (root / "teacher" / "manifest.json").write_text('{"stage": "pretrain"}')
    projections = {n: palettize(linear.weight.numpy(), 2) for n, linear in model.linears().items()}
    rest = {name: tensor.numpy() for name, tensor in model.state_dict().items() if "norm" in name}
    embedding = quantize_embedding(model.model.embed_tokens.weight.numpy())
    write_package(root / "recovery" / "model.afm", SHAPE, projections, embedding, rest, root / "tokenizer")
    store = Package(root / "recovery" / "model.afm").adapters
    for seed, name in enumerate(("recovery", "summary")):
        store.save(name, random_adapter(model, seed, 2, size=1.0))
    return root
