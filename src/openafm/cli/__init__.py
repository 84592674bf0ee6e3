"""The verbs of `openafm`; nothing but argument parsing. Each imports what it needs, so that `--help` is quick.

Exit codes: 0 done; 1 a step failed or a check did not pass; 2 wrong usage or recipe; 130 interrupted.
"""

# isort: off
from openafm.cli.common import app
from openafm.cli import runs, models, machine, data  # in the order of --help

__all__ = ["app", "data", "machine", "models", "runs"]
