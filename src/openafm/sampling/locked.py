"""The strict sandbox's own process: it gives up everything, then runs the program it was handed.

Run by `openafm.sampling.sandbox` as text of `python -I -B -c`, never imported into the factory: arguments are the
limits and the seccomp filter as JSON, and the program. What the program may import is loaded before the lock falls;
after it no file can be opened, no process made and no socket: the kernel refuses.
"""

import base64
import ctypes
import importlib
import json
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


def drop(user: int) -> None:
    """Root becomes nobody; open files, environment and folder are left behind."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.chdir("/")


def lock(steps: bytes) -> None:
    """Hand the filter to the kernel. Raises OSError where it takes none."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Filter(len(steps) // 8, steps)
    for request in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*request):
            raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def main() -> None:
    """Give up everything, then run the program as `__main__`."""
    asked, code = json.loads(sys.argv[1]), sys.argv[2]
    for name in IMPORTABLE:
        importlib.import_module(name)
    limit(asked["limits"])
    drop(asked["user"])
    lock(base64.b64decode(asked["filter"]))
    sys.argv, sys.path = ["-c"], []
    space = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(code, "<string>", "exec"), space)


if __name__ == "__main__":
    main()
