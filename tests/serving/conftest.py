"""A tiny run with a chat model and a package of two adapters, and a real server of it on a free port."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import openai
import pytest
import uvicorn
from tests.engine.random_models import random_adapter

from openafm.compression.embedding import quantize_embedding
from openafm.compression.package import write_package
from openafm.compression.palettize import palettize
from openafm.engine import Package, TorchEngine
from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.model.muparam import initialise
from openafm.serving.opening import open_model
from openafm.serving.server import Limits, create_app
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

SHAPE = ModelConfig(vocab_size=300, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48)


class Gated(TorchEngine):
    """Makes a token for each `permits.release()`, and counts those it made; `fail_at` breaks it there."""

    def choices(self, *args, **options):
        for choice in super().choices(*args, **options):
            self.permits.acquire()
            if self.made == self.fail_at:
                raise RuntimeError("the engine broke")
            self.made += 1
            yield choice


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run with a finished teacher, an unfinished SFT, and an unfinished package with two adapters."""
    root = tmp_path_factory.mktemp("run") / "toy"
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


def client(url, key="unused"):
    """OpenAI's own, which does not ask twice."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def listening(opened, key=None, limits=Limits(), adapters=None, **options):
    """Serve a model on a free port of the loopback."""
    return serving(create_app(opened, key, limits, adapters, **options))


@contextmanager
def serving(app):
    """Serve an app on a free port of the loopback; yields the address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def opened(run):
    """The run's package with its adapters, loaded once a module."""
    return open_model(run / "recovery")


@pytest.fixture
def gated(run):
    """A server of a gated engine, with one place in its queue."""
    engine = Gated.load(run / "sft")
    engine.permits, engine.made, engine.fail_at = threading.Semaphore(0), 0, None
    with listening(replace(open_model(run / "sft"), engine=engine), limits=Limits(queue=1)) as url:
        yield engine, url
        engine.permits.release(10_000)
