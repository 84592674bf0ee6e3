"""How many processes the per-document work of the data steps runs in. Their number never shows in the output."""

import os


def workers() -> int:
    """Return one process for each core that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
