"""Clients that people use, each run for real against a server on the loopback; OpenAI's for Python: test_server."""

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from tests.serving.conftest import client, listening

NODE = Path(__file__).parent / "node"
RECOVERY, BASE = "toy-recovery:recovery", "toy-recovery"
ASKED = {
    "model": RECOVERY,
    "messages": [{"role": "user", "content": "words"}],
    "max_tokens": 12,
    "temperature": 1.5,
    "seed": 3,
}


@pytest.fixture(scope="module")
def server(opened):
    with listening(opened) as url:
        yield url


@pytest.fixture(scope="module")
def said(server):
    """What OpenAI's Python client is told."""
    return client(server).chat.completions.create(**ASKED).choices[0]


@pytest.mark.skipif(
    not shutil.which("node") or not (NODE / "node_modules").exists(),
    reason="no node, or not its packages: npm ci --prefix tests/serving/node (.ci/setup dev does it where npm is)",
)
def test_openais_client_for_node(server, said):
    command = ["node", str(NODE / "chat.mjs"), f"{server}/v1", RECOVERY]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["models"][:2] == [RECOVERY, BASE]
    assert told["whole"] == told["streamed"] == said.message.content and told["finish"] == said.finish_reason
    assert told["usage"]["completion_tokens"] <= 12 and told["response"] in ("completed", "incomplete")
    assert len(set(told["vectors"])) == 1 and len(told["vectors"]) == 2
    assert told["refused"] == [404, "model_not_found"]


def test_langchain(server, said):
    options = {"base_url": f"{server}/v1", "api_key": "unused", "max_retries": 0}
    chat = ChatOpenAI(model=RECOVERY, max_tokens=12, temperature=1.5, seed=3, stream_usage=True, **options)
    answer = chat.invoke("words")
    assert answer.content == said.message.content
    assert answer.response_metadata["finish_reason"] == said.finish_reason
    chunks = list(chat.stream("words"))
    assert "".join(chunk.content for chunk in chunks) == said.message.content
    assert answer.usage_metadata == sum(chunks[1:], chunks[0]).usage_metadata
    vectors = OpenAIEmbeddings(model=BASE, check_embedding_ctx_length=False, **options).embed_documents(
        ["some", "words"]
    )
    assert len(vectors) == 2 and vectors[0] != vectors[1]


def test_langchain_gets_what_fits_a_schema(server, opened):
    if "grammar" not in opened.engine.options:
        pytest.skip("no compiler here")
    schema = {
        "title": "animal", "description": "An animal.", "type": "object", "required": ["kind", "legs"],
        "properties": {"kind": {"enum": ["bird", "fish"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 99}},
    }  # fmt: skip
    chat = ChatOpenAI(model=BASE, base_url=f"{server}/v1", api_key="unused", max_tokens=200, seed=3)
    for method in ("json_schema", "function_calling"):
        made = chat.with_structured_output(schema, method=method).invoke("words")
        assert made["kind"] in ("bird", "fish") and 0 <= made["legs"] <= 99


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_curl_streams(server, said):
    command = ["curl", "-sSN", f"{server}/v1/chat/completions", "-H", "Content-Type: application/json", "-d"]
    ran = subprocess.run([*command, json.dumps({**ASKED, "stream": True})], capture_output=True, text=True, timeout=120)
    *events, done, end = ran.stdout.split("\n\n")
    assert (done, end, ran.returncode) == ("data: [DONE]", "", 0)
    chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == said.message.content


def test_a_model_list_as_open_webui_reads_it(opened):
    """It asks GET {base}/models with its key, takes `data`, and names each by `id`, or `name` where there is one."""
    with listening(opened, key="s3cret") as url:
        response = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer s3cret", "Accept": "*/*"})
        models = response.json()["data"]
        assert [model.get("name", model["id"]) for model in models][:2] == [RECOVERY, BASE]
        assert all(model["object"] == "model" and isinstance(model["owned_by"], str) for model in models)
        body = {**ASKED, "model": models[0]["id"], "stream": True, "stream_options": {"include_usage": True}}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=response.request.headers) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert lines[-1] == "data: [DONE]" and json.loads(lines[-2][6:])["usage"]["completion_tokens"] <= 12
