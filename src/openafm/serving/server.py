"""`openafm serve MODEL`: OpenAI's protocol over HTTP, each adapter a model, and a page at / to talk to it.

The native engine makes up to 16 answers together, whatever their adapters, torch one; others wait in a short queue. A
client that leaves stops its answer.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from openafm.sampling.sampler import prompt_tokens
from openafm.serving.adapters import Adapters, Fetched, Unusable
from openafm.serving.answer import Answer
from openafm.serving.metrics import MEDIA_TYPE, Metrics
from openafm.serving.opening import Opened, open_model
from openafm.serving.replies import Reply
from openafm.serving.requests import ApiError, ChatCompletion, Completion, LoraAdapter, TextCompletion, parse
from openafm.serving.transport import Counting, EventStream, answer_errors, read_body, to_json, unless_gone
from openafm.serving.worker import Busy, Job, Stopped, Worker

STOPPING = "the server is stopping"
KNOWN = 20
"""Most model ids that an error lists."""
CLOSE_SECONDS = 3
"""How long a stopped server waits for connections before it cuts them."""


@dataclass(frozen=True)
class Limits:
    """What one client may take from the others."""

    queue: int = 8
    """Requests that may wait; the next one is refused."""
    seconds: float = 300.0
    """Time of a request, its wait included."""
    in_memory: int = 64
    """Adapters of the folder that are kept in memory."""


class Serving:
    """One model behind HTTP: the state that requests share."""

    def __init__(self, opened: Opened, key: str | None, limits: Limits, adapters: Path | None):
        self.opened, self.engine, self.key, self.limits = opened, opened.engine, key, limits
        self.adapters = Adapters(self.engine, adapters, limits.in_memory)
        self.worker = Worker(self.engine, self.adapters, limits.queue)
        self.metrics = Metrics()
        self.created = int(time.time())

    def models(self) -> list[str]:
        """All model ids, the one to use unless another is asked for first."""
        adapters = [self.opened.adapter, None, *self.adapters.names()]
        return [self._id(adapter) for adapter in dict.fromkeys(adapters)]

    def model(self, name: str) -> dict[str, Any]:
        """OpenAI's model object, and what a client may want to know. Raises ApiError for an unknown name."""
        adapter = self.adapter(name)
        about = {"id": name, "object": "model", "created": self.created, "owned_by": "openafm"}
        extra = {"adapter": adapter, "max_length": self.engine.max_length, "chat": self.opened.talks}
        return about | extra | self.adapters.about(adapter)

    def adapter(self, name: str) -> str | None:
        """The adapter that a model id stands for. Raises ApiError for an unknown one."""
        model, colon, adapter = name.partition(":") if name != self.opened.name else (name, "", "")
        if model == self.opened.name and (not colon or adapter in self.adapters):
            return adapter or None
        known = self.models()
        some = ", ".join(known[:KNOWN]) + (f" and {len(known) - KNOWN} more" if len(known) > KNOWN else "")
        raise ApiError(404, f"no model called {name!r}; there are: {some}", "model", "model_not_found")

    def _id(self, adapter: str | None) -> str:
        return self.opened.name if adapter is None else f"{self.opened.name}:{adapter}"

    def load(self, asked: LoraAdapter) -> dict[str, Any]:
        """Let requests name an adapter of the folder; returns its model object."""
        try:
            self.adapters.add(asked.lora_name)
        except ValueError as error:
            raise ApiError(400, str(error), "lora_name") from None
        return self.model(self._id(asked.lora_name))

    def unload(self, asked: LoraAdapter) -> dict[str, Any]:
        """Let requests name it no more; returns what OpenAI says of a deleted model."""
        try:
            self.adapters.drop(asked.lora_name)
        except ValueError as error:
            raise ApiError(400, str(error), "lora_name") from None
        return {"id": self._id(asked.lora_name), "object": "model", "deleted": True}

    async def admit(self, request: Request) -> None:
        """Raise ApiError unless the client may ask: by the key, or, without one, from a page of this machine."""
        if self.key is None:  # else a page anywhere could have its name point here and read the answers
            if not is_loopback(_host(request)):
                raise ApiError(403, "without an API key this server answers to localhost only", code="host")
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), self.key.encode()):
            raise ApiError(401, "wrong or missing API key: send Authorization: Bearer KEY", code="invalid_api_key")

    async def respond(self, request: Request, asked: ChatCompletion | TextCompletion) -> Response:
        """Queue the answers, wait for the first piece so that errors still have a status, then send it."""
        adapter = self.adapter(asked.model)
        answers = await self._answers(asked, adapter)
        reply = Reply(asked.model, chat=isinstance(asked, ChatCompletion))
        jobs: list[Job] = []
        handed_on = False
        try:
            fetched = await run_in_threadpool(self.adapters.fetch, adapter)
            jobs = self._submit(asked.model, answers, fetched)
            if not asked.stream:
                texts = await unless_gone(request, asyncio.gather(*map(_joined, jobs)))
                return to_json(reply.whole(texts, answers))
            first = await unless_gone(request, anext(jobs[0]))
            handed_on = True
            return EventStream(_events(reply, jobs, first, asked.stream_options.include_usage), jobs)
        except TimeoutError as error:
            raise ApiError(503, f"{error}: try again later", code="timeout") from None
        except MemoryError:
            raise ApiError(503, "no memory is left for this answer: try again later", code="out_of_memory") from None
        except Unusable as error:
            raise ApiError(503, str(error), "model", "adapter_unusable") from None
        except Stopped:
            raise ApiError(503, STOPPING, code="stopping") from None
        finally:
            if not handed_on:
                for job in jobs:
                    job.stop()

    async def _answers(self, asked: ChatCompletion | TextCompletion, adapter: str | None) -> list[Answer]:
        """Everything that can be refused is refused here."""
        until = time.monotonic() + self.limits.seconds
        try:
            prompt = await run_in_threadpool(prompt_tokens, self.engine.tokenizer, asked.text())
        except ValueError as error:
            raise ApiError(400, str(error), "messages") from None
        options = asked.cuts()
        try:
            if (grammar := await run_in_threadpool(asked.response_format.grammar)) is not None:
                options["grammar"] = grammar
        except ValueError as error:
            raise ApiError(400, str(error), "response_format", "unsupported_value") from None
        if unknown := sorted(options.keys() - self.engine.options):
            name = {"grammar": "response_format"}.get(unknown[0], unknown[0])
            message = f"{name}: this engine does not carry it out: leave it out, or build the native engine"
            raise ApiError(400, message, name, "unsupported_value")
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        return [
            Answer(
                self.engine.tokenizer,
                prompt,
                max_tokens=_room(asked, len(prompt), self.engine.max_length),
                temperature=asked.temperature,
                seed=(seed + index) % 2**63,
                adapter=adapter,
                stop=asked.stop,
                until=until,
                **options,
            )
            for index in range(asked.n)
        ]

    def _submit(self, model: str, answers: list[Answer], fetched: Fetched | None) -> list[Job]:
        asked_at = time.monotonic()

        def over(job: Job) -> None:
            began = job.began or time.monotonic()
            self.metrics.add("openafm_queue_seconds_total", began - asked_at, model=model)
            if job.began:
                self.metrics.add("openafm_prompt_tokens_total", len(job.answer.prompt), model=model)
                self.metrics.add("openafm_completion_tokens_total", job.answer.tokens, model=model)
                self.metrics.add("openafm_generation_seconds_total", job.ended - job.began, model=model)

        try:
            return self.worker.submit(answers, over, fetched)
        except Busy:
            message = f"{self.worker.waiting} requests are waiting already: try again later"
            raise ApiError(429, message, code="queue_full") from None


def _room(asked: Completion, prompt: int, longest: int) -> int:
    """Tokens the answer may have. Raises ApiError where prompt and answer do not fit the model."""
    wanted = 1 if asked.limit is None else asked.limit
    if prompt + wanted > longest:
        message = (
            f"this model's maximum context length is {longest} tokens, and the prompt's {prompt} with an answer of "
            f"{wanted} exceed it: shorten the prompt or lower max_tokens"
        )
        raise ApiError(400, message, "messages" if prompt >= longest else "max_tokens", "context_length_exceeded")
    return asked.limit or longest - prompt


async def _joined(job: Job) -> str:
    return "".join([piece async for piece in job])


async def _pieces(jobs: Sequence[Job]) -> AsyncIterator[tuple[int, str | None]]:
    """The pieces of all answers as they come, with the answer's number; None ends one."""
    coming = {asyncio.ensure_future(anext(job, None)): index for index, job in enumerate(jobs)}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for future in sorted(done, key=coming.__getitem__):
                index, text = coming.pop(future), future.result()
                if text is not None:
                    coming[asyncio.ensure_future(anext(jobs[index], None))] = index
                yield index, text
    finally:
        for future in coming:
            future.cancel()


async def _events(reply: Reply, jobs: Sequence[Job], first: str, counts: bool) -> AsyncIterator[bytes]:
    answers = [job.answer for job in jobs]

    def event(chunk: dict[str, Any]) -> bytes:
        return b"data: " + orjson.dumps(chunk | {"usage": None} if counts and "usage" not in chunk else chunk) + b"\n\n"

    for chunk in reply.first(len(jobs)):
        yield event(chunk)
    try:
        if first:
            yield event(reply.piece(0, first))
        async for index, text in _pieces(jobs):
            if text is None:
                yield event(reply.last(index, answers[index]))
            elif text:
                yield event(reply.piece(index, text))
    except Stopped:
        yield event(ApiError(503, STOPPING, code="stopping").body())
        return
    except Exception:  # the status is sent already: the protocol tells errors in the stream
        yield event(ApiError(500, "the engine failed in the middle of the answer").body())
        raise
    if counts:
        yield event(reply.counts(answers))
    yield b"data: [DONE]\n\n"


def create_app(
    opened: Opened, key: str | None = None, limits: Limits = Limits(), adapters: Path | None = None
) -> FastAPI:
    """Build the server of an opened model; where there is a `key`, all but `/` and `/health` ask for it.

    Requests may also name the adapters of a folder, which come and go while the server runs.
    """
    serving = Serving(opened, key, limits, adapters)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        serving.worker.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.worker = serving.worker
    app.add_middleware(Counting, metrics=serving.metrics)
    answer_errors(app)
    _add_routes(app, serving)
    return app


def _add_routes(app: FastAPI, serving: Serving) -> None:
    admitted = [Depends(serving.admit)]
    page, headers = _page()

    @app.post("/v1/chat/completions", dependencies=admitted)
    async def chat_completions(request: Request) -> Response:
        return await serving.respond(request, parse(ChatCompletion, await read_body(request)))

    @app.post("/v1/completions", dependencies=admitted)
    async def completions(request: Request) -> Response:
        return await serving.respond(request, parse(TextCompletion, await read_body(request)))

    @app.get("/v1/models", dependencies=admitted)
    async def models() -> Response:
        return to_json({"object": "list", "data": [serving.model(name) for name in serving.models()]})

    @app.get("/v1/models/{name}", dependencies=admitted)
    async def model(name: str) -> Response:
        return to_json(serving.model(name))

    @app.post("/v1/load_lora_adapter", dependencies=admitted)
    async def load(request: Request) -> Response:
        return to_json(serving.load(parse(LoraAdapter, await read_body(request))))

    @app.post("/v1/unload_lora_adapter", dependencies=admitted)
    async def unload(request: Request) -> Response:
        return to_json(serving.unload(parse(LoraAdapter, await read_body(request))))

    @app.get("/metrics", dependencies=admitted)
    async def metrics() -> Response:
        gauges = {
            "openafm_running": serving.worker.running,
            "openafm_waiting": serving.worker.waiting,
            "openafm_adapters_in_memory": serving.adapters.in_memory,
            "openafm_adapter_loads_total": serving.adapters.loads,
        }
        return Response(serving.metrics.text(gauges), media_type=MEDIA_TYPE)

    @app.get("/health")
    async def health() -> Response:
        return to_json({"status": "ok"})

    @app.get("/")
    async def web() -> Response:
        return Response(page, media_type="text/html", headers=headers)


def _page() -> tuple[bytes, dict[str, str]]:
    """The web page, and headers under which only its own script runs and nothing is asked elsewhere."""
    page = resources.files("openafm.serving").joinpath("page.html").read_bytes()

    def digest(tag: bytes) -> str:
        inline = re.search(rb"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)
        assert inline
        return f"'sha256-{base64.b64encode(hashlib.sha256(inline[1]).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {digest(b'script')}; style-src {digest(b'style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _host(request: Request) -> str:
    """The name by which the client called this server."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can mean itself by `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(uvicorn.Server):
    """Stops the answers that are being made before it waits for its connections."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        assert isinstance(self.config.app, FastAPI)
        self.config.app.state.worker.stop()
        await super().shutdown(sockets)


def serve(folder: Path, host: str, port: int, key: str | None, limits: Limits, adapters: Path | None = None) -> None:
    """Serve the best model in `folder` until interrupted.

    Raises ValueError where others could reach the server without a key, OSError where the port is taken.
    """
    if key is not None and not key.strip():
        raise ValueError("the API key is empty: give one, or none (then only this machine may ask)")
    if key is None and not is_loopback(host):
        raise ValueError(f"others can reach {host}: set OPENAFM_API_KEY or --api-key, or serve on 127.0.0.1")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        opened = open_model(folder)
        app = create_app(opened, key, limits, adapters)
        place = f"[{host}]" if ":" in host else host
        carried = ", ".join(opened.engine.adapters()) or "none"
        print(f"model {opened.path} as {opened.name}, adapters: {carried}")
        print(f"http://{place}:{listener.getsockname()[1]}  the page; …/v1 for clients. Ctrl-C stops.", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=CLOSE_SECONDS)
        _Server(config).run(sockets=[listener])
