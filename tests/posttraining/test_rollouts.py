"""MDLOO with answers drawn by a server that speaks vLLM's protocol and answers with the weights it was told to read."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from openafm import jsonl
from openafm.model.checkpoint import load_model
from openafm.model.generate import generate
from openafm.model.generation import Generation
from openafm.posttraining import mdloo as stage
from openafm.posttraining.mdloo import MdlooConfig, answers, mdloo
from openafm.posttraining.policy import Policy
from openafm.posttraining.rollouts import RolloutServer, ServerConfig
from openafm.sampling.endpoint import EndpointSampler
from openafm.training import parallel


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append((self.path, body))
            if self.path == "/v1/completions":
                return self.reply({"choices": [server.choice(body)]})
            if self.path in server.refused:
                return self.send_error(404)
            if self.path == "/collective_rpc" and server.reads:
                assert body["method"] == "reload_weights"
                server.model = load_model(Path(body["kwargs"]["weights_path"]))
            return self.reply(None)

    def reply(self, body):
        raw = b"" if body is None else json.dumps(body).encode()  # vLLM's own calls answer nothing, or results
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *words):
        pass


class Server(ThreadingHTTPServer):
    def __init__(self, model: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.lock, self.asked, self.refused, self.reads = load_model(model), threading.Lock(), [], [], True
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def choice(self, body):
        """One answer, as vLLM tells it: the stop token is among the tokens."""
        assert body["top_p"] == 1 and body["top_k"] == -1 and body["return_token_ids"]
        (made,) = generate(
            self.model, [body["prompt"]], max_tokens=body["max_tokens"], temperature=body["temperature"],
            stop_ids=set(body["stop_token_ids"]), seed=body["seed"],
        )  # fmt: skip
        tokens = made.tokens + ([] if made.stop is None else [made.stop])
        reason = "stop" if made.finished else "length"
        return {"text": "", "token_ids": tokens, "logprobs": {"token_logprobs": made.logprobs}, "finish_reason": reason}

    def calls(self):
        return [path for path, _ in self.asked if path != "/v1/completions"]


@pytest.fixture
def server(model):
    with Server(model) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def config(server, tmp_path):
    where = ServerConfig(url=server.url, model="policy", weights=str(tmp_path / "shared"))
    return MdlooConfig(iterations=3, prompts=4, samples=4, steps=3, lr=0.003, max_tokens=4, server=where)


def test_each_iterations_answers_are_of_its_own_weights(server, config, model, examples, reward, context, tmp_path):
    step, told = context(), []
    step.warn = told.append
    metrics = mdloo(config, step, model=model, reward=reward, examples=examples)
    assert metrics["sampler_trainer_difference"] < 1e-4 and not [line for line in told if server.url in line]
    assert server.calls() == ["/collective_rpc", "/reset_prefix_cache"] * 3
    read = [body["kwargs"]["weights_path"] for path, body in server.asked if path == "/collective_rpc"]
    assert len(set(read)) == 3 and not list((tmp_path / "shared").iterdir())
    policy = Policy.load(model)
    asked = [body for path, body in server.asked if path == "/v1/completions"]
    assert len(asked) == 3 * 4 * 4 and len({body["seed"] for body in asked}) == len(asked)
    drawn = jsonl.read(step.scratch / "answers-0000.jsonl")
    assert sorted(body["prompt"] for body in asked[:16]) == sorted(policy.prompt(row["problem"]) for row in drawn)
    assert all(row["text"] == policy.tokenizer.decode(row["tokens"]).strip() for row in drawn)
    assert all(len(row["tokens"]) == len(row["logprobs"]) for row in drawn)


def test_a_server_that_stays_with_its_weights_is_told_of(server, config, model, examples, reward, context, monkeypatch):
    server.reads = False
    monkeypatch.setattr(stage, "STALE", 0.01)
    step, told = context(), []
    step.warn = told.append
    metrics = mdloo(config, step, model=model, reward=reward, examples=examples)
    assert metrics["sampler_trainer_difference"] > 0.01
    doubted = [line for line in told if "does it answer with the weights" in line]
    assert [line.partition(":")[0] for line in doubted] == ["iteration 2", "iteration 3"]


def test_a_killed_step_asks_for_nothing_twice(server, config, model, examples, reward, context, kill):
    broken = context()
    killed = kill(broken, "iteration 2 loss", 2)
    with pytest.raises(killed):
        mdloo(config, broken, model=model, reward=reward, examples=examples)
    assert len(server.calls()) == 4
    metrics = mdloo(config, context(), model=model, reward=reward, examples=examples)
    assert len(server.calls()) == 6 and metrics["sampler_trainer_difference"] < 1e-4
    assert len([path for path, _ in server.asked if path == "/v1/completions"]) == 3 * 4 * 4


def test_other_processes_read_what_the_first_has_drawn(server, config, model, examples, context, monkeypatch):
    policy = Policy.load(model)
    problems = policy.problems(jsonl.read(examples / "train.jsonl"), 20, 4, "0")
    first = answers(policy, problems, config, context("first"), 0, RolloutServer(config.server))
    other = context("other")
    other.shared = context("first").scratch
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    asked = len(server.asked)
    assert answers(policy, problems, config, other, 0, RolloutServer(config.server)) == first
    assert len(server.asked) == asked
    parallel.meet()  # alone there is nobody to wait for


def test_a_server_without_the_call_is_told_with_the_remedy(server, config, model, examples, reward, context, tmp_path):
    server.refused = ["/collective_rpc"]
    with pytest.raises(ValueError, match=r"(?s)HTTP 404.*VLLM_SERVER_DEV_MODE=1"):
        mdloo(config, context(), model=model, reward=reward, examples=examples)
    assert not list((tmp_path / "shared").iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_ids": None},  # no vLLM, or an old one
        {"token_ids": [5, 6]},
        {"token_ids": []},
        {"finish_reason": "stop"},
        {"logprobs": None},
    ],
)
def test_other_answers_are_told(server, monkeypatch, wrong):
    right = {"text": "", "token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "length"}
    sampler = EndpointSampler(server.url, "policy")
    ask = {"max_tokens": 1, "temperature": 1.0, "seed": 0, "stop": {2}}
    monkeypatch.setattr(server, "choice", lambda body: right)
    assert sampler.continue_tokens([[1]], **ask)[0].tokens == [5]
    both = {"token_ids": [5, 2], "logprobs": {"token_logprobs": [-1.0, -2.0]}, "finish_reason": "stop"}
    monkeypatch.setattr(server, "choice", lambda body: right | both)
    assert sampler.continue_tokens([[1]], **ask) == [Generation([5], [-1.0, -2.0], 2)]
    monkeypatch.setattr(server, "choice", lambda body: right | wrong)
    with pytest.raises(ValueError, match="does not tell its tokens as vLLM does"):
        sampler.continue_tokens([[1]], **ask)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "ftp://h/v1", "model": "m", "weights": "/w"}, "as http://host"),
        ({"url": "http://h:8000", "model": "m", "weights": "/w"}, "as http://host"),
        ({"url": "http://h:8000/v1", "weights": "/w"}, "`model`'s name"),
        ({"url": "http://h:8000/v1", "model": "m", "weights": "w"}, "absolute path"),
    ],
)
def test_half_a_server_is_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        ServerConfig(**settings)
