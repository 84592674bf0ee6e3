"""HTTP below the protocol: bodies within limits, clients that leave, errors in OpenAI's shape."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from openafm.serving.accounting import LEFT, record
from openafm.serving.body import ApiError
from openafm.serving.worker import Job

Result = TypeVar("Result")
BODY_BYTES, BODY_SECONDS = 1 << 20, 30


async def read_body(request: Request) -> bytes:
    """Read the body, which must be JSON (a form could be sent by any page) and not too long or slow."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "send the header Content-Type: application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > BODY_BYTES:
                    raise ApiError(413, f"the body is longer than {BODY_BYTES} bytes", code="body_too_long")
    except TimeoutError:
        raise ApiError(408, f"the body took longer than {BODY_SECONDS} s") from None
    return bytes(body)


async def unless_gone(request: Request, wanted: Awaitable[Result]) -> Result:
    """Await something for a client. Raises ClientDisconnect as soon as the client has left."""

    async def leaves() -> None:
        """Return when the client has left, never before."""
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving, doing = asyncio.ensure_future(leaves()), asyncio.ensure_future(wanted)
    try:
        await asyncio.wait({leaving, doing}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        leaving.cancel()
        doing.cancel()


class EventStream(StreamingResponse):
    """Server-sent events that stop their jobs when the client leaves, or the server ends."""

    def __init__(self, events: AsyncIterator[bytes], jobs: Sequence[Job]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send; whatever ends it ends the jobs."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for job in self._jobs:
                job.stop()


def answer_errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape."""

    def refused(request: Request, error: Exception) -> Response:
        """Answer an ApiError with its own status and body, and note it for the log."""
        assert isinstance(error, ApiError)
        record(request).fail(error)
        return to_json(error.body(), error.status)

    def routed(_: Request, error: Exception) -> Response:
        """Answer what the router refuses: an unknown path, or a method that it does not take."""
        assert isinstance(error, HTTPException)
        response = to_json(ApiError(error.status_code, str(error.detail)).body(), error.status_code)
        response.headers.update(error.headers or {})  # which methods are allowed
        return response

    def left(_: Request, __: Exception) -> Response:
        """Note that the client has left; nobody reads this response."""
        return Response(status_code=LEFT)

    def failed(_: Request, __: Exception) -> Response:
        """Answer 500 for an error that nobody foresaw, and tell the client nothing of it."""
        return to_json(ApiError(500, "the server failed; its log says why").body(), 500)

    handlers: dict[type[Exception], Callable[[Request, Exception], Response]] = {
        ApiError: refused, HTTPException: routed, ClientDisconnect: left, Exception: failed,
    }  # fmt: skip
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def to_json(content: dict[str, Any], status: int = 200) -> Response:
    """A JSON response with the headers that its status asks for."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}.get(status)
    return Response(orjson.dumps(content), status, headers, "application/json")
