"""A tiny model with a tokenizer, token shards and chat examples, all real and made in a second."""

import json
import shutil

import numpy as np
import pytest

from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.model.muparam import initialise, parameter_groups
from openafm.stage import Context
from openafm.tokenizer import load
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer
from openafm.training.batches import TokenBatches
from openafm.training.loop import train
from openafm.training.losses import next_token
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import cosine

WORDS = "the small red old fast cat dog bird tree house sees likes finds makes runs near under".split()


def sentences(rng, count):
    return [" ".join(rng.choice(WORDS, size=8)) + ". " + " ".join(rng.choice(WORDS, size=6)) for _ in range(count)]


def write_shards(folder, tokenizer, texts):
    splits = {"train": {}, "heldout": {}}
    for split in splits:
        (folder / split).mkdir(parents=True)
        for source in ("code", "web"):
            ids = [i for text in texts[split] for i in [*tokenizer.encode(text), tokenizer.eos_id]]
            np.array(ids, "<u2").tofile(folder / split / f"{source}.bin")
            size = sum(len(text.encode()) for text in texts[split])
            splits[split][source] = {"tokens": len(ids), "documents": len(texts[split]), "bytes": size}
    index = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "splits": splits}
    (folder / "index.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with `tokenizer`, `shards`, `model` (trained a little) and `examples`."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    texts = {"train": sentences(rng, 400), "heldout": sentences(rng, 80)}
    (root / "tokenizer").mkdir()
    write_tokenizer(root / "tokenizer", train_sentencepiece(texts["train"], 320))
    tokenizer = load(root / "tokenizer")
    write_shards(root / "shards", tokenizer, texts)
    shape = ModelConfig(vocab_size=320, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64)
    model = initialise(Transformer(shape), 0)
    batches = TokenBatches(root / "shards", {"web": 1.0}, sequence_length=32, batch_tokens=512, tokens=15_000, seed=0)
    optimizer = RMSPropMomentum(parameter_groups(model, 32), 0.02)
    context = Context(root / "out", root / "scratch")
    train(
        model, batches, lambda net, b: next_token(net(b["inputs"]), b["targets"]), optimizer,
        cosine(15_000, 1500, 0.05), context,
    )  # fmt: skip
    save_model(model, root / "model", root / "tokenizer")
    write_examples(root / "examples", rng)
    return root


def write_examples(folder, rng):
    folder.mkdir()
    with (folder / "examples.jsonl").open("w") as file:
        for number, text in enumerate(sentences(rng, 60)):
            turn = {"role": "user", "content": f"Sum up: {text}"}
            row = {"id": f"e{number}", "source": f"p{number % 12}", "messages": [turn], "answer": text[:12]}
            file.write(json.dumps(row) + "\n")
    shutil.copyfile(folder / "examples.jsonl", folder / "train_even.jsonl")
