"""What is kept of a request when it is over: its count by path and status, and with `--log-format json` a line.

A line says how much was asked and made and how long it took, and nothing of what was said: no prompts, no answers, no
keys.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openafm.serving.body import ApiError
from openafm.serving.metrics import Metrics
from openafm.serving.worker import Job

LEFT = 499
"""Status of a client that did not wait, as nginx has it."""
RECORD = "record"
"""Where a request's state holds its record."""


@dataclass
class Record:
    """What a path knows of its request."""

    model: str | None = None
    adapter: str | None = None
    answer: str | None = None
    """Its id in the protocol."""
    jobs: Sequence[Job] = ()
    status: int | None = None
    error: str | None = None
    """What it was told in place of an answer, or in the middle of one."""

    def fail(self, error: ApiError) -> None:
        """Note an error; not itself, for it holds on to all that was at work."""
        self.status, self.error = error.status, error.code or error.message

    def timing(self, began: float) -> str:
        """The header `Server-Timing`: milliseconds until the adapter was ready, and until the first token."""
        switched, firsts = self.jobs[0].switched, [job.first - began for job in self.jobs if job.first]
        return ", ".join(
            f"{name};dur={1000 * seconds:.3f}"
            for name, seconds in (("adapter", switched), *(("first", first) for first in firsts[:1]))
        )

    def line(self, began: float) -> dict[str, Any]:
        """Its part of the log's line."""
        firsts = [job.first - began for job in self.jobs if job.first]
        return {
            "model": self.model,
            "adapter": self.adapter,
            "answer": self.answer,
            "prompt_tokens": len(self.jobs[0].answer.prompt) if self.jobs else 0,
            "completion_tokens": sum(job.answer.tokens for job in self.jobs),
            "adapter_seconds": round(self.jobs[0].switched, 4) if self.jobs else None,
            "first_token_seconds": round(min(firsts), 4) if firsts else None,
            "error": self.error,
        }


def record(request: Request) -> Record:
    """The record of a request, for its path to fill in."""
    found: Record = getattr(request.state, RECORD)
    return found


class Accounting:
    """Around everything else: names each request (`x-request-id`), counts it, and logs it when it is over."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: Callable[[str], None] | None):
        self._app, self._metrics, self._log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and note the status."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, name, kept = time.monotonic(), f"req_{secrets.token_hex(12)}", Record()
        scope.setdefault("state", {})[RECORD] = kept
        status, ended = 500, False

        async def noting(message: Message) -> None:
            """Send on; the status is noted, and a response begins with the request's id and its times."""
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
                if kept.jobs:
                    message["headers"].append((b"server-timing", kept.timing(began).encode()))
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            if kept.status:
                status = kept.status
            elif not ended and status == 200:
                status = LEFT
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.add("openafm_requests_total", path=path, status=status)
            if self._log:
                head = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "id": name, "path": path}
                end = {"status": status, "seconds": round(time.monotonic() - began, 4)}
                self._log(orjson.dumps({**head, **kept.line(began), **end}).decode())
