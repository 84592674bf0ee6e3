"""Answers are made together in a thread of its own; those that find no room wait in the order they came."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from openafm.engine import Engine
from openafm.engine.protocol import Batch, Row
from openafm.model.generation import Choice
from openafm.serving.adapters import Adapters, Fetched
from openafm.serving.answer import Piece


class Busy(Exception):  # noqa: N818  names the state, as queue.Full does
    """All places in the queue are taken."""


class Stopped(Exception):  # noqa: N818
    """The job was stopped before its answer was whole."""


class Task(Protocol):
    """What a job is about: an answer, or texts to read."""

    prompt: list[int]
    adapter: str | None
    tokens: int

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        ...

    @property
    def over(self) -> bool:
        """Whether no further token is wanted."""
        ...

    def begin(self, batch: Batch) -> Row:
        """Join an engine's batch."""
        ...

    def push(self, choice: Choice) -> Piece:
        """Take in a token; returns the text that it completes."""
        ...

    def rest(self) -> str:
        """What is still held back when no token follows."""
        ...


class Job:
    """A task that is waiting, being done, or over: `async for` gives an answer's pieces as they come."""

    def __init__(self, worker: "Worker", answer: Task, over: Callable[["Job"], None], fetched: Fetched | None):
        self._worker, self.answer, self._over, self.fetched = worker, answer, over, fetched
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        self.row: Row | None = None
        self.stopped = False
        self.began = self.first = self.ended = 0.0
        """`time.monotonic()` of its turn, its first token and its end; 0 before."""
        self.switched = 0.0
        """Seconds until its adapter was ready: read, checked and put into the engine, or found there."""

    def __aiter__(self) -> "Job":
        """Iterate over the pieces; an error of the engine is raised here."""
        return self

    async def __anext__(self) -> Piece:
        """Wait for the next piece."""
        piece = await self._arrived.get()
        if piece is None:
            raise StopAsyncIteration
        if isinstance(piece, Exception):
            raise piece
        return piece

    def stop(self) -> None:
        """Give up the place in the queue, or stop after the token that is being computed."""
        self.stopped = True
        self._worker.give_up(self)
        self._arrived.put_nowait(Stopped())  # for who still waits, when the server ends

    def push(self, chosen: list[Choice]) -> None:
        """Send what the engine made, up to where the answer ends; in the worker's thread."""
        self.first = self.first or time.monotonic()
        for choice in chosen:
            self._send(self.answer.push(choice))
            if self.answer.over:
                break

    def end(self, error: Exception | None = None) -> None:
        """Send the last of it; in the worker's thread, or for a job that never began."""
        self.ended = time.monotonic()
        if error is None and self.began and (rest := self.answer.rest()):
            self._send(Piece(rest))
        self._loop.call_soon_threadsafe(self._over, self)
        self._send(error)

    def _send(self, piece: Piece | Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, piece)


class Worker:
    """Steps an engine's batch; jobs join and leave it between steps."""

    def __init__(self, engine: Engine, adapters: Adapters, places: int):
        """Let `places` jobs wait behind those for which the batch has room."""
        self._batch, self._adapters = engine.together(), adapters
        self._places = places
        self._waiting: deque[Job] = deque()
        self._making: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Answers being made."""
        return len(self._making)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    def submit(self, answers: Sequence[Task], over: Callable[[Job], None], fetched: Fetched | None = None) -> list[Job]:
        """Queue all answers, or none and raise Busy; `over` is called with each job when it has ended, anyhow.

        `fetched` is their adapter, where it was not in memory.
        """
        with self._changed:
            if len(self._making) + len(self._waiting) + len(answers) > self._batch.room + self._places:
                raise Busy
            jobs = [Job(self, answer, over, fetched) for answer in answers]
            self._waiting.extend(jobs)
            self._changed.notify()
            return jobs

    def give_up(self, job: Job) -> None:
        """End a job that still waits; one that is being made is seen to after its token."""
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        job.end(Stopped())

    def stop(self) -> None:
        """Stop what runs, drop what waits."""
        for job in [*self._waiting, *self._making]:
            job.stop()

    def close(self) -> None:
        """Stop everything and end the thread."""
        self.stop()
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._making or self._closing)
                if self._closing and not self._making:
                    return
                joining = []
                while self._waiting and len(self._making) < self._batch.room:
                    joining.append(self._waiting.popleft())
                    self._making.append(joining[-1])
            for job in joining:
                self._join(job)
            self._step()
            for job in [job for job in self._making if job.stopped or job.answer.late]:
                self._leave(job, Stopped() if job.stopped else None)

    def _join(self, job: Job) -> None:
        job.began = time.monotonic()
        try:
            if job.answer.late:
                raise TimeoutError("the request's time was over before its turn came")
            busy = {other.answer.adapter for other in self._making if other.row is not None}
            self._adapters.enter(job.answer.adapter, busy, job.fetched)
            job.switched = time.monotonic() - job.began + (job.fetched.seconds if job.fetched else 0.0)
            job.fetched = None
            job.row = job.answer.begin(self._batch)
        except Exception as error:  # whatever it is, it belongs to this request
            self._leave(job, error)

    def _step(self) -> None:
        """One step; an error in it ends all answers, but lack of memory only the newest, which may have caused it."""
        try:
            made = self._batch.step()
        except Exception as error:
            for job in self._making[-1:] if isinstance(error, MemoryError) else list(self._making):
                self._leave(job, error)
            return
        jobs = {job.row: job for job in self._making}
        for row, chosen in made:
            job = jobs[row]
            try:
                job.push(chosen)
            except Exception as error:
                self._leave(job, error)
                continue
            if row.over or job.answer.over:
                self._leave(job, row.error)

    def _leave(self, job: Job, error: Exception | None) -> None:
        if job.row is not None:
            self._batch.remove(job.row)
        with self._changed:
            self._making.remove(job)
        job.end(error)
