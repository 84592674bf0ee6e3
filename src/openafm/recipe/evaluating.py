"""`openafm evaluate`: any models through a suite, in one table, with what is kept from before."""

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from openafm.adapters.store import AdapterStore
from openafm.engine.package import ADAPTERS, find_package
from openafm.evaluation.suite import choices, winning
from openafm.evaluation.suite.material import Material
from openafm.evaluation.suite.run import ALL, Listener, Sheet, Suite, run
from openafm.evaluation.suite.sheet import lines
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Task
from openafm.files import default_cache
from openafm.recipe.artifacts import verify
from openafm.recipe.code import code_digest
from openafm.recipe.progress import Display, clock
from openafm.sampling.opening import open_sampler
from openafm.sampling.sampler import Sampler
from openafm.serving.opening import CONTINUES, RECOVERY, latest_model, name_of, stage_of

NONE = "none"
"""Name of no adapter."""


@dataclass(frozen=True)
class Wish:
    """What is to be measured."""

    models: Sequence[str]
    suite: Suite = "nano"
    only: Sequence[str] = ()
    """Names of tasks, or patterns; empty for all."""
    lm_eval: Sequence[str] = ()
    """Tasks of the lm-evaluation-harness by name, or YAML files of tasks."""
    data: Sequence[Path] = ()
    """JSON Lines of questions."""
    judge: str = ""
    """A model folder, a package, or URL#MODEL."""
    plain: bool = False
    """Ask without chat templates."""
    engine: Literal["torch", "native"] = "torch"
    cache: Path | None = None


@dataclass(frozen=True)
class Result:
    """What came of it: the tasks, a sheet a model."""

    tasks: list[Task]
    sheets: list[Sheet]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of the table."""
        return lines(self.tasks, self.sheets)

    def json(self) -> dict[str, Any]:
        """For scripts."""
        models = [
            {"name": sheet.subject, "adapter": sheet.adapter, "digest": sheet.digest, "seconds": sheet.seconds}
            for sheet in self.sheets
        ]
        return {"suite": self.sheets[0].suite, "models": models, "rows": self.rows}


def evaluate(wish: Wish, console: Console) -> Result:
    """Measure the models. Raises ValueError for what is no model, no task and no adapter, before anything is run."""
    subjects = [subject(named, wish) for named in wish.models]
    tasks, judge = chosen(wish), _judge(wish.judge)
    cache = wish.cache or default_cache()
    sheets: list[Sheet] = []
    for number, model in enumerate(subjects):
        own = [*tasks, winning.against(subjects[0], wish.judge)] if number and wish.judge and not wish.only else tasks
        console.print(f"{model.name}: {len(own)} tasks of the suite {wish.suite}", highlight=False, markup=False)
        with Display(console, {task.name: 1.0 for task in own}) as display:
            material = Material(cache=cache, report=display.report)
            sheets.append(
                run(
                    model,
                    own,
                    wish.suite,
                    material=material,
                    folder=cache / "evaluations",
                    code_of=code_digest,
                    listener=Listener(display.begin, partial(_ended, display), display.report),
                    judge=judge,
                    judge_name=wish.judge,
                )
            )
        for held in ("torch", "_writer"):  # its weights: the next model needs the room
            model.__dict__.pop(held, None)
    extra = [winning.against(subjects[0], wish.judge)] if len(subjects) > 1 and wish.judge and not wish.only else []
    for task in extra:  # the first has nobody to win over
        sheets[0].missing[task.name] = "it is the opponent"
    return Result([*tasks, *extra], sheets)


def _ended(display: Display, name: str, seconds: float, state: str) -> None:
    display.end(name, seconds)
    display.line(f"  {state:<12}  {clock(seconds):>6}  {name}")


def subject(named: str, wish: Wish) -> Subject:
    """The model that PATH or PATH:ADAPTER names: a model folder, a package, a run or a step of it.

    A package is measured with its recovery adapter where it has one, as `openafm chat` uses it; PATH:none is without.
    """
    path, adapter = _placed(named)
    folder = latest_model(path)
    verify(folder)
    package = find_package(folder)
    known = AdapterStore(package / ADAPTERS).names() if package else []
    if adapter == "" and RECOVERY in known:
        adapter = RECOVERY
    adapter = "" if adapter == NONE else adapter
    if adapter and adapter not in known:
        raise ValueError(f"{named}: no adapter {adapter!r}; there are {', '.join(known) or 'none'}")
    talks = not wish.plain and stage_of(folder) not in CONTINUES
    return Subject(folder, name_of(folder), adapter, talks, wish.engine)


def _placed(named: str) -> tuple[Path, str]:
    for text, adapter in ((named, ""), named.rpartition(":")[::2]):
        for path in (Path(text), Path("runs") / text):
            if text and path.exists():
                return path, adapter
    raise ValueError(f"{named} is no model: give a model folder, a package (.afm), a run or a step of one")


def chosen(wish: Wish) -> list[Task]:
    """The tasks. Raises ValueError for a name that fits none."""
    own = [choices.own_task(path) for path in wish.data]
    own += [choices.named_task(name) for name in wish.lm_eval]
    if not wish.only:
        return own if own else list(ALL)
    names = [task.name for task in ALL]
    for pattern in wish.only:
        if not any(_fits(name, pattern) for name in names):
            raise ValueError(f"no task {pattern!r} in the suite; there are {', '.join(names)}")
    return [task for task in ALL if any(_fits(task.name, pattern) for pattern in wish.only)] + own


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or name.partition("/")[0] == pattern


def _judge(named: str) -> Sampler | None:
    if not named:
        return None
    where, _, model = named.partition("#")
    return open_sampler(where if "://" in where else str(latest_model(Path(where))), model=model)


def write(result: Result, out: Path) -> None:
    """Write `evaluation.json` and, a task a file, every item with what was answered, into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(result.json(), indent=1) + "\n")
    for number, sheet in enumerate(result.sheets):
        for task, items in sheet.items.items():
            rows = [json.dumps(replace(item).__dict__, ensure_ascii=False) for item in items]
            name = f"{number}-{task.replace('/', '-')}.jsonl"
            (out / name).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
