"""Connections that say nothing, too many of them, and requests that proxies may read otherwise."""

import resource
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from openafm.serving.connections import OneLength, connection_class, most_connections

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@contextmanager
def serving(most, seconds):
    """An app of one path; yields a function that connects to it."""
    app = FastAPI()
    app.add_middleware(OneLength)
    app.add_api_route("/health", lambda: {"status": "ok"})
    config = uvicorn.Config(app, port=0, log_level="critical", http=connection_class(most, seconds))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield lambda: socket.create_connection(server.servers[0].sockets[0].getsockname(), 30)
    finally:
        server.should_exit = True
        thread.join()


def answer(client, sent=b""):
    """All that comes until the server closes."""
    client.sendall(sent)
    parts = []
    try:
        while part := client.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def healthy(client):
    """Ask, and read the answer to its end."""
    client.sendall(HEAD + b"\r\n")
    found = b""
    while not found.endswith(b'{"status":"ok"}'):
        part = client.recv(65_536)
        assert part, found
        found += part


@pytest.mark.parametrize("sent", [b"", b"GET /hea", HEAD])
def test_a_head_that_does_not_come_ends_the_connection(sent):
    with serving(10, 0.2) as connect, connect() as client:
        assert answer(client, sent) == b""


def test_an_answered_connection_waits_for_the_next_head_and_no_longer():
    with serving(10, 0.3) as connect, connect() as client:
        healthy(client)
        healthy(client)
        assert answer(client, HEAD) == b""


def test_one_connection_too_many_is_closed_and_a_place_that_is_free_is_taken():
    with serving(2, 30) as connect:
        kept = [connect() for _ in range(2)]
        for client in kept:
            healthy(client)
        with connect() as third, pytest.raises((AssertionError, OSError)):
            assert b"200 OK" in answer(third, HEAD + b"\r\n")
        for client in kept:
            client.close()
        for _ in range(100):
            with connect() as client:
                if b"200 OK" in answer(client, HEAD + b"Connection: close\r\n\r\n"):
                    break
            time.sleep(0.05)
        else:
            raise AssertionError("no place became free")


def test_two_lengths_of_a_body_are_refused_and_nothing_after_them_is_read():
    with serving(10, 5) as connect, connect() as client:
        both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        found = answer(client, HEAD + both + HEAD + b"\r\n")
    assert found.startswith(b"HTTP/1.1 400 ") and found.count(b"HTTP/1.1") == 1 and b"not both" in found


def test_files_are_left_for_other_things(monkeypatch):
    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_024, 20_000))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: set_to.append(limits))
    assert most_connections() == 20_000 - 128 and set_to == [(20_000, 20_000)]
