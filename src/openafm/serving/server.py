"""`openafm serve MODEL`: OpenAI's protocol over HTTP, each adapter a model, and a page at / to talk to it.

The native engine makes up to 16 answers together, whatever their adapters, torch one; others wait in a short queue. A
client that leaves stops its answer.
"""

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware

from openafm.serving.accounting import Accounting
from openafm.serving.body import parse
from openafm.serving.connections import OneLength, configuration
from openafm.serving.document import document
from openafm.serving.embeddings import EmbeddingRequest
from openafm.serving.metrics import MEDIA_TYPE
from openafm.serving.opening import Opened, open_model
from openafm.serving.pages import add_page
from openafm.serving.requests import ChatCompletion, LoraAdapter, TextCompletion
from openafm.serving.responses import ResponseRequest
from openafm.serving.service import Limits, Serving, is_loopback
from openafm.serving.transport import answer_errors, read_body, to_json

CLOSE_SECONDS = 3
"""How long a stopped server waits for connections before it cuts them."""


def create_app(
    opened: Opened,
    key: str | None = None,
    limits: Limits = Limits(),
    adapters: Path | None = None,
    *,
    cors: Sequence[str] = (),
    log: Callable[[str], None] | None = None,
) -> FastAPI:
    """Build the server of an opened model; where there is a `key`, all but `/` and `/health` ask for it.

    Requests may also name the adapters of a folder, which come and go while the server runs. Pages of the origins
    `cors` may ask too. `log` is given a line of JSON for each request. Raises ValueError for what is no origin.
    """
    allowed = [_origin(given) for given in cors]
    serving = Serving(opened, key, limits, adapters)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """End the worker when the server ends."""
        yield
        serving.worker.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.worker = serving.worker
    app.add_middleware(OneLength)
    app.add_middleware(Accounting, metrics=serving.metrics, log=log)
    if allowed:
        seen = ["x-request-id", "retry-after"]
        app.add_middleware(CORSMiddleware, allow_origins=allowed, allow_methods=["GET", "POST"], allow_headers=["*"],
                           expose_headers=seen)  # fmt: skip
    answer_errors(app)
    for add in (_add_answers, _add_models, _add_state):
        add(app, serving)
    add_page(app, "page")
    return app


def _origin(given: str) -> str:
    """An origin as browsers write it; never `*`, with which any page could use the server of who looks at it."""
    parts = urlsplit(given)
    exact = f"{parts.scheme}://{parts.netloc}".lower()
    if parts.scheme not in ("http", "https") or not parts.hostname or given.rstrip("/").lower() != exact:
        raise ValueError(
            f"--cors {given}: name each origin whole, such as https://app.example or http://localhost:3000"
        )
    return exact


def _add_answers(app: FastAPI, serving: Serving) -> None:
    """What is asked of the model."""
    admitted = [Depends(serving.admit)]

    @app.post("/v1/chat/completions", dependencies=admitted)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation, whole or as a stream."""
        return await serving.complete(request, parse(ChatCompletion, await read_body(request)))

    @app.post("/v1/completions", dependencies=admitted)
    async def completions(request: Request) -> Response:
        """Continue a prompt, whole or as a stream."""
        return await serving.complete(request, parse(TextCompletion, await read_body(request)))

    @app.post("/v1/responses", dependencies=admitted)
    async def responses(request: Request) -> Response:
        """Answer in the form of OpenAI's Responses API, whole or as a stream."""
        return await serving.respond(request, parse(ResponseRequest, await read_body(request)))

    @app.post("/v1/embeddings", dependencies=admitted)
    async def embeddings(request: Request) -> Response:
        """Answer with a vector for each text."""
        return await serving.embed(request, parse(EmbeddingRequest, await read_body(request)))


def _add_models(app: FastAPI, serving: Serving) -> None:
    """What models there are, and which adapters are among them."""
    admitted = [Depends(serving.admit)]

    @app.get("/v1/models", dependencies=admitted)
    async def models() -> Response:
        """List the base and its adapters as OpenAI's model objects."""
        return to_json({"object": "list", "data": [serving.model(name) for name in serving.models()]})

    @app.get("/v1/models/{name}", dependencies=admitted)
    async def model(name: str) -> Response:
        """Tell about one model; 404 where there is none of this name."""
        return to_json(serving.model(name))

    @app.post("/v1/load_lora_adapter", dependencies=admitted)
    async def load(request: Request) -> Response:
        """Let requests name an adapter of the folder."""
        return to_json(serving.load(parse(LoraAdapter, await read_body(request))))

    @app.post("/v1/unload_lora_adapter", dependencies=admitted)
    async def unload(request: Request) -> Response:
        """Let requests name an adapter no more."""
        return to_json(serving.unload(parse(LoraAdapter, await read_body(request))))


def _add_state(app: FastAPI, serving: Serving) -> None:
    """What the server tells about itself."""
    admitted = [Depends(serving.admit)]
    process = psutil.Process()

    @app.get("/metrics", dependencies=admitted)
    async def metrics() -> Response:
        """Tell counters and gauges in Prometheus's text format."""
        gauges = {
            "openafm_running": serving.worker.running,
            "openafm_waiting": serving.worker.waiting,
            "openafm_adapters_in_memory": serving.adapters.in_memory,
            "openafm_adapter_loads_total": serving.adapters.loads,
            "process_resident_memory_bytes": process.memory_info().rss,
            "process_open_fds": process.num_fds(),
        }
        return Response(serving.metrics.text(gauges), media_type=MEDIA_TYPE)

    @app.get("/openapi.json", dependencies=admitted)
    async def openapi() -> Response:
        """Describe the server as it is now, in OpenAPI's form."""
        return to_json(document(serving.models(), serving.engine.max_length, key=serving.key is not None))

    @app.get("/health")
    async def health() -> Response:
        """Tell anyone, without a key, that the server answers."""
        return to_json({"status": "ok"})


class _Server(uvicorn.Server):
    """Stops the answers that are being made before it waits for its connections."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the worker first, as connections stay open while it answers."""
        assert isinstance(self.config.app, FastAPI)
        self.config.app.state.worker.stop()
        await super().shutdown(sockets)


def serve(
    folder: Path,
    host: str,
    port: int,
    key: str | None,
    limits: Limits,
    adapters: Path | None = None,
    *,
    cors: Sequence[str] = (),
    log_json: bool = False,
) -> None:
    """Serve the best model in `folder` until interrupted; `log_json`: requests are logged on standard output.

    Raises ValueError where others could reach the server without a key, OSError where the port is taken.
    """
    if key is not None and not key.strip():
        raise ValueError("the API key is empty: give one, or none (then only this machine may ask)")
    if key is None and not is_loopback(host):
        raise ValueError(f"others can reach {host}: set OPENAFM_API_KEY or --api-key, or serve on 127.0.0.1")
    cors = [_origin(given) for given in cors]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        print("openafm serves as root and needs no such rights: start it as another user", file=sys.stderr)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        opened = open_model(folder)
        log = partial(print, flush=True) if log_json else None
        app = create_app(opened, key, limits, adapters, cors=cors, log=log)
        out = sys.stderr if log_json else sys.stdout  # a log is JSON only
        place = f"[{host}]" if ":" in host else host
        carried = ", ".join(opened.engine.adapters()) or "none"
        print(f"model {opened.path} as {opened.name}, adapters: {carried}", file=out)
        print(
            f"http://{place}:{listener.getsockname()[1]}  the page; …/v1 for clients. Ctrl-C stops.",
            file=out,
            flush=True,
        )
        _Server(configuration(app, timeout_graceful_shutdown=CLOSE_SECONDS)).run(sockets=[listener])
