"""One generation at a time: a thread of its own, and a queue with so many places before it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor


class Busy(Exception):  # noqa: N818  names the state, as queue.Full does
    """All places in the queue are taken."""


class Stopped(Exception):  # noqa: N818
    """The job was stopped before its answer was whole."""


class Job:
    """An answer that is waiting, being made, or over: `async for` gives its pieces as they come."""

    def __init__(self, pieces: Iterable[str]):
        self._pieces = pieces
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self._stopped = threading.Event()
        self.future: Future[None]
        self.began = self.ended = 0.0
        """`time.monotonic()`; 0 before."""

    def __aiter__(self) -> "Job":
        """Iterate over the pieces; an error of the engine is raised here."""
        return self

    async def __anext__(self) -> str:
        """Wait for the next piece."""
        piece = await self._arrived.get()
        if piece is None:
            raise StopAsyncIteration
        if isinstance(piece, Exception):
            raise piece
        return piece

    def stop(self) -> None:
        """Give up the place in the queue, or stop after the token that is being computed."""
        self._stopped.set()
        self.future.cancel()
        self._arrived.put_nowait(Stopped())  # for who still waits, when the server ends

    def run(self) -> None:
        """Make the answer; called in the worker's thread."""
        self.began = time.monotonic()
        last: Exception | None = None
        try:
            for piece in self._pieces:
                if self._stopped.is_set():
                    break
                self._loop.call_soon_threadsafe(self._arrived.put_nowait, piece)
        except Exception as error:  # whatever it is, it belongs to this request, not to the thread
            last = error
        self.ended = time.monotonic()
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, last)


class Worker:
    """Runs jobs one after another in the order they came."""

    def __init__(self, places: int):
        """Let `places` jobs wait behind the one that runs."""
        self._places = places
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._jobs: set[Job] = set()

    @property
    def running(self) -> int:
        """Jobs being made: 0 or 1."""
        return sum(1 for job in self._jobs if job.began)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._jobs) - self.running

    def submit(self, pieces: Iterable[str], over: Callable[[Job], None]) -> Job:
        """Queue an answer; `over` is called with the job when it has ended, however that was. Raises Busy."""
        if len(self._jobs) > self._places:
            raise Busy
        job = Job(pieces)
        loop = asyncio.get_running_loop()

        def forget() -> None:
            self._jobs.discard(job)
            over(job)

        self._jobs.add(job)
        job.future = self._thread.submit(job.run)
        job.future.add_done_callback(lambda _: loop.call_soon_threadsafe(forget))
        return job

    def stop(self) -> None:
        """Stop what runs, drop what waits."""
        for job in list(self._jobs):
            job.stop()

    def close(self) -> None:
        """Stop everything and end the thread."""
        self.stop()
        self._thread.shutdown(wait=True, cancel_futures=True)
