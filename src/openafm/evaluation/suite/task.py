"""What a task of the suite is: what it measures, on what, and how much of it each suite takes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from openafm.evaluation.suite.items import Item
from openafm.evaluation.suite.material import Material
from openafm.evaluation.suite.subject import Subject
from openafm.sampling.sampler import Sampler
from openafm.stage import Context


@dataclass(frozen=True)
class Size:
    """How much of a task is measured."""

    items: int
    """Most items of each part of the task, spread evenly over its data."""
    samples: int = 1
    """Answers to each item, where more than the greedy one is asked for."""
    lengths: tuple[int, ...] = ()
    """Of contexts, in tokens."""


@dataclass(frozen=True)
class Bench:
    """What a task is handed beside the model: data, size, progress, and the judge where there is one."""

    material: Material
    size: Size
    context: Context
    judge: Sampler | None = None


Measure = Callable[[Subject, Bench], Iterable[Item]]


@dataclass(frozen=True)
class Task:
    """One task: a function of a model and its data that returns items.

    A measure raises NotMeasuredError where something it needs is not here.
    """

    name: str
    what: str
    """One line, with the metric."""
    measure: Measure
    nano: Size
    full: Size
    data: tuple[str, ...] = ()
    """Targets of the catalogue that it reads."""
    better: Literal["higher", "lower", ""] = "higher"
    """Empty for what is neither good nor bad by itself."""
    unit: Literal["%", "bits", "nats"] = "%"
    guess: float | None = None
    """What guessing gives."""
    version: str = ""
    """What else its results depend on, such as the judge."""

    @property
    def module(self) -> str:
        """Where it is written: a change there makes results stale."""
        return self.measure.__module__
