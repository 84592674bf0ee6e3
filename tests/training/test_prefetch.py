import random
import threading

import pytest
import torch

from openafm.training.batches import TokenBatches
from openafm.training.prefetch import Prefetched


def test_batches_made_ahead_are_the_same_in_any_order_of_asking(token_shards):
    plain = TokenBatches(token_shards, {"web": 3, "code": 1}, sequence_length=16, batch_tokens=64, tokens=2000, seed=0)
    ahead = Prefetched(plain, 3)
    steps = [*range(len(plain)), 5, 6, 2, *random.Random(0).sample(range(len(plain)), 10)]
    assert len(ahead) == len(plain)
    for step in steps:
        assert all(torch.equal(ahead[step][name], tensor) for name, tensor in plain[step].items())
    assert ahead.waited_seconds > 0


class Counted:
    """Three batches; says who makes them, and fails at the last."""

    def __init__(self):
        self.made, self.second = [], threading.Event()

    def __len__(self):
        return 3

    def __getitem__(self, step):
        self.made.append((step, threading.current_thread().name.rpartition("_")[0]))
        if step == 1:
            self.second.set()
        if step == 2:
            raise ValueError("the shard is torn")
        return {"inputs": torch.zeros(1, 1)}


def test_the_next_batch_is_made_while_nobody_asks_and_errors_reach_who_does():
    counted = Counted()
    ahead = Prefetched(counted, 1)
    ahead[0]
    assert counted.second.wait(10)  # without asking for it
    ahead[1]
    with pytest.raises(ValueError, match="torn"):
        ahead[2]
    assert counted.made == [(0, "batches"), (1, "batches"), (2, "batches")]
