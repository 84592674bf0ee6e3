"""A tiny run with a chat model and a package of two adapters, and a real server of it on a free port."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import openai
import pytest
import uvicorn
from tests.toy import toy_run

from openafm.engine import TorchEngine
from openafm.serving.opening import open_model
from openafm.serving.server import Limits, create_app


class Gated(TorchEngine):
    """Makes a token for each `permits.release()`, and counts those it made; `fail_at` breaks it there."""

    def choices(self, *args, **options):
        for choice in super().choices(*args, **options):
            self.permits.acquire()
            if self.made == self.fail_at:
                raise RuntimeError("the engine broke")
            self.made += 1
            yield choice


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run with a finished teacher, an unfinished SFT, and an unfinished package with two adapters."""
    return toy_run(tmp_path_factory.mktemp("run") / "toy")


def client(url, key="unused"):
    """OpenAI's own, which does not ask twice."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def listening(opened, key=None, limits=Limits(), adapters=None, **options):
    """Serve a model on a free port of the loopback."""
    return serving(create_app(opened, key, limits, adapters, **options))


@contextmanager
def serving(app):
    """Serve an app on a free port of the loopback; yields the address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def opened(run):
    """The run's package with its adapters, loaded once a module."""
    return open_model(run / "recovery")


@pytest.fixture
def gated(run):
    """A server of a gated engine, with one place in its queue."""
    engine = Gated.load(run / "sft")
    engine.permits, engine.made, engine.fail_at = threading.Semaphore(0), 0, None
    with listening(replace(open_model(run / "sft"), engine=engine), limits=Limits(queue=1)) as url:
        yield engine, url
        engine.permits.release(10_000)
