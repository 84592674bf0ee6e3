"""Batches made ahead in the background, so that training never waits for its data.

A batch is a pure function of its step, so what is made ahead is what would have been made: order and content of a run
do not change, killed and resumed or not.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor

from openafm.training.batches import Batch, Batches


class Prefetched:
    """`batches` with the next `ahead` ones made by a thread; NumPy and the disk work outside Python's lock."""

    def __init__(self, batches: Batches, ahead: int = 2):
        self.batches, self.ahead = batches, ahead
        self.waited_seconds = 0.0
        """Time that training stood still for a batch, the first one included."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._made: dict[int, Future[Batch]] = {}

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch:
        for wanted in range(step, min(step + self.ahead + 1, max(len(self.batches), step + 1))):
            if wanted not in self._made:
                self._made[wanted] = self._thread.submit(self.batches.__getitem__, wanted)
        started = time.monotonic()
        batch = self._made.pop(step).result()
        self.waited_seconds += time.monotonic() - started
        for old in [made for made in self._made if made < step]:
            del self._made[old]
        return batch
