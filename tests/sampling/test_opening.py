"""The same call everywhere: torch, an engine, and a server of the same model give the same answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.serving.conftest import listening

from openafm.engine import NativeEngine
from openafm.engine.native_engine import missing
from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.model.muparam import initialise
from openafm.sampling.endpoint import EndpointSampler
from openafm.sampling.opening import open_sampler
from openafm.sampling.sampler import EngineSampler, TorchSampler
from openafm.serving.opening import open_model

PROMPTS = ["the dog", [{"role": "user", "content": "the cat"}], "the cat sat on"]


@pytest.fixture
def folder(tokenizer, tokenizer_folder, tmp_path):
    """A model of a shape that the native engine runs too."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=32,
        rope_base=500.0, max_length=128,
    )  # fmt: skip
    save_model(initialise(Transformer(config), 0), tmp_path / "model", tokenizer_folder)
    return tmp_path / "model"


@pytest.fixture
def url(folder):
    """A server that speaks the protocol and answers with the torch sampler."""
    behind = TorchSampler.load(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            chat = self.path.endswith("chat/completions")
            prompt = body["messages"] if chat else body["prompt"]
            ((made,),) = behind.sample(
                [prompt], max_tokens=body["max_tokens"], temperature=body["temperature"], seed=body["seed"]
            )
            told = {"content": [{"logprob": p} for p in made.logprobs]} if chat else {"token_logprobs": made.logprobs}
            choice = {"message": {"content": made.text}} if chat else {"text": made.text}
            choice |= {"index": 0, "logprobs": told, "finish_reason": "stop" if made.finished else "length"}
            raw = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_the_same_call_gives_the_same_answers(folder, url, tmp_path):
    from openafm.engine import TorchEngine

    torch_made = open_sampler(str(folder))
    served = open_sampler(url, model="tiny", cache=tmp_path / "cache")
    engine = EngineSampler(TorchEngine.load(folder))
    asked = [torch_made, engine, served]
    if missing() is None:
        asked.append(open_sampler(str(folder), engine="native"))
        assert isinstance(asked[-1].engine, NativeEngine)
    assert isinstance(torch_made, TorchSampler) and isinstance(served, EndpointSampler)
    settings = {"n": 2, "max_tokens": 5, "temperature": 0.0}
    found = [s.sample(PROMPTS, **settings) for s in asked]
    shown = [[[(c.text, c.finished) for c in row] for row in rows] for rows in found]
    assert all(each == shown[0] for each in shown)
    for rows, most in zip(found, (1e-4, 1e-4, 1e-4, 5e-3), strict=False):  # native rounds activations
        for row, expected in zip(rows, found[0], strict=True):
            for made, wanted in zip(row, expected, strict=True):
                assert made.logprobs == pytest.approx(wanted.logprobs, abs=most)
    assert len(list((tmp_path / "cache").iterdir())) == 6


@pytest.fixture
def served(folder):
    """`openafm serve` of the same folder, on the loopback."""
    with listening(open_model(folder)) as url:
        yield f"{url}/v1"


@pytest.mark.parametrize("prompts", [PROMPTS, ["the mat"] * 9])
def test_our_own_server_takes_the_same_call(folder, served, tmp_path, prompts):
    asked = open_sampler(served, model=folder.name, cache=tmp_path / "cache")
    settings = {"n": 2, "max_tokens": 5, "temperature": 0.0}
    found, expected = (s.sample(prompts, **settings) for s in (asked, open_sampler(str(folder))))
    shown = [[[(c.text, c.finished) for c in row] for row in rows] for rows in (found, expected)]
    assert shown[0] == shown[1]
    for one, other in ((a, b) for rows in zip(found, expected, strict=True) for a, b in zip(*rows, strict=True)):
        assert one.logprobs and one.logprobs == pytest.approx(other.logprobs, abs=0.02)
    assert asked.sample(prompts, **settings) == found  # from the cache
    assert asked.logprobs and len(list((tmp_path / "cache").iterdir())) == 2 * len(set(map(str, prompts)))
    drawn = settings | {"temperature": 1.0, "max_tokens": 12}
    one, again, other = (asked.sample(prompts, **drawn, seed=seed) for seed in (1, 1, 2))
    assert one == again != other and all(row[0].text != row[1].text for row in one)


def test_what_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(ValueError, match="say which one"):
        open_sampler("http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match="not a model folder"):
        open_sampler(str(tmp_path / "nothing"))


def test_the_engine_asked_for_is_used_or_refused(folder, monkeypatch):
    monkeypatch.setattr("openafm.engine.opening.missing", lambda: "the native engine is not built")
    with pytest.raises(ValueError, match="not built"):
        open_sampler(str(folder), engine="native")
    assert isinstance(open_sampler(str(folder)), TorchSampler)
