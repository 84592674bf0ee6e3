"""A scanner against `openafm serve` of a tiny model: keys, hosts, limits, slow clients, smuggling, traversal, logs.

    python tests/reliability/scan.py
    python tests/reliability/scan.py idle slow --connections 10000

Each check attacks a server of its own process on the loopback, which must refuse in OpenAI's shape, keep answering
others meanwhile, and afterwards still be alive with as many open files as before. Prints a line a check; exit code 1 if
one did not hold.
"""

import argparse
import json
import os
import re
import resource
import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
SECRET_PROMPT = "orchid-lantern-7319"
SPARE = 500
"""Files of this process that are no connections."""


@dataclass
class Scan:
    """The server under attack."""

    folder: Path
    connections: int = 10_000
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def start(self, *options: str, key: bool = True) -> None:
        """Start the server and wait until it answers."""
        self.log = (self.folder / "log.txt").open("a+")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENAFM_THREADS": "1", "OPENAFM_API_KEY": self.key}
        if not key:
            del environment["OPENAFM_API_KEY"]
        command = [sys.executable, "-m", "openafm", "serve", str(self.folder / "toy/recovery"), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--log-format", "json", *options], stdout=self.log, stderr=self.log, env=environment
        )
        found = None
        while found is None:
            assert self.process.poll() is None, self.logged()
            time.sleep(0.1)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", self.logged())
        self.port = int(found[1])
        self.files = psutil.Process(self.process.pid).num_fds()

    def stop(self) -> None:
        """End the server, and forget what it wrote."""
        self.process.terminate()
        self.process.wait(30)
        self.log.truncate(0)
        self.log.close()

    def logged(self) -> str:
        """All that the server wrote."""
        return (self.folder / "log.txt").read_text()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """A request with the key, unless its header is given."""
        headers = {"authorization": f"Bearer {self.key}"} | headers
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if content is not None:
            headers.setdefault("content-type", "application/json")
        with httpx.Client(timeout=60) as http:
            return http.request(method, f"http://127.0.0.1:{self.port}{path}", content=content, headers=headers)

    def raw(self, sent: bytes, seconds: float = 5.0) -> bytes:
        """What comes back for bytes that no client library would send, until the server closes or is silent."""
        with self.connect() as client:
            client.settimeout(seconds)
            client.sendall(sent)
            parts = []
            with suppress(TimeoutError, ConnectionError):
                while part := client.recv(65_536):
                    parts.append(part)
        return b"".join(parts)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def assert_well(self, within: float = 30.0) -> None:
        """It answers, and gave its files back."""
        assert self.ask("GET", "/health").status_code == 200
        deadline = time.monotonic() + within
        while (files := psutil.Process(self.process.pid).num_fds()) > self.files + 8:
            assert time.monotonic() < deadline, f"{files} open files, {self.files} at the start"
            time.sleep(0.2)


def refused(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, f"{answer.status_code} {answer.text[:200]}"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert "Traceback" not in answer.text and str(ROOT) not in answer.text


def keys(scan: Scan) -> str:
    """All but the page and /health ask for the key; wrong ones differ in nothing, not in time either."""
    paths = [("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("POST", "/v1/chat/completions"),
             ("POST", "/v1/completions"), ("POST", "/v1/responses"), ("POST", "/v1/embeddings"),
             ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter")]  # fmt: skip
    half = len(scan.key) // 2
    wrong = ["", "Bearer", f"Basic {scan.key}", f"Bearer {scan.key[:-1]}", f"Bearer {scan.key}x",
             f"Bearer {scan.key.swapcase()}", f"Bearer {scan.key[:half]}\x80", "Bearer null"]  # fmt: skip
    for method, path in paths:
        for given in wrong:
            with httpx.Client() as http:
                headers = [(b"authorization", given.encode("latin-1")), (b"content-type", b"application/json")]
                url = f"http://127.0.0.1:{scan.port}{path}"
                refused(http.request(method, url, headers=headers, content=b"{}" if method == "POST" else None), 401)
    assert scan.ask("GET", "/v1/models").status_code == 200
    swap = {True: "A", False: "B"}
    first = swap[scan.key[0] != "A"] + scan.key[1:]
    last = scan.key[:-1] + swap[scan.key[-1] != "A"]
    took: dict[str, list[float]] = {first: [], last: []}
    with httpx.Client() as http:
        for _ in range(300):
            for given, seconds in took.items():
                began = time.perf_counter()
                http.get(f"http://127.0.0.1:{scan.port}/v1/models", headers={"authorization": f"Bearer {given}"})
                seconds.append(time.perf_counter() - began)
    apart = 1e6 * (statistics.median(took[last]) - statistics.median(took[first]))
    spread = 1e6 * statistics.median(abs(s - statistics.median(took[first])) for s in took[first])
    assert abs(apart) < 2 * spread + 20, f"a key that is wrong at its end takes {apart:.0f} us longer"
    return f"{len(paths) * len(wrong)} wrong keys refused; wrong at the end {apart:+.0f} us (spread {spread:.0f} us)"


def hosts(scan: Scan) -> str:
    """Only this machine can reach it; without a key other names are refused; no page elsewhere may read it."""
    kinds = {c.laddr.ip for c in psutil.Process(scan.process.pid).net_connections() if c.status == "LISTEN"}
    assert kinds == {"127.0.0.1"}, kinds
    toy = str(scan.folder / "toy/recovery")
    environment = {k: v for k, v in os.environ.items() if k != "OPENAFM_API_KEY"}
    for options in (["--host", "0.0.0.0"], ["--api-key", " "], ["--cors", "*"], ["--host", "::"]):
        done = subprocess.run(
            [sys.executable, "-m", "openafm", "serve", toy, "--port", "0", *options],
            capture_output=True, text=True, env=environment, timeout=600,
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    answer = scan.ask("GET", "/v1/models", origin="https://evil.example")
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert scan.ask("OPTIONS", "/v1/models", origin="https://evil.example").status_code == 405
    scan.stop()
    scan.start(key=False)
    for host in ("evil.example", "127.0.0.1.evil.example", "[::1", "localhost@evil.example", ""):
        refused(scan.ask("GET", "/v1/models", host=host), 400 if not host else 403, 403)
    assert scan.ask("GET", "/v1/models", host="localhost:9").status_code == 200
    scan.stop()
    scan.start()
    return "listens on 127.0.0.1 alone; no key, no other host; 4 unsafe starts and 5 other names refused; no CORS"


def limits(scan: Scan) -> str:
    """Bodies, heads, numbers and nesting beyond measure."""
    chat = {"model": "toy-recovery", "messages": [{"role": "user", "content": SECRET_PROMPT}], "max_tokens": 2}
    path = "/v1/chat/completions"
    assert scan.ask("POST", path, chat).status_code == 200
    refused(scan.ask("POST", path, b"{" + b" " * (1 << 20) + b"}"), 413)
    tries: list[Any] = [
        b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"", b"null", b"[]", b'{"model": 1e999}', b"{" + b'"a":1,' * 9,
        chat | {"max_tokens": 10**30}, chat | {"n": 9}, chat | {"temperature": -1}, chat | {"top_k": 2**70},
        chat | {"messages": [{"role": "user", "content": "a " * 100_000}]}, chat | {"messages": []},
        chat | {"stop": ["a" * 10_000]}, chat | {"seed": -1}, chat | {"model": "../../etc/passwd"},
        chat | {"messages": chat["messages"] * 9_000}, chat | {"logit_bias": {"1": 100}}, chat | {"user_": "x"},
    ]  # fmt: skip
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(400):
        deep = {"type": "object", "properties": {"a": deep}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": deep}}
    for body in tries:
        refused(scan.ask("POST", path, body), 400, 404)
    answer = scan.ask("POST", path, chat | {"response_format": form})
    assert answer.status_code in (200, 400), answer.text
    bomb = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 50}}, "$ref": "#/$defs/a"}
    form["json_schema"]["schema"] = bomb
    assert scan.ask("POST", path, chat | {"response_format": form}).status_code in (200, 400)
    refused(scan.ask("POST", path, b"{}", **{"content-type": "text/plain"}), 415)
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"
    assert cut_off(scan.raw(head), 400)
    assert cut_off(scan.raw(b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"), 400)
    endless = b"POST %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
    endless %= (path.encode(), scan.key.encode())
    chunks = b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 65_536 + b"\r\n") * 40
    assert cut_off(scan.raw(endless + chunks), 413)
    scan.assert_well()
    return f"{len(tries) + 6} requests beyond the limits refused or answered, none the server's failure"


def cut_off(answer: bytes, status: int) -> bool:
    """Refused; the answer may be lost where the server closes before it has read all."""
    return answer.startswith(b"HTTP/1.1 %d " % status) or not answer


def traversal(scan: Scan) -> str:
    """Paths and names that would leave their folders; methods that there are not."""
    paths = ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd",
             "/v1/models/..%2f..%2fheader.json", "/static/../../secret", "/\\..\\etc\\passwd", "/%00", "/.git/config",
             "/docs", "/redoc"]  # fmt: skip
    for path in paths:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {scan.key}\r\n"
        answer = scan.raw(f"{head}Connection: close\r\n\r\n".encode())
        assert re.match(rb"HTTP/1.1 (404|400) ", answer), answer[:200]
        assert b"root:" not in answer
    names = ["../summary", "a/b", "..", ".", "", "/etc", "a" * 65, "summary\0", "sum\nmary", "\u202esummary"]
    for name in names:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            refused(scan.ask("POST", path, {"lora_name": name}), 400)
        body = {"model": f"toy-recovery:{name}", "prompt": "a", "max_tokens": 1}
        assert scan.ask("POST", "/v1/completions", body).status_code in (400, 404) or not name
    for method in ("PUT", "DELETE", "TRACE", "CONNECT", "PATCH"):
        answer = scan.raw(f"{method} /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert re.match(rb"HTTP/1.1 (405|400|404) ", answer), answer[:200]
    return f"{len(paths)} paths, {len(names)} names of adapters and 5 methods refused"


def smuggling(scan: Scan) -> str:
    """Bodies with two lengths and heads that proxies read otherwise: refused, and nothing after them is a request."""
    tail = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + scan.key.encode() + b"\r\n\r\n"
    start = b"POST /health HTTP/1.1\r\nHost: localhost\r\n"
    tries = {
        "both lengths": start + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": start + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
        "lengths in a list": start + b"Content-Length: 0, 5\r\n\r\n",
        "a signed length": start + b"Content-Length: +0\r\n\r\n",
        "a length in hexadecimal": start + b"Content-Length: 0x0\r\n\r\n",
        "an unknown coding": start + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "two codings": start + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "a blank before the colon": start + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "a vertical tab": start + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "a NUL in a header": start + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
        "a bare CR in a header": start + b"X: a\rContent-Length: 0\r\n\r\n",
        "a size of no chunk": start + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n0\r\n\r\n",
        "a chunk longer than it says": start + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        "no host": b"GET /health HTTP/1.1\r\n\r\n",
        "no version": b"GET /health\r\n\r\n",
    }
    for name, sent in tries.items():
        answer = scan.raw(sent + tail, 3.0)
        statuses = re.findall(rb"HTTP/1\.1 (\d+) ", answer)
        assert statuses[:1] == [b"400"], f"{name}: {answer[:200]!r}"
        assert len(statuses) == 1 and b"openafm_requests_total" not in answer, f"{name}: {len(statuses)} answers"
    two = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2
    assert scan.raw(two, 2.0).count(b"HTTP/1.1 200") == 2, "two honest requests on one connection"
    return f"{len(tries)} ambiguous requests refused and their connections closed"


def slow(scan: Scan) -> str:
    """Slow-loris: heads and bodies a byte at a time; others are answered meanwhile, and the slow are cut off."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    body = head + b"Authorization: Bearer %b\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
    body %= (scan.key.encode(),)
    clients = [scan.connect() for _ in range(200)]
    for number, client in enumerate(clients):
        client.sendall(body if number % 2 else head)
    began, slowest = time.monotonic(), 0.0
    closed: dict[int, float] = {}
    while len(closed) < len(clients):
        assert time.monotonic() - began < 60, f"{len(clients) - len(closed)} slow clients are still on"
        time.sleep(1.0)
        for number, client in enumerate(clients):
            if number not in closed and not dripped(client, b" " if number % 2 else b"X"):
                closed[number] = time.monotonic() - began
        asked = time.monotonic()
        assert scan.ask("GET", "/v1/models").status_code == 200
        slowest = max(slowest, time.monotonic() - asked)
    for client in clients:
        client.close()
    scan.assert_well()
    assert slowest < 5, f"an honest request took {slowest:.1f} s meanwhile"
    heads, bodies = (max(closed[n] for n in range(side, len(clients), 2)) for side in (0, 1))
    return f"200 clients: slow heads cut off within {heads:.0f} s, bodies {bodies:.0f} s; others within {slowest:.2f} s"


def dripped(client: socket.socket, byte: bytes) -> bool:
    """Send one more byte; whether the server still listens."""
    client.setblocking(False)
    try:
        client.sendall(byte)
        client.recv(1_000)  # an answer, or the end
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def idle(scan: Scan) -> str:
    """As many idle connections as this machine lets us open; others are answered, and all are given back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = min(scan.connections, hard - SPARE)
    process = psutil.Process(scan.process.pid)
    before, clients = process.memory_info().rss, []
    try:
        for _ in range(wanted):
            clients.append(scan.connect())
        time.sleep(1.0)
        held, memory = process.num_fds() - scan.files, process.memory_info().rss - before
        times = []
        for _ in range(20):
            began = time.monotonic()
            assert scan.ask("GET", "/v1/models").status_code == 200
            times.append(time.monotonic() - began)
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    scan.assert_well()
    note = "" if wanted == scan.connections else f" (of {scan.connections:,}: the limit of files is {hard:,})"
    return (
        f"{len(clients):,} opened{note}, {held:,} held at a time, {memory / max(1, held) / 1000:.1f} kB each; others "
        f"answered within {max(times):.2f} s"
    )


def queue(scan: Scan) -> str:
    """More requests than may wait: 429 for the rest, at once; clients that leave give up their places."""
    body = {"model": "toy-recovery", "prompt": "a", "max_tokens": 200, "n": 8, "temperature": 1}
    statuses: list[int] = []

    def one() -> None:
        with suppress(httpx.HTTPError):
            statuses.append(scan.ask("POST", "/v1/completions", body).status_code)

    threads = [threading.Thread(target=one) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429} and statuses.count(429) and statuses.count(200), statuses
    leavers = [scan.connect() for _ in range(40)]
    sent = json.dumps(body | {"stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {scan.key}\r\n"
    for client in leavers:
        client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent)
        client.close()
    deadline = time.monotonic() + 60
    while not re.search(r"^openafm_running 0\b", scan.ask("GET", "/metrics").text, re.M):
        assert time.monotonic() < deadline, "answers of clients that left are still being made"
        time.sleep(0.2)
    scan.assert_well()
    return f"60 at once: {statuses.count(200)} answered, {statuses.count(429)} told to come again; 40 that left gave up"


def pages(scan: Scan) -> str:
    """The page runs only its own files, and what a client sends comes back as data, never as a page."""
    answer = scan.ask("GET", "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy, policy
    assert "frame-ancestors 'none'" in policy and answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|javascript:|style=", answer.text), "the page has inline code"
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", answer.text), "the page asks elsewhere"
    script = "<script>alert(1)</script>"
    for path in (f"/v1/models/{script}", f"/{script}"):
        answer = scan.ask("GET", path)
        assert answer.headers["content-type"] == "application/json", answer.headers
    return "a policy without exceptions, no inline code, nothing asked elsewhere; scripts come back as JSON"


def logs(scan: Scan) -> str:
    """Nothing that was written holds the key, a wrong key, a prompt or an answer."""
    wrong = secrets.token_urlsafe(24)
    scan.ask("GET", "/v1/models", authorization=f"Bearer {wrong}")
    scan.ask("GET", f"/v1/models?key={wrong}")
    body = {"model": "toy-recovery", "messages": [{"role": "user", "content": SECRET_PROMPT}], "max_tokens": 4}
    answer = scan.ask("POST", "/v1/chat/completions", body)
    scan.ask("POST", "/v1/chat/completions", body | {"messages": [{"role": SECRET_PROMPT, "content": ""}]})
    scan.ask("POST", "/v1/chat/completions", json.dumps(body).encode()[:-5])
    deadline = time.monotonic() + 10
    while answer.json()["id"] not in scan.logged():
        assert time.monotonic() < deadline, "the request is not in the log"
        time.sleep(0.1)
    for secret in (scan.key, wrong, SECRET_PROMPT):
        assert secret not in scan.logged(), "a secret is in the log"
    told = psutil.Process(scan.process.pid).cmdline()
    assert scan.key not in " ".join(told), "the key is in the command line"
    assert "Traceback" not in scan.logged(), scan.logged()[-2_000:]
    return f"{len(scan.logged().splitlines())} lines of log without keys, prompts or tracebacks"


CHECKS: dict[str, Callable[[Scan], str]] = {
    "keys": keys, "hosts": hosts, "limits": limits, "traversal": traversal, "smuggling": smuggling, "pages": pages,
    "queue": queue, "slow": slow, "idle": idle, "logs": logs,
}  # fmt: skip


@contextmanager
def scanned(folder: Path, connections: int = 10_000) -> Iterator[Scan]:
    """A server to scan."""
    from tests.toy import toy_run

    toy_run(folder / "toy")
    scan = Scan(folder, connections)
    scan.start()
    try:
        yield scan
    finally:
        scan.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", help=f"{' '.join(CHECKS)} [all of them]")
    parser.add_argument("--connections", type=int, default=10_000, help="idle ones")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    failed = False
    with (
        TemporaryDirectory(prefix="openafm-scan-") as folder,
        scanned(Path(folder), options.connections) as scan,
    ):
        for name in options.checks or CHECKS:
            began = time.monotonic()
            try:
                outcome = CHECKS[name](scan)
                assert scan.process.poll() is None, f"the server ended: {scan.logged()[-2_000:]}"
            except (AssertionError, httpx.HTTPError, OSError, subprocess.TimeoutExpired) as error:
                failed, outcome = True, f"FAILED: {type(error).__name__} {error}"
            print(f"{name:<10} {time.monotonic() - began:>6.0f} s  {outcome}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
