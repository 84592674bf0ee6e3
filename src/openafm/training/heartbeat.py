"""Processes that watch one another: one that hangs ends the training, whatever the others wait for just then.

A collective that waits too long ends by its own timeout, but not all waiting is in training's collectives: checkpoints,
steps that rank 0 runs alone and the end of a run may last for hours. So each process counts in the store that all of
them share, and watches the count of the next one; who has counted no further for too long is taken for dead.
"""

import os
import sys
import threading
from dataclasses import dataclass, field

from torch import distributed

TICKS = 8
"""Times that a process looks at the next one in the seconds that this may be silent."""


@dataclass
class Heartbeat:
    """This process's count, and how often it has looked at the next one's in vain."""

    store: distributed.Store
    number: int
    processes: int
    seconds: float
    """A process that is silent for so long is taken for dead."""
    over: threading.Event = field(default_factory=threading.Event)
    missed: int = 0

    def start(self) -> "Heartbeat":
        """Count and watch, until `over` is set, in two threads: one may wait for the store for ever, the other not."""
        own = self.store.clone()  # type: ignore[attr-defined]  # its operations wait for no others
        self.store = distributed.PrefixStore("heartbeat", own)
        for work in (self._count, self._watch):
            threading.Thread(target=work, daemon=True).start()
        return self

    @property
    def following(self) -> int:
        """Whom this process watches: in a ring each is watched by one, however many there are."""
        return (self.number + 1) % self.processes

    def _count(self) -> None:
        count, told = 0, b""
        while not self.over.wait(self.seconds / TICKS):
            count += 1
            try:
                self.store.set(str(self.number), str(count))
                now = self.store.get(str(self.following)) if self.store.check([str(self.following)]) else b""
            except RuntimeError:  # the store has gone: as good as silence
                continue
            if now != told:
                told, self.missed = now, 0

    def _watch(self) -> None:
        """End this process after the next one's silence. Counts looks, not time: all may have been stopped together."""
        while not self.over.wait(self.seconds / TICKS):
            self.missed += 1
            if self.missed > TICKS:
                print(
                    f"process {self.following} has been silent for {self.seconds:g} s: it hangs, or its machine or the "
                    f"way to it is gone; process {self.number} ends",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)  # the main thread may wait in a call that nothing interrupts
