"""One model through the tasks of a suite: each task kept as soon as it is done, under a digest of all it depends on.

`CACHE/evaluations/MODEL/TASK-KEY.jsonl`: MODEL is the digest of the model, KEY that of the task's size, its data and
its code. So a suite that was killed goes on with the task it was in, and what is there is not measured again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from openafm import jsonl
from openafm.evaluation.intervals import Estimate
from openafm.evaluation.suite import (
    choices,
    directions,
    memory,
    problems,
    programs,
    retrieval,
    safety,
    summarising,
    texts,
    tools,
    winning,
)
from openafm.evaluation.suite.items import Item, NotMeasuredError, by_metric, estimate
from openafm.evaluation.suite.material import Material
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.sampling.sampler import Sampler
from openafm.stage import Context

Suite = Literal["nano", "full"]
ALL: tuple[Task, ...] = tuple(
    task
    for module in (
        texts,
        choices,
        directions,
        tools,
        programs,
        problems,
        summarising,
        retrieval,
        safety,
        memory,
        winning,
    )
    for task in module.TASKS
)
"""The suite, in the order of the table."""


@dataclass(frozen=True)
class Sheet:
    """What one model gave."""

    subject: str
    digest: str
    adapter: str
    suite: str
    items: dict[str, list[Item]] = field(default_factory=dict)
    """By task, of those that were measured."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why the others were not."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of tasks measured now; those that were kept are not in it."""

    def estimates(self, task: str) -> dict[str, Estimate]:
        """By part of the task."""
        return {metric: estimate(items) for metric, items in by_metric(self.items[task]).items()}


@dataclass(frozen=True)
class Listener:
    """Who hears how far it is: of a task its begin, its own progress, and at its end what became of it."""

    begin: Callable[[str], None] = lambda name: None
    end: Callable[[str, float, str], None] = lambda name, seconds, state: None
    report: Callable[[str, float, float | None], None] = lambda label, done, total: None


def run(
    subject: Subject,
    tasks: Sequence[Task],
    suite: Suite,
    *,
    material: Material,
    folder: Path,
    code_of: Callable[[str], str],
    listener: Listener = Listener(),
    judge: Sampler | None = None,
    judge_name: str = "",
) -> Sheet:
    """Measure what is not in `folder` yet. `code_of` gives the digest of a module's code."""
    sheet = Sheet(subject.name, subject.digest, subject.adapter, suite)
    home = folder / subject.digest[:16]
    home.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        size = task.nano if suite == "nano" else task.full
        listener.begin(task.name)
        started, state = time.monotonic(), "kept"
        try:
            path = home / f"{task.name.replace('/', '-')}-{_key(task, size, material, code_of, judge_name)}.jsonl"
            if not path.exists():
                state = "measured"
                context = Context(out=home, scratch=folder / "harness", report=listener.report)
                _keep(path, task.measure(subject, Bench(material, size, context, judge)))
            sheet.items[task.name] = _read(path)
        except NotMeasuredError as reason:
            sheet.missing[task.name], state = str(reason), "not measured"
        if state == "measured":
            sheet.seconds[task.name] = round(time.monotonic() - started, 1)
        listener.end(task.name, sheet.seconds.get(task.name, 0.0), state)
    about = {"name": subject.name, "path": str(subject.path.resolve()), "adapter": subject.adapter}
    (home / "model.json").write_text(json.dumps(about, indent=1) + "\n")
    return sheet


def _key(task: Task, size: Size, material: Material, code_of: Callable[[str], str], judge: str) -> str:
    judged = judge if task.module == winning.__name__ else ""
    parts = [task.name, asdict(size), [material.digest(target) for target in task.data], code_of(task.module)]
    return hashlib.sha256(json.dumps([*parts, task.version, judged]).encode()).hexdigest()[:16]


def _keep(path: Path, items: Iterable[Item]) -> None:
    """Write a task's items, whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    jsonl.write(partial, map(asdict, items))
    partial.replace(path)


def _read(path: Path) -> list[Item]:
    return [Item(**row) for row in jsonl.read(path)]
