"""The endpoint sampler against a real HTTP server of this process."""

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from openafm.sampling.endpoint import EndpointSampler, _seconds


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
        time.sleep(self.server.pause)
        with self.server.lock:  # before the answer, which may bring the next request at once
            self.server.busy -= 1
            self.server.asked.append((self.path, self.headers.get("Authorization"), body))
            failing = self.server.failures.pop(0) if self.server.failures else None
        if failing == "cut":  # the connection ends in the middle of the answer
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"{")
            return None
        if isinstance(failing, dict | list):
            return self.reply(200, failing)
        if isinstance(failing, tuple):
            return self.reply(failing[0], {"error": {"message": failing[1]}})
        if failing:
            return self.reply(failing, {"error": "not now"})
        if self.path == "/v1/chat/completions":
            text = body["messages"][-1]["content"].upper()
            told = {"content": [{"token": text, "logprob": -0.5}]}
            shown = f"{text}{body['seed'] % 97}"
            choices = [{"index": 0, "message": {"content": shown}, "logprobs": told, "finish_reason": "stop"}]
        elif body.get("echo"):
            offsets = list(range(0, len(body["prompt"]), 2))
            values = [None] + [-float(o) for o in offsets[1:]]
            choices = [{"text": body["prompt"], "logprobs": {"text_offset": offsets, "token_logprobs": values}}]
        else:
            told = {"token_logprobs": [-1.0, -2.0]}
            choices = [{"index": 0, "text": " on", "logprobs": told, "finish_reason": "length"}]
        self.reply(200, {"choices": choices})

    def reply(self, status, body):
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        if status == 503:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.failures, server.lock, server.retry_after = [], [], threading.Lock(), "0"
        server.busy, server.most, server.pause = 0, 0, 0.0
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sampler(server, **options):
    return EndpointSampler(f"http://127.0.0.1:{server.server_port}/v1/", "m", "secret", wait_seconds=0.01, **options)


def chat(text):
    return [{"role": "user", "content": text}]


def test_chats_come_back_in_order_with_log_probabilities(server):
    found = sampler(server).sample([chat(f"q{i}") for i in range(12)], 2, max_tokens=4)
    assert [[c.text.startswith(f"Q{i}") for c in row] for i, row in enumerate(found)] == [[True, True]] * 12
    assert all(one.text != other.text for one, other in found)  # two draws of a prompt have seeds of their own
    assert found[0][0].logprobs == [-0.5] and found[0][0].finished
    assert all(key == "Bearer secret" for _, key, _ in server.asked)


def test_text_is_completed_and_scored(server):
    made = sampler(server).sample(["go"], max_tokens=2)[0][0]
    assert (made.text, made.logprobs, made.finished) == (" on", [-1.0, -2.0], False)
    assert sampler(server).score(["abcd"], ["ef", "efgh"]) == [[-4.0, -10.0]]
    with pytest.raises(ValueError, match="text prompts"):
        sampler(server).score([chat("x")], ["Yes"])


def test_the_cache_answers_again_without_asking(server, tmp_path):
    first = sampler(server, cache=tmp_path).sample([chat("a"), chat("b")], max_tokens=4)
    assert sampler(server, cache=tmp_path).sample([chat("a"), chat("b")], max_tokens=4) == first
    assert len(server.asked) == 2
    sampler(server, cache=tmp_path).sample([chat("a")], max_tokens=5)
    assert len(server.asked) == 3


def test_passing_failures_are_retried_and_others_are_not(server):
    server.failures = [503, 429]
    assert sampler(server).sample([chat("a")], max_tokens=4)[0][0].text.startswith("A")
    assert len(server.asked) == 3
    server.failures = [401]
    with pytest.raises(ValueError, match=r"HTTP 401.*check the URL, key and model"):
        sampler(server).sample([chat("a")], max_tokens=4)
    server.failures = [500, 500]
    with pytest.raises(ValueError, match="after 2 tries"):
        sampler(server, tries=2).sample([chat("a")], max_tokens=4)


@pytest.mark.parametrize("broken", ["cut", ["no", "object"]])
def test_broken_answers_are_asked_again(server, broken):
    server.failures = [broken]
    assert sampler(server).sample(["go"], max_tokens=2)[0][0].text == " on"
    assert len(server.asked) == 2


@pytest.mark.parametrize("other", [{"choices": []}, {"choices": [{"text": 1, "message": 2}]}, {"error": "x"}])
def test_another_protocol_is_told_and_not_kept(server, tmp_path, other):
    server.failures = [other]
    asking = sampler(server, cache=tmp_path)
    with pytest.raises(ValueError, match="does not answer in the OpenAI protocol"):
        asking.sample(["go"], max_tokens=2)
    assert asking.sample(["go"], max_tokens=2)[0][0].text == " on"


def test_no_more_requests_run_together_than_allowed(server):
    server.pause = 0.02
    sampler(server, concurrency=3).sample([chat(f"q{i}") for i in range(12)], max_tokens=4)
    assert 2 <= server.most <= 3


def test_servers_without_log_probabilities_are_not_asked_for_any(server):
    sampler(server, logprobs=False).sample(["go", chat("a")], max_tokens=2)
    assert not any("logprobs" in body for _, _, body in server.asked)


def test_a_server_that_refuses_log_probabilities_is_asked_without_them(server):
    server.failures = [(400, "unknown parameter: logprobs")]
    asking = sampler(server, concurrency=1)
    assert [c.text for (c,) in asking.sample(["go", "on"], max_tokens=2)] == [" on", " on"]
    assert ["logprobs" in body for _, _, body in server.asked] == [True, False, False]
    server.failures = [(400, "unknown parameter: seed")]
    with pytest.raises(ValueError, match="unknown parameter: seed"):
        asking.sample(["go"], max_tokens=2)


def test_no_server_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match="check the URL"):
        EndpointSampler("http://127.0.0.1:9/v1", "m", tries=1).sample(["a"], max_tokens=1)


@pytest.mark.parametrize("retry_after", ["0", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "nan", "-5", "0.4"])
def test_a_server_may_say_when_to_come_again_in_any_form(server, retry_after):
    server.failures, server.retry_after = [503], retry_after
    start = time.monotonic()
    assert sampler(server).sample(["go"], max_tokens=2)[0][0].text == " on"
    assert time.monotonic() - start >= (0.4 if retry_after == "0.4" else 0)
    assert 0 < _seconds(formatdate(time.time() + 10, usegmt=True)) <= 10
