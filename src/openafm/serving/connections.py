"""How a connection may be used: for how long without a request, how many at a time, and with one length of a body.

Slow or idle clients cost a file handle and nothing else: a connection whose next request's head is not there in time is
closed, and beyond what the process may open new ones are closed at once, so that files stay readable.
"""

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from openafm.serving.body import ApiError
from openafm.serving.transport import to_json

HEAD_SECONDS = 20.0
"""For the head of a request, from the connection's or the last answer's moment."""
KEPT_FILES = 128
"""Handles that connections leave for everything else."""
MOST_FILES = 65_536
"""Handles that a server asks the system for, where it may have so many."""


def most_connections() -> int:
    """Connections at a time: what this process may open, raised as far as the system allows, but `KEPT_FILES`."""
    try:
        import resource
    except ImportError:  # no such limit on Windows
        return 4_096
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(1, min(soft if soft != resource.RLIM_INFINITY else wanted, MOST_FILES) - KEPT_FILES)


def connection_class(most: int, head_seconds: float = HEAD_SECONDS) -> type[H11Protocol]:
    """Connections of which there are `most` at a time, and that wait so long for a head."""

    class Connection(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Take the connection and wait for its head, or end it at once where there are too many."""
            if len(self.connections) >= most:
                self.transport = transport
                transport.abort()
                return
            super().connection_made(transport)
            self._judge()

        def connection_lost(self, exc: Exception | None) -> None:
            """Wait for its head no more."""
            super().connection_lost(exc)
            self._stop()

        def data_received(self, data: bytes) -> None:
            """Read on; a head that is whole now need not be waited for."""
            super().data_received(data)
            self._judge()

        def on_response_complete(self) -> None:
            """Wait for the head of the next request."""
            super().on_response_complete()
            self._judge()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP may come behind a head that was: its answer, if it has begun, is cut off, or not made."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                if self.cycle.response_started:
                    self.transport.abort()
                    return
            super().send_400_response(msg)

        def _judge(self) -> None:
            """Time runs while no request is being answered, however many bytes of a head come in meanwhile."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            elif self._waiting is None and not self.transport.is_closing():
                self._waiting = self.loop.call_later(head_seconds, self.transport.abort)

        def _stop(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Connection


def configuration(app: ASGIApp, **options: Any) -> uvicorn.Config:
    """How uvicorn runs an app of openafm's."""
    return uvicorn.Config(app, http=connection_class(most_connections()), ws="none", log_level="warning", **options)


class OneLength:
    """Refuses a request whose body has two lengths: a proxy before us may take the other (RFC 9112, section 6.1)."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse and close."""
        names = {name for name, _ in scope.get("headers", ())}
        if not {b"content-length", b"transfer-encoding"} <= names:
            return await self._app(scope, receive, send)
        refused = to_json(ApiError(400, "send Content-Length or Transfer-Encoding, not both").body(), 400)
        refused.headers["Connection"] = "close"
        await refused(scope, receive, send)
