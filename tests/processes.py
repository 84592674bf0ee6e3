"""Several processes that know each other, forked from a test (they have torch loaded already)."""

import multiprocessing
import os
import socket
import sys
import traceback

import torch

from openafm.training import parallel


def processes(count: int, work, *arguments) -> None:
    """Run `work(rank, *arguments)` in that many processes that know each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")  # it has torch loaded already
    all_of_them = [fork.Process(target=_one, args=(rank, count, port, work, arguments)) for rank in range(count)]
    for process in all_of_them:
        process.start()
    for process in all_of_them:
        process.join(400)
    assert [process.exitcode for process in all_of_them] == [0] * count


def forked(work, *arguments) -> None:
    """Run `work` in a process of its own: it leaves no process group behind."""
    process = multiprocessing.get_context("fork").Process(target=_one, args=(0, 1, 0, work, arguments, False))
    process.start()
    process.join(400)
    assert process.exitcode == 0


def _one(rank: int, count: int, port: int, work, arguments, numbered: bool = True) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    code = 1
    try:
        parallel.start()
        work(*([rank] if numbered else []), *arguments)
        if count > 1:
            torch.distributed.barrier()
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(code)
