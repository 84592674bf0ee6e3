"""Preferences from people (AFM, section 4.1.1): what `openafm label RUN` asks and keeps; step `labels` reads it.

A labeller sees a prompt with two of the committee's answers, says which is better at one of four strengths, and grades
both in four dimensions. A label is a line in the format of step `preferences`, so that people, programs and models that
judge all feed the same reward model.
"""

import fcntl
import hashlib
import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from openafm import jsonl
from openafm.posttraining.committee import by_prompt
from openafm.posttraining.examples import Row, question, share, write_json
from openafm.posttraining.preferences import strength_counts
from openafm.scoring.checks import DIMENSIONS, STRENGTHS
from openafm.stage import Config, Context, Metrics

FOLDER = "human-labels"
"""Where a run keeps its labels, a file a labeller: beside the artifacts, so that no step can delete them."""
GRADES = {
    "instruction following": ("not followed", "partly", "fully"),
    "truthfulness": ("wrong", "partly right", "right"),
    "harmlessness": ("harmful", "doubtful", "harmless"),
    "conciseness": ("wordy, empty", "a bit long", "concise"),
}
"""What the grades 0, 1 and 2 mean in each dimension."""
assert tuple(GRADES) == DIMENSIONS
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers in an order of their own, whoever gave them and whoever sees them."""

    id: str
    task: str
    messages: list[dict[str, str]]
    answers: tuple[str, str]


def pair(prompt: Row, one: str, two: str) -> Pair:
    """The two answers to a prompt, sorted; the id is the prompt's and a hash of both."""
    answers = (min(one, two), max(one, two))
    digest = hashlib.sha256(json.dumps(answers).encode()).hexdigest()[:8]
    return Pair(f"{prompt['id']}/{digest}", prompt["task"], prompt["messages"], answers)


def pairs_of_run(run: Path, step: str | None, seed: int) -> list[Pair]:
    """The pairs of one step, or of all finished steps that made rollouts (of preferences, where there are none)."""
    manifests = [json.loads(path.read_text()) for path in sorted(run.glob("[!.]*/manifest.json"))]
    stages = {m["step"]: m["stage"] for m in manifests if m["stage"] in ("rollouts", "preferences")}
    if step and step not in stages:
        raise ValueError(f"{run} has no rollouts or preferences of {step!r}; there are: {', '.join(stages) or 'none'}")
    drawn = [name for name, stage in stages.items() if stage == "rollouts"] or list(stages)
    if not drawn:
        raise ValueError(f"{run} has no answers to label yet: run its steps `rollouts` or `preferences`")
    found = {p.id: p for name in ([step] if step else drawn) for p in pairs_to_label(run / name, seed)}
    return sorted(found.values(), key=lambda p: share(seed, p.id))


def pairs_to_label(artifact: Path, seed: int) -> list[Pair]:
    """Pairs of an artifact of step `rollouts` (one a prompt, of two members where possible) or `preferences`, shuffled.

    What programs or other people said of them is left out. Raises ValueError where no prompt has two answers.
    """
    rollouts = artifact / "rollouts.jsonl"
    if rollouts.exists():
        rows = jsonl.read(rollouts)
        members: dict[str, dict[str, str]] = {}
        for row in rows:
            members.setdefault(row["id"], {}).update({c["text"]: row["member"] for c in row["completions"]})
        drawn = [(row, _two(members[row["id"]], f"{seed}/{row['id']}")) for row, _ in by_prompt(rows)]
        found = [pair(row, *two) for row, two in drawn if two]
    else:
        rows = jsonl.read(artifact / "train.jsonl")
        prompts = [{**row, "id": row["id"].rpartition("/")[0]} for row in rows]
        found = list({(p := pair(row, row["chosen"], row["rejected"])).id: p for row in prompts}.values())
    if not found:
        raise ValueError(f"{artifact}: no prompt has two different answers; give its step more samples")
    return sorted(found, key=lambda p: share(seed, p.id))


def _two(members: Mapping[str, str], seed: str) -> tuple[str, str] | None:
    """Two different answers (text -> member), of different members if there are; None where all are the same."""
    texts = sorted(members)
    if len(texts) < 2:
        return None
    rng = random.Random(seed)
    first = rng.choice(texts)
    others = [text for text in texts if members[text] != members[first]] or [text for text in texts if text != first]
    return first, rng.choice(others)


def preference(pair: Pair, labeller: str, better: int, strength: int, grades: Sequence[Sequence[int]]) -> Row:
    """A label as a row of preferences; `better` and the two lists of grades are in the order of `pair.answers`."""
    worse = 1 - better
    return {
        "id": pair.id,
        "labeller": labeller,
        "task": pair.task,
        "messages": pair.messages,
        "chosen": pair.answers[better],
        "rejected": pair.answers[worse],
        "strength": strength,
        "grades_chosen": list(grades[better]),
        "grades_rejected": list(grades[worse]),
        "margin": strength + 1,
    }


class Labels:
    """One labeller's file: a line is added and on disk when `add` returns; the last line on a pair counts.

    Beside labels there are `{"id", "labeller", "skipped": true}` and the same with `"undone"`.
    """

    def __init__(self, run: Path, labeller: str):
        """Open or begin the file. Raises ValueError for a bad name, or where the same labeller is at work already."""
        if not _NAME.fullmatch(labeller):
            raise ValueError(f"--labeller {labeller!r}: use 1 to 40 letters, digits, dots, hyphens or underscores")
        self.labeller, self.path = labeller, run / FOLDER / f"{labeller}.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        self._file = self.path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(f"{labeller} is labelling this run already: stop the other `openafm label`") from None
        self._file.seek(0)
        data = self._file.read()
        self._file.truncate(data.rfind(b"\n") + 1)  # a kill or a full disk may have cut the last line
        self.current = latest(jsonl.parse(data[: data.rfind(b"\n") + 1], str(self.path)))

    def add(self, row: Row) -> None:
        """Keep a label, a skip or an undo."""
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.current = latest([*self.current.values(), row])

    def undo(self) -> None:
        """Take the last label or skip back; the pair is asked again."""
        if self.current:
            self.add({"id": list(self.current)[-1], "labeller": self.labeller, "undone": True})

    def close(self) -> None:
        """Let another process label under this name."""
        self._file.close()


def latest(rows: Sequence[Row]) -> dict[str, Row]:
    """What counts of one labeller's lines: by pair, the last added last."""
    found: dict[str, Row] = {}
    for row in rows:
        found.pop(row["id"], None)
        if not row.get("undone"):
            found[row["id"]] = row
    return found


def labelled(run: Path) -> list[Row]:
    """All labels of a run, every labeller's. Raises ValueError where there are none."""
    rows = [
        row
        for path in sorted((run / FOLDER).glob("*.jsonl"))
        for row in latest(jsonl.read(path)).values()
        if not row.get("skipped")
    ]
    if not rows:
        raise ValueError(f"{run} has no labels yet: `openafm label {run}` makes some")
    return rows


def agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """Krippendorff's alpha between labellers: of the better side, the signed strength, and each dimension's grades.

    1 is full agreement, 0 what chance would give. None where no two labelled the same pair, or all said one thing.
    Strengths and grades count as ordinal (Krippendorff, Content Analysis, chapter 11).
    """
    names = sorted({row["labeller"] for row in rows})
    strengths: dict[str, dict[str, int]] = {}
    grades: list[dict[str, dict[str, int]]] = [{} for _ in DIMENSIONS]
    for row in rows:
        first = min(row["chosen"], row["rejected"]) == row["chosen"]
        strengths.setdefault(row["id"], {})[row["labeller"]] = (row["strength"] + 1) * (1 if first else -1)
        for side in ("chosen", "rejected"):
            for units, grade in zip(grades, row[f"grades_{side}"], strict=True):
                units.setdefault(f"{row['id']}/{row[side]}", {})[row["labeller"]] = grade
    sides = {unit: {name: int(value > 0) for name, value in by.items()} for unit, by in strengths.items()}
    return {
        "labels": {name: sum(row["labeller"] == name for row in rows) for name in names},
        "pairs": len(strengths),
        "pairs_of_several": sum(len(by) > 1 for by in strengths.values()),
        "alpha": {"better answer": alpha(sides, "nominal"), "strength": alpha(strengths, "ordinal")}
        | {name: alpha(units, "ordinal") for name, units in zip(DIMENSIONS, grades, strict=True)},
    }


def told(found: Mapping[str, Any], exported: Path) -> list[str]:
    """What an export says in the terminal."""
    by = ", ".join(f"{name} {n}" for name, n in found["labels"].items())
    rows = [f"{exported}: {sum(found['labels'].values())} labels of {found['pairs']} pairs ({by})"]
    if not found["pairs_of_several"]:
        return [*rows, "agreement: no pair was labelled by two"]
    values = [f"  {name:<22} {'–' if a is None else f'{a:.3f}'}" for name, a in found["alpha"].items()]
    return [*rows, f"Krippendorff's alpha, {found['pairs_of_several']} pairs labelled by several:", *values]


def alpha(units: Mapping[str, Mapping[str, int]], level: Literal["nominal", "ordinal"]) -> float | None:
    """Krippendorff's alpha of values by unit and labeller; None where nothing can be compared.

    One less observed over expected disagreement, of all pairs of values within units and of all pairs at all
    (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, sections C and D).
    """
    shared = [list(by.values()) for by in units.values() if len(by) > 1]
    values = sorted(set(chain.from_iterable(shared)))
    if len(values) < 2:
        return None
    together = np.zeros((len(values), len(values)))
    for unit in shared:
        counts = np.array([unit.count(value) for value in values], dtype=float)
        together += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    counts = together.sum(0)
    apart = _apart(counts, level)
    expected = (np.outer(counts, counts) * apart).sum() / (counts.sum() - 1)
    return round(1 - float((together * apart).sum() / expected), 4)


def _apart(counts: NDArray[np.float64], level: Literal["nominal", "ordinal"]) -> NDArray[np.float64]:
    """Squared differences `(values, values)`; ordinal: how many values lie between two, the half of both included."""
    if level == "nominal":
        return 1 - np.eye(len(counts))
    middle = counts.cumsum() - counts / 2
    return np.square(middle[:, None] - middle)


Grade = Annotated[int, Field(ge=0, le=2)]


class Message(BaseModel):
    """A turn of the prompt."""

    role: str
    content: str


class Judgement(BaseModel, strict=True):
    """One line of preferences, by whomever: what the reward model reads. Further keys are left alone."""

    id: str = Field(min_length=1)
    labeller: str = "unnamed"
    task: str = "labelled"
    messages: list[Message] = Field(min_length=1)
    chosen: str
    rejected: str
    strength: int = Field(ge=0, lt=len(STRENGTHS))
    grades_chosen: list[Grade] = Field(min_length=4, max_length=4)
    grades_rejected: list[Grade] = Field(min_length=4, max_length=4)

    @model_validator(mode="after")
    def _two_answers(self) -> "Judgement":
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same text: no preference")
        return self


class LabelsConfig(Config):
    """Which labels to read."""

    data: str
    """What `openafm label RUN --export FILE` wrote, or another judge in the same format."""
    heldout_percent: float = Field(default=20.0, gt=0, lt=100)
    """Share of the prompts that no reward model is trained on."""

    def files(self) -> list[Path]:
        """The file itself: a change of it makes the step stale."""
        return [Path(self.data)] if Path(self.data).is_file() else []


def labels(config: LabelsConfig, context: Context) -> Metrics:
    """Write labels as preferences: `train.jsonl` and `heldout.jsonl`, split by prompt, and `mapping.json`.

    Raises ValueError naming file, line and remedy for the first line that is none.
    """
    path = Path(config.data)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: `openafm label RUN --export {path}` writes it")
    rows = [judgement(row, f"{path}:{number}") for number, row in jsonl.numbered(path.read_bytes(), str(path))]
    # The prompt that comes first by its hash is always held out, so that few labels leave one too.
    places = {question(row): share(context.seed, question(row)) for row in rows}
    if len(places) < 2:
        raise ValueError(f"{path} has {len(places)} prompts: label at least 2, better some hundreds")
    bound = max(config.heldout_percent / 100, min(places.values()))
    split: dict[str, list[Row]] = {"train": [], "heldout": []}
    for row in rows:
        split["heldout" if places[question(row)] <= bound else "train"].append(row)
    if not split["train"]:
        raise ValueError(f"{path}: all {len(places)} prompts are held out; lower heldout_percent or label more")
    metrics: dict[str, Any] = {"judges": agreement(rows)}
    for name, members in split.items():
        jsonl.write(context.out / f"{name}.jsonl", members)
        metrics[name] = {"pairs": len(members), "strengths": strength_counts(members)}
    write_json(context.out / "mapping.json", metrics)
    by = ", ".join(f"{name} {n}" for name, n in metrics["judges"]["labels"].items())
    headline = f"{len(split['train'])} pairs to train on, {len(split['heldout'])} held out; labelled by {by}"
    return {"headline": headline, **metrics}


def judgement(row: Row, place: str) -> Row:
    """One line as a preference, with `margin` (the strength from 1 to 4) where a judge gave none."""
    try:
        kept = Judgement.model_validate(row).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(map(str, first["loc"])) or "the line"
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {what}: {message}; mend or delete the line (docs/posttraining.md)") from None
    return {**row, **kept, "margin": row.get("margin", row["strength"] + 1)}
