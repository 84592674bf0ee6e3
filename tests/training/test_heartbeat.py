"""A process that hangs is noticed by the next one, whatever that waits for; one that is merely slow is waited for."""

import multiprocessing
import os
import signal
import socket
import time

import pytest
from torch import distributed

from openafm.training import parallel

SECONDS = 2


def _work(rank: int, port: int, late: int, seconds: float, hangs: bool) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OPENAFM_RANK_SECONDS": str(SECONDS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    parallel.start()
    if rank == late:
        time.sleep(seconds)
        if hangs:
            os.kill(os.getpid(), signal.SIGSTOP)
    distributed.barrier(group=parallel.waiting_group())  # which would wait for a month
    parallel.leave()
    os._exit(0)


def _two(late: int, seconds: float, hangs: bool) -> list[multiprocessing.Process]:
    """Two processes, of which one comes late to where both meet, or never."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    found = [fork.Process(target=_work, args=(rank, port, late, seconds, hangs)) for rank in range(2)]
    for process in found:
        process.start()
    return found


@pytest.mark.parametrize("hanging", [0, 1])  # 0 is the process that keeps the store
def test_a_process_that_hangs_ends_the_other(hanging, capfd):
    both = _two(hanging, 0.5, hangs=True)
    both[1 - hanging].join(60)
    assert both[1 - hanging].exitcode == 1
    assert f"process {hanging} has been silent for 2 s" in capfd.readouterr().err
    both[hanging].kill()
    both[hanging].join()


def test_one_that_is_slow_is_waited_for():
    both = _two(1, 2.5 * SECONDS, hangs=False)
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
