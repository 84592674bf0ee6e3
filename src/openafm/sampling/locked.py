"""The strict sandbox's own process: it gives up everything, then waits for its program (`waiting.py`).

Run by `openafm.sampling.interpreter` as text of `python -I -B -c`, never called in the factory. What the program
may import is loaded before the lock falls; after it no file can be opened, no process made and no socket: the kernel
refuses.
"""

import base64
import ctypes
import importlib
import os
import resource
import sys

IMPORTABLE = """
abc array ast bisect builtins calendar cmath collections collections.abc contextlib copy dataclasses datetime decimal
difflib enum fractions functools hashlib heapq html io ipaddress itertools json keyword math numbers operator random re
statistics string struct textwrap time traceback types typing unicodedata urllib.parse uuid zlib
encodings.ascii encodings.latin_1
""".split()
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def limit(limits: dict[str, int]) -> None:
    """Set process limits that cannot be raised again; no new file, process or core dump at all."""
    for kind, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]), (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(kind, (value, value))


def drop(user: int, kept: list[int]) -> None:
    """Root becomes nobody; open files but `kept`, environment and folder are left behind."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    first = 3
    for descriptor in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.environ.clear()
    os.chdir("/")


def lock(steps: bytes) -> None:
    """Hand the filter to the kernel. Raises OSError where it takes none."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Filter(len(steps) // 8, steps)
    for request in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*request):
            raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def give_up(limits: dict[str, int], user: int, steps: str, kept: list[int]) -> None:
    """Load what a program may import, then keep only thinking and the descriptors `kept`; `steps` is the filter."""
    for name in IMPORTABLE:
        importlib.import_module(name)
    limit(limits)
    drop(user, kept)
    lock(base64.b64decode(steps))
    sys.path = []
