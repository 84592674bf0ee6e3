"""The server as OpenAI's own client sees it, against a tiny real model with adapters on the loopback."""

import json
import socket

import httpx
import openai
import pytest
from tests.serving.conftest import client, listening

from openafm.serving.answer import Answer
from openafm.serving.server import Limits, is_loopback, serve
from openafm.serving.transport import BODY_BYTES

WORDS = [{"role": "user", "content": "words"}]
BASE, RECOVERY, SUMMARY = "toy-recovery", "toy-recovery:recovery", "toy-recovery:summary"
TOOLS = [{"type": "function", "function": {"name": "a"}}]
LONG = {"max_tokens": 40, "temperature": 1.5, "seed": 3}
"""An answer that no stop token ends before its 40 tokens are there."""


@pytest.fixture(scope="module")
def server(opened):
    with listening(opened) as url:
        yield url


def post(url, body, path="/v1/chat/completions", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(url + path, content=content, headers={"Content-Type": "application/json", **headers})


def expected(opened, adapter, **options):
    tokenizer = opened.engine.tokenizer
    answer = Answer(tokenizer, tokenizer.render_chat(WORDS), adapter=adapter, **LONG | options)
    return "".join(answer.by(opened.engine)), answer


def test_each_adapter_is_a_model_and_the_recovered_one_comes_first(server):
    assert [model.id for model in client(server).models.list()] == [RECOVERY, BASE, SUMMARY]
    assert client(server).models.retrieve(SUMMARY).adapter == "summary"
    with pytest.raises(openai.NotFoundError, match=f"there are: {RECOVERY}, {BASE}"):
        client(server).models.retrieve("gpt")


@pytest.mark.parametrize(("model", "adapter"), [(BASE, None), (RECOVERY, "recovery"), (SUMMARY, "summary")])
def test_a_chat_is_the_engines_answer_with_that_adapter(server, opened, model, adapter):
    text, answer = expected(opened, adapter)
    made = client(server).chat.completions.create(model=model, messages=WORDS, **LONG)
    (choice,) = made.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (text, "assistant", answer.finish)
    assert made.model == model and made.object == "chat.completion" and made.id.startswith("chatcmpl-")
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(answer.prompt), answer.tokens)
    assert made.usage.total_tokens == len(answer.prompt) + answer.tokens
    chunks = list(client(server).chat.completions.create(model=model, messages=WORDS, stream=True, **LONG))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert len({text, *(expected(opened, other)[0] for other in (None, "recovery", "summary"))}) == 3


def test_a_stream_has_openais_shape(server, opened):
    text, answer = expected(opened, None, stop=["w_i"])
    body = {"model": BASE, "messages": WORDS, **LONG, "stop": "w_i", "stream": True}
    with httpx.stream("POST", f"{server}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk" and "usage" not in chunks[0]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1]["delta"] == {} and choices[-1]["finish_reason"] == answer.finish
    assert all(set(choice["delta"]) == {"content"} and choice["finish_reason"] is None for choice in choices[1:-1])
    assert "".join(choice["delta"]["content"] for choice in choices[1:-1]) == text and len(choices) > 4


def test_a_stream_counts_when_asked(server):
    made = client(server).chat.completions
    chunks = list(
        made.create(model=BASE, messages=WORDS, stream=True, stream_options={"include_usage": True}, **LONG)
    )  # fmt: skip
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_may_count_as_it_goes_and_tells_what_the_adapter_took(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": SUMMARY, "messages": WORDS, **LONG, "stream": True, "stream_options": options}
    with httpx.stream("POST", f"{server}/v1/chat/completions", json=body) as response:
        timing = response.headers["server-timing"]
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    names = [entry.split(";dur=")[0] for entry in timing.split(", ")]
    assert names == ["adapter", "first"] and all(float(entry.split("=")[1]) >= 0 for entry in timing.split(", "))
    made = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert made == sorted(made) and 0 < made[-1] <= 40
    refused = post(server, body | {"stream_options": {"continuous_usage_stats": True}})
    assert refused.status_code == 400 and "include_usage" in refused.json()["error"]["message"]


def test_models_tell_their_size(server, run):
    sizes = {model.id: model.bytes for model in client(server).models.list()}
    package = run / "recovery" / "model.afm"
    assert sizes[BASE] == (package / "weights.safetensors").stat().st_size
    assert sizes[SUMMARY] == (package / "adapters" / "summary" / "adapter.safetensors").stat().st_size


def test_text_is_completed(server, opened):
    tokenizer = opened.engine.tokenizer
    prompt = [tokenizer.bos_id, *tokenizer.encode("some words")]
    text = "".join(Answer(tokenizer, prompt, adapter="summary", **LONG).by(opened.engine))
    made = client(server).completions.create(model=SUMMARY, prompt="some words", **LONG)
    assert (made.choices[0].text, made.object) == (text, "text_completion")
    chunks = list(client(server).completions.create(model=SUMMARY, prompt=["some words"], stream=True, **LONG))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert client(server).completions.create(model=BASE, prompt="a", temperature=0).usage.completion_tokens <= 16


def test_what_changes_nothing_is_accepted(server, opened):
    said = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "a"}]}]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    chat = client(server).chat.completions.create
    first = chat(model=BASE, messages=plain, **LONG)
    neutral = {"n": 1, "top_p": 1, "presence_penalty": 0, "tools": [], "user": "me", "logprobs": None}
    options = {"max_completion_tokens": 40, "temperature": 1.5, "seed": 3}
    again = chat(model=BASE, messages=said, **options, **neutral, response_format={"type": "text"})
    assert again.choices[0].message.content == first.choices[0].message.content
    history = [*plain, first.choices[0].message.model_dump(), *plain[1:]]  # what came back may be sent again
    assert chat(model=BASE, messages=history, max_tokens=2).usage.prompt_tokens > first.usage.prompt_tokens


def test_answers_in_json(server, opened, gated):
    parts = {"kind": {"enum": ["bird", "fish"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}}
    schema = {"type": "object", "properties": parts, "required": ["kind", "n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": schema}}
    asked = {"messages": WORDS, "max_tokens": 200, "seed": 3, "response_format": form}
    if "grammar" not in opened.engine.options:
        pytest.skip("no compiler here")
    (choice,) = client(server).chat.completions.create(model=BASE, **asked).choices
    made = json.loads(choice.message.content)
    assert made.keys() == {"kind", "n"} and made["kind"] in ("bird", "fish") and 0 <= made["n"] <= 99
    assert choice.finish_reason == "stop"
    form["json_schema"]["schema"] = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 50}}, "$ref": "#/$defs/a"}
    for streamed in (False, True):  # well-formed, and ambiguous without end
        refused = post(server, {"model": BASE, **asked, "stream": streamed})
        assert refused.status_code == 400 and "cannot be guided" in refused.json()["error"]["message"]
        assert len(refused.text) < 400
    refused = post(gated[1], {"model": "toy-sft", **asked})
    assert refused.status_code == 400 and "build the native engine" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"n": 9}, "n", "less than or equal to 8"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"top_p": 5e-324}, "top_p", "greater than or equal to 0.000001"),
        ({"repetition_penalty": 5e-324}, "repetition_penalty", "greater than or equal to 0.01"),
        ({"top_k": 2**40}, "top_k", "less than 2147483648"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported value of logit_bias"),
        ({"top_logprobs": 3}, None, "goes with logprobs=true only"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"logprobs": 1}, "logprobs", "valid boolean"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing required"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", "'required'"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "b"}}}, None, "none of the tools"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, None, "give one of them"),
        ({"tools": TOOLS * 2}, None, "the same name"),
        ({"tool_choice": "required"}, None, "goes with tools only"),
        ({"messages": [*WORDS, {"role": "tool", "tool_call_id": "x", "content": "3"}]}, None, "no call before it"),
        ({"messages": [{"role": "tool", "content": "3"}]}, "messages.0", "tool_call_id goes with the role tool"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "goes with type json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "king"}}}},
            "response_format",
            "cannot guide",
        ),
        ({"typical_p": 0.1}, "typical_p", "unsupported parameter: typical_p"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": 1e-9}, "temperature", "use 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, None, "give one"),
        ({"max_tokens": 5000}, "max_tokens", "maximum context length is 4096 tokens"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "1 to 256 characters"),
        ({"stream_options": {"include_usage": True}}, None, "stream=true only"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user", "content": "a " * 5000}]}, "messages", "shorten the prompt"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages.0.role", "'system'"),
        ({"messages": [{"role": "user"}]}, "messages.0", "content is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "text only"),
        ({"messages": None}, "messages", "missing required parameter: messages"),
    ],
)
def test_a_bad_request_is_told_by_name(server, change, param, message):
    body = {"model": BASE, "messages": WORDS, **change}
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client(server).post("/chat/completions", body=body, cast_to=object)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


def test_an_unknown_model_names_the_known_ones(server):
    with pytest.raises(openai.NotFoundError, match=f"no model called 'gpt'; there are: {RECOVERY}") as caught:
        client(server).chat.completions.create(model="gpt", messages=WORDS)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[1]", {}, 400),
        (b'{"a":' * 100_000, {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b" " * (BODY_BYTES + 1), {}, 413),
        (b"{}", {"Host": "evil.example"}, 403),
        (b"{}", {"Host": "["}, 403),
    ],
)
def test_a_bad_body_or_host_has_its_status(server, body, headers, status):
    response = post(server, body, **headers)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_unknown_paths_and_methods_are_errors_too(server):
    for response, status in ((httpx.get(f"{server}/v2"), 404), (httpx.get(f"{server}/v1/completions"), 405)):
        assert response.status_code == status and response.json()["error"]["type"] == "invalid_request_error"
    assert response.headers["allow"] == "POST"


def test_a_key_guards_all_but_page_and_health(opened):
    with listening(opened, key="s3cret-ä") as url:
        for key in ("wrong", "s3cret"):
            with pytest.raises(openai.APIStatusError, match="API key") as caught:
                client(url, key).models.list()
            assert caught.value.status_code == 401
        assert all(httpx.get(url + path).status_code == 401 for path in ("/metrics", "/v1/models"))
        assert httpx.get(url).status_code == httpx.get(f"{url}/health").status_code == 200
        bearer = {"Authorization": "Bearer s3cret-ä".encode(), "Host": "any.example"}
        assert httpx.get(f"{url}/v1/models", headers=bearer).status_code == 200


@pytest.mark.parametrize(
    ("host", "key"), [("0.0.0.0", None), ("::", None), ("model.example", None), ("127.0.0.1", " ")]
)
def test_no_server_others_can_reach_without_a_key(run, host, key):
    with pytest.raises(ValueError, match=r"API_KEY|API key"):
        serve(run / "sft", host, 0, key, Limits())


def test_loopback_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "localhost.example", "10.0.0.1")))


@pytest.mark.parametrize(("user", "warned"), [(0, True), (1000, False)])
def test_a_taken_port_is_an_error_and_root_is_warned(run, monkeypatch, capsys, user, warned):
    monkeypatch.setattr("os.geteuid", lambda: user)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(run / "sft", "127.0.0.1", taken.getsockname()[1], None, Limits())
    assert ("serves as root" in capsys.readouterr().err) == warned


def waiting(url, gauge, count):
    """Poll the metrics until a gauge has a value; the test's time limit is the server's."""
    for _ in range(2000):
        if f"{gauge} {count}\n" in httpx.get(f"{url}/metrics").text:
            return
    raise AssertionError(httpx.get(f"{url}/metrics").text)


def ask(url, **options):
    """A streamed request whose head has been sent."""
    body = {"model": "toy-sft", "messages": WORDS, **LONG, **options}
    raw = json.dumps(body).encode()
    connection = socket.create_connection((url.split("/")[2].split(":")[0], int(url.rsplit(":", 1)[1])))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"  # noqa: E501
    connection.sendall(head.encode() + raw)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(gated, stream):
    engine, url = gated
    connection = ask(url, stream=stream)
    waiting(url, "openafm_running", 1)
    engine.permits.release(5)
    if stream:
        while b'"content":"' not in connection.recv(4096).replace(b'"content":""', b""):
            pass
    connection.close()
    for _ in range(3):  # the token that is being computed when the client leaves is made
        httpx.get(f"{url}/health")
    while "openafm_running 1" in httpx.get(f"{url}/metrics").text:
        engine.permits.release()
    assert engine.made < 40
    engine.permits.release(100)
    assert client(url).chat.completions.create(model="toy-sft", messages=WORDS, **LONG).usage.completion_tokens == 40


def test_the_queue_is_bounded_and_a_place_is_given_up(gated):
    engine, url = gated
    running = ask(url)
    waiting(url, "openafm_running", 1)  # or the second connection may be read first
    queued = ask(url)
    waiting(url, "openafm_waiting", 1)
    with pytest.raises(openai.RateLimitError, match="1 requests are waiting") as caught:
        client(url).chat.completions.create(model="toy-sft", messages=WORDS)
    assert caught.value.code == "queue_full" and caught.value.response.headers["retry-after"]
    queued.close()
    waiting(url, "openafm_waiting", 0)
    queued = ask(url)
    waiting(url, "openafm_waiting", 1)
    engine.permits.release(10_000)
    assert b"200 OK" in running.recv(100) and b"200 OK" in queued.recv(100)
    text = httpx.get(f"{url}/metrics").text
    assert 'openafm_requests_total{path="/v1/chat/completions",status="429"} 1\n' in text
    assert 'openafm_requests_total{path="/v1/chat/completions",status="499"} 1\n' in text
    assert 'openafm_completion_tokens_total{model="toy-sft"} 80\n' in text
    assert "openafm_generation_seconds_total" in text and text.count("# TYPE") == 11


def test_a_request_has_its_time(opened):
    with listening(opened, limits=Limits(seconds=-1)) as url, pytest.raises(openai.InternalServerError) as caught:
        client(url).chat.completions.create(model=BASE, messages=WORDS)
    assert (caught.value.status_code, caught.value.code) == (503, "timeout")


def test_an_engine_that_breaks_is_an_error_and_the_server_lives(gated):
    engine, url = gated
    engine.permits.release(10_000)
    engine.fail_at = 20
    with pytest.raises(openai.APIError, match="in the middle"):
        list(client(url).chat.completions.create(model="toy-sft", messages=WORDS, stream=True, **LONG))
    with pytest.raises(openai.InternalServerError, match="its log says why"):
        client(url).chat.completions.create(model="toy-sft", messages=WORDS, **LONG)
    engine.fail_at = None
    assert client(url).chat.completions.create(model="toy-sft", messages=WORDS, **LONG).usage.completion_tokens == 40
