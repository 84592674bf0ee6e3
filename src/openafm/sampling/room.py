"""Interpreters that wait behind their walls, each for one program, and the thread that starts the next ones."""

import atexit
import os
import queue
import threading

from openafm.sampling.interpreter import Interpreter, Limits, start

WAITING = 2
"""Interpreters kept ready: as many as `run_all` runs at a time."""
IDLE_SECONDS = 5.0
"""How long they wait before they are ended; the next run starts its own."""


class Room:
    """Holds interpreters of one kind and one set of limits at a time: those of the last run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: tuple[str, Limits] | None = None
        self._ready: list[Interpreter] = []
        self._orders: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._filler: threading.Thread | None = None

    def take(self, kind: str, limits: Limits) -> Interpreter:
        """An interpreter that has run nothing, ready or just started; others are made ready meanwhile."""
        if self._asked != (kind, limits):
            self.dismiss()
        with self._lock:
            self._asked = kind, limits
            if self._filler is None:
                # It lives as long as this process: what it started would die with it.
                self._filler = threading.Thread(target=self._fill, daemon=True, name="sandbox")
                self._filler.start()
            found = self._ready.pop(0) if self._ready else None
        self._orders.put(None)
        if found and found.process.poll() is None:
            return found
        if found:
            found.end()
        return start(kind, limits)

    def dismiss(self) -> None:
        """End all that wait."""
        with self._lock:
            ended, self._ready, self._asked = self._ready, [], None
        for each in ended:
            each.end()

    def _fill(self) -> None:
        while True:
            try:
                self._orders.get(timeout=IDLE_SECONDS if self._ready else None)
            except queue.Empty:
                self.dismiss()
            while self._wanting():
                pass

    def _wanting(self) -> bool:
        """Start one more interpreter if one is missing; whether to ask again."""
        with self._lock:
            asked = self._asked
            if asked is None or len(self._ready) >= WAITING:
                return False
        try:
            made = start(*asked)
        except OSError:  # no process or descriptor to be had: the run itself will say so
            return False
        with self._lock:
            if asked == self._asked:
                self._ready.append(made)
                return True
        made.end()
        return True


_room = Room()


def take(kind: str, limits: Limits) -> Interpreter:
    """An interpreter for one program, from this process's room."""
    return _room.take(kind, limits)


def dismiss() -> None:
    """End the interpreters that wait; the next run starts new ones."""
    _room.dismiss()


def _forget() -> None:
    """A fork has none of our threads, and what waits is its parent's."""
    global _room
    _room = Room()


atexit.register(dismiss)
os.register_at_fork(after_in_child=_forget)
