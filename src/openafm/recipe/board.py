"""Curves of a run's training for TensorBoard (`openafm run RECIPE --tensorboard`): event files under RUN/tensorboard.

A folder a step and label, so that stages lie over one another; off unless asked for, since the report has the curves
too. A step that goes on after a kill hides the points that it takes again (purge_step).
"""

from collections.abc import Mapping
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any


class Board:
    """Writers of the step at work. Raises ValueError where the package is missing."""

    def __init__(self, folder: Path):
        if find_spec("tensorboard") is None:
            raise ValueError("--tensorboard needs the package tensorboard: pip install 'openafm[tensorboard]'")
        self.folder = folder / "tensorboard"
        self.writers: dict[str, Any] = {}

    def log(self, name: str, label: str, step: int, values: Mapping[str, Any]) -> None:
        """A point of step `name`'s curve `label`."""
        if label not in self.writers:
            from torch.utils.tensorboard import SummaryWriter

            place = str(self.folder / name / label.replace("/", "-"))
            self.writers[label] = SummaryWriter(place, purge_step=step, flush_secs=10)
        for metric, value in values.items():
            if isinstance(value, Real):
                self.writers[label].add_scalar(metric, float(value), step)

    def end(self) -> None:
        """The step is over: everything is on disk."""
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()
