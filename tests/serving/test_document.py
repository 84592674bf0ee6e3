"""The OpenAPI document, and the server held against it by schemathesis: no 5xx, no answer that disagrees.

More of it, against any server that runs: the command of `test_the_server_keeps_to_its_document` with a higher number of
examples and without its phases (docs/serving.md).
"""

import subprocess
import sys
from pathlib import Path

import httpx
import jsonschema
from tests.serving.conftest import client, listening
from tests.serving.test_adapters import store_of

from openafm.serving.document import document
from openafm.serving.requests import ChatCompletion
from openafm.serving.server import Limits


def test_the_document_names_the_models_and_every_field(opened):
    with listening(opened, key="s3cret") as url:
        assert httpx.get(f"{url}/openapi.json").status_code == 401
        document = httpx.get(f"{url}/openapi.json", headers={"Authorization": "Bearer s3cret"}).json()
        ids = [model.id for model in client(url, "s3cret").models.list()]
    assert document["openapi"] == "3.1.0" and document["security"] == [{"bearer": []}]
    chat = document["components"]["schemas"]["ChatCompletion"]
    assert chat["properties"]["model"] == {"enum": ids}
    assert set(ChatCompletion.model_fields) | {"user", "logit_bias"} <= set(chat["properties"])
    assert chat["required"] == ["model", "messages"] and chat["additionalProperties"] is False


def test_bodies_that_the_tests_of_the_server_send_fit_the_document(opened):
    body = {"model": opened.name, "messages": [{"role": "user", "content": "a"}], "stop": "b", "user": "me", "n": 2}
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = [*body["messages"], {"role": "assistant", "tool_calls": [call], "content": None},
              {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "3"}]}]  # fmt: skip
    schemas = {"components": {"schemas": document([opened.name], 64, key=False)["components"]["schemas"]}}
    valid = jsonschema.Draft202012Validator({"$ref": "#/components/schemas/ChatCompletion", **schemas}).is_valid
    assert valid(body) and valid(body | {"messages": called, "temperature": 0, "seed": None, "max_tokens": 64})
    wrong = ({"model": "gpt"}, {"messages": [*called[1:2], {"role": "tool", "content": "3"}]}, {"logit_bias": {"5": 1}},
             {"temperature": 0.001}, {"max_tokens": 65}, {"stop": ""}, {"typical_p": 1})  # fmt: skip
    assert not any(valid(body | change) for change in wrong)


def test_the_server_keeps_to_its_document(opened, tmp_path):
    store_of(tmp_path, ["mail"])
    with listening(opened, limits=Limits(seconds=1), adapters=tmp_path) as url:
        command = [
            str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json", "--checks", "all",
            "--exclude-checks", "positive_data_acceptance", "--phases", "examples,fuzzing", "--max-examples", "5",
            "--generation-database", "none", "--no-color",
        ]  # fmt: skip
        ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ran.returncode == 0, ran.stdout[-4000:]
