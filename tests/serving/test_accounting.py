"""A line of JSON for each request, and which pages may ask."""

import json
import signal
import subprocess
import sys

import httpx
import openai
import pytest
from tests.serving.conftest import client, listening

from openafm.serving.server import Limits, serve

MODEL = "toy-recovery:summary"
SECRET = "some few of them"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 20, "seed": 3}
PAGE = "https://app.example"


def logged(lines, count):
    """Lines come when a request is over, a moment after its answer."""
    for _ in range(10_000_000):
        if len(lines) >= count:
            return [json.loads(line) for line in lines]
    raise AssertionError(lines)


def test_a_line_says_how_much_and_nothing_of_what(opened):
    lines: list[str] = []
    with listening(opened, key="s3cret", log=lines.append) as url:
        create = client(url, "s3cret").chat.completions.create
        whole = create(**CHAT)
        (line,) = logged(lines, 1)
        assert (line["path"], line["status"], line["error"]) == ("/v1/chat/completions", 200, None)
        assert (line["model"], line["adapter"], line["answer"]) == (MODEL, "summary", whole.id)
        assert line["id"] == whole._request_id and line["time"].endswith("+00:00")
        usage = whole.usage
        assert (line["prompt_tokens"], line["completion_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
        assert 0 < line["first_token_seconds"] <= line["seconds"]
        list(create(**CHAT, stream=True))
        assert logged(lines, 2)[1]["completion_tokens"] == usage.completion_tokens
        with pytest.raises(openai.BadRequestError):
            create(**CHAT | {"temperature": 9})
        refused = logged(lines, 3)[2]
        assert (refused["status"], refused["error"], refused["first_token_seconds"]) == (400, "invalid_value", None)
        with pytest.raises(openai.AuthenticationError):
            client(url, "wrong-one").chat.completions.create(**CHAT)
        client(url, "s3cret").embeddings.create(model=MODEL, input=SECRET)
        told = logged(lines, 5)
        assert [line["status"] for line in told] == [200, 200, 400, 401, 200] and told[4]["prompt_tokens"] > 0
    assert not any(word in line for line in lines for word in (SECRET, "s3cret", "wrong-one"))
    assert len({line["id"] for line in told}) == 5


def test_a_stream_that_ends_early_says_why(gated):
    engine, url = gated
    engine.permits.release(10_000)
    engine.fail_at = 10
    with pytest.raises(openai.APIError, match="in the middle"):
        list(client(url).chat.completions.create(**CHAT | {"model": "toy-sft"}, stream=True, temperature=1.5))
    for _ in range(1000):
        if 'path="/v1/chat/completions",status="500"} 1' in httpx.get(f"{url}/metrics").text:
            return
    raise AssertionError


def preflight(url, origin, path="/v1/chat/completions"):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    return httpx.options(url + path, headers={"Origin": origin, **asked})


def test_named_origins_may_ask_and_no_others(opened):
    with listening(opened, key="s3cret", cors=[f"{PAGE}/", "http://localhost:3000"]) as url:
        for origin in (PAGE, "http://localhost:3000"):
            allowed = preflight(url, origin)
            assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == origin
            assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
            assert "access-control-allow-credentials" not in allowed.headers
        answer = httpx.get(f"{url}/v1/models", headers={"Origin": PAGE, "Authorization": "Bearer s3cret"})
        assert answer.headers["access-control-allow-origin"] == PAGE and answer.status_code == 200
        refused = httpx.get(f"{url}/v1/models", headers={"Origin": PAGE})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == PAGE
        for origin in ("https://app.example.evil", "http://app.example", "https://sub.app.example", "null", "*"):
            assert "access-control-allow-origin" not in preflight(url, origin).headers


def test_no_page_may_ask_unless_told(opened):
    with listening(opened) as url:
        assert "access-control-allow-origin" not in preflight(url, PAGE).headers
        got = httpx.get(f"{url}/v1/models", headers={"Origin": PAGE})
        assert not [name for name in got.headers if name.startswith("access-control")]


@pytest.mark.parametrize("given", ["*", "app.example", "https://", "https://app.example/page", "null", "ftp://a.b", ""])
def test_what_is_no_origin_is_refused(opened, given):
    with pytest.raises(ValueError, match="name each origin whole"), listening(opened, cors=[given]):
        pass


def test_the_command_logs_lines_and_nothing_else_on_standard_output(run):
    command = [sys.executable, "-m", "openafm", "serve", str(run / "sft"), "--port", "0", "--log-format", "json"]
    with subprocess.Popen(
        [*command, "--cors", PAGE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            while "the page" not in (greeting := server.stderr.readline()):
                assert server.poll() is None
            url = greeting.split()[0]
            assert preflight(url, PAGE).headers["access-control-allow-origin"] == PAGE
            client(url).chat.completions.create(**CHAT | {"model": "toy-sft"})
            line = json.loads(server.stdout.readline())
            assert (line["model"], line["status"]) == ("toy-sft", 200)
        finally:
            server.send_signal(signal.SIGINT)
        assert server.stdout.read() == ""


def test_a_wrong_origin_is_told_before_a_model_is_opened(run):
    with pytest.raises(ValueError, match="name each origin whole"):
        serve(run / "nowhere", "127.0.0.1", 0, None, Limits(), cors=["*"])
