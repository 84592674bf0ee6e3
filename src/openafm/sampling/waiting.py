"""What every sandboxed interpreter runs: wait for a program, then become it.

Run by `openafm.sampling.interpreter` as text of `python -I -B -c`, never called in the factory. A program sees and
prints what it would under `python -c` itself; only who walks its frames finds the two below its own.
"""


def serve(go: int, source: int) -> None:
    """Wait for a byte on descriptor `go`, then run the program that `source` holds as `__main__`."""
    import os
    import sys

    if not os.read(go, 1):  # whoever was to give the program is gone
        os._exit(0)
    text = b"".join(iter(lambda: os.read(source, 1 << 16), b"")).decode()
    os.close(go)
    os.close(source)
    space = sys.modules["__main__"].__dict__
    for name in [name for name in space if not name.startswith("__")]:
        del space[name]
    space["__doc__"] = None
    sys.setrecursionlimit(sys.getrecursionlimit() + 3)  # our frames and `exec`
    try:
        exec(compile(text, "<string>", "exec", dont_inherit=True), space)
    except SystemExit:
        raise
    except BaseException as error:  # told as Python tells it, without our frame
        frames = error.__traceback__
        error.__traceback__ = frames and frames.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
