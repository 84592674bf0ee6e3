"""Answers on their way to the client: all of them whole, or as events while they are made; and what ends them early."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from openafm.engine.guidance import UnguidableError
from openafm.serving.accounting import Record
from openafm.serving.adapters import Unusable
from openafm.serving.answer import Answer, Piece
from openafm.serving.body import ApiError
from openafm.serving.replies import Reply
from openafm.serving.worker import Job, Stopped

LOG = logging.getLogger(__name__)


def refusal(error: Exception) -> ApiError | None:
    """What a client is told of an error that is no fault of the server's program; None for any other."""
    match error:
        case TimeoutError():
            return ApiError(503, f"{error}: try again later", code="timeout")
        case MemoryError():
            return ApiError(503, "no memory is left for this answer: try again later", code="out_of_memory")
        case Unusable():
            return ApiError(503, str(error), "model", "adapter_unusable")
        case UnguidableError():
            return ApiError(400, f"response_format: {error}", "response_format", "invalid_value")
        case Stopped():
            return ApiError(503, "the server is stopping", code="stopping")
    return None


async def whole(jobs: Sequence[Job]) -> list[list[Piece]]:
    """All pieces of all answers."""

    async def pieces(job: Job) -> list[Piece]:
        """All pieces of one answer, once it has ended."""
        return [piece async for piece in job]

    return await asyncio.gather(*map(pieces, jobs))


async def _pieces(jobs: Sequence[Job]) -> AsyncIterator[tuple[int, Piece | None]]:
    """The pieces of all answers as they come, with the answer's number; None ends one."""
    coming = {asyncio.ensure_future(anext(job, None)): index for index, job in enumerate(jobs)}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for future in sorted(done, key=coming.__getitem__):
                index, piece = coming.pop(future), future.result()
                if piece is not None:
                    coming[asyncio.ensure_future(anext(jobs[index], None))] = index
                yield index, piece
    finally:
        for future in coming:
            future.cancel()


async def events(
    reply: Reply, jobs: Sequence[Job], answers: Sequence[Answer], first: Piece, kept: Record
) -> AsyncIterator[bytes]:
    """The answers as server-sent events; `first` is the first answer's first piece."""
    for chunk in [*reply.begin(answers), *reply.piece(0, first)]:
        yield reply.frame(chunk)
    try:
        async for index, piece in _pieces(jobs):
            for chunk in reply.last(index, answers[index]) if piece is None else reply.piece(index, piece):
                yield reply.frame(chunk)
    except Exception as error:  # the status is sent already: the protocol tells errors in the stream
        known = refusal(error)
        if not known:
            LOG.exception("an answer failed")
        told = known or ApiError(500, "the engine failed in the middle of the answer")
        kept.fail(told)
        yield reply.frame(reply.error(told))
        return
    for chunk in reply.end(answers):
        yield reply.frame(chunk)
    yield reply.done
