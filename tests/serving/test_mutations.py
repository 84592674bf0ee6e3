"""Bodies that are nearly right: each is answered or refused in OpenAI's shape, and none is the server's failure."""

import copy
import json
import random
import shutil

import httpx
import pytest
from tests.serving.conftest import listening

from openafm.serving.opening import open_model

MODEL = "toy-recovery"
ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}}}
CALL = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["a", "b"]}}}
BODIES = {
    "/v1/chat/completions": {
        "model": MODEL,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]},
                     {"role": "assistant", "content": None, "tool_calls": [CALL]},
                     {"role": "tool", "tool_call_id": "x", "content": "3"}],
        "tools": [{"type": "function", "function": ADD}], "tool_choice": "auto", "parallel_tool_calls": True,
        "logprobs": True, "top_logprobs": 2, "max_tokens": 3, "temperature": 1, "stop": ["a"], "n": 1, "stream": False,
    },
    "/v1/completions": {
        "model": MODEL, "prompt": "a", "max_tokens": 3, "logprobs": 1, "echo": False, "response_format": FORM,
    },
    "/v1/responses": {
        "model": MODEL,
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                  {"type": "function_call", "call_id": "x", "name": "add", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "x", "output": "3"}],
        "instructions": "a", "max_output_tokens": 3, "tools": [{"type": "function", **ADD}], "tool_choice": "auto",
        "text": {"format": {"type": "text"}}, "stream": False,
    },
    "/v1/embeddings": {"model": MODEL, "input": ["a", "b"], "encoding_format": "float"},
    "/v1/load_lora_adapter": {"lora_name": "a", "lora_path": "/adapters/a"},
}  # fmt: skip
WRONG = [None, True, False, 0, 1, -1, 2.5, 1e308, 10**30, "", "a", "none", "json_schema", "\x00", "<|end|>", "é" * 50,
         [], {}, [1], ["a"], {"a": 1}, [[]], [{}], {"type": "object"}, {"type": "function"}, CALL]  # fmt: skip


def places(value, at=()):
    """Where something could be otherwise."""
    within = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in within:
        yield (*at, key)
        yield from places(part, (*at, key))


def mutated(body, rng):
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 2))):
        *way, key = rng.choice(list(places(body)) or [("model",)])
        part = body
        for step in way:
            part = part[step]
        if rng.random() < 0.2 and isinstance(part, dict):
            part.pop(key, None)
        else:
            extra = isinstance(part, dict) and rng.random() < 0.2
            part[rng.choice(("x", "type", "strict", "name")) if extra else key] = copy.deepcopy(rng.choice(WRONG))
    return body


@pytest.mark.parametrize("path", BODIES)
def test_no_body_is_the_servers_failure(run, path, tmp_path):
    rng = random.Random(path)
    statuses = set()
    with listening(open_model(run / "recovery"), adapters=tmp_path) as url, httpx.Client(timeout=60) as http:
        shutil.copytree(run / "recovery/model.afm/adapters/summary", tmp_path / "a")
        assert http.post(url + path, json=BODIES[path]).status_code == 200
        for _ in range(150):
            if "lora" in path:  # one that is there is refused
                http.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": "a"})
            raw = json.dumps(mutated(BODIES[path], rng))
            answer = http.post(url + path, content=raw, headers={"Content-Type": "application/json"})
            statuses.add(answer.status_code)
            assert answer.status_code < 500, raw
            assert answer.status_code == 200 or set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert statuses >= {200, 400}
