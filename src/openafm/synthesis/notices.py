"""Short messages made by rule with a one-line summary that is right by construction (`summaries`, ready tasks).

They work where no model and no person wrote one: a kind of notice is drawn, then what it says, then its wording
(`notices.yaml`). A message may hold an aside, before or after, that the summary leaves out.
"""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from openafm.synthesis import tasks
from openafm.synthesis.tasks import Example, Problem

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@cache
def _forms() -> dict[str, Any]:
    forms: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "notices.yaml").read_text("utf-8"))
    return forms


def _details(rng: random.Random) -> dict[str, str]:
    """What a notice may be about."""
    forms, words = _forms(), tasks.words()
    day, later = sorted(rng.sample(range(len(DAYS)), 2))
    name, other = rng.sample(forms["people"].split(), 2)
    return {
        "name": name,
        "other": other,
        "day": DAYS[day],
        "later": DAYS[later],
        "hour": f"{rng.randint(8, 20)}:{rng.choice(('00', '15', '30'))}",
        "number": str(rng.randint(2, 12)),
        "money": str(rng.randint(10, 400)),
        "event": rng.choice(forms["events"].split()),
        "place": rng.choice(forms["places"].split()),
        "thing": rng.choice(words["tools"]),
        "animal": rng.choice(words["animals"]),
        "colour": rng.choice(words["colors"]),
    }


@dataclass(frozen=True)
class Notice:
    """A message, its summary, and what both are about."""

    kind: str
    text: str
    summary: str
    facts: dict[str, str]
    """Those details that the text tells, by their names in notices.yaml, in the text's order."""


def draw(rng: random.Random) -> Notice:
    """A notice: its kind, what it says, its wording, and perhaps an aside before or after."""
    forms = _forms()
    kind = rng.choice(sorted(forms["kinds"]))
    details = _details(rng)
    sentences = [rng.choice(forms["kinds"][kind]["texts"]), rng.choice(forms["asides"])]
    wording = " ".join([sentences[:1], sentences, sentences[::-1]][rng.randrange(3)])
    told = {name: details[name] for _, name, _, _ in Formatter().parse(wording) if name}
    return Notice(kind, wording.format(**details), forms["kinds"][kind]["summary"].format(**details), told)


def notices(count: int, max_words: int, seed: int) -> list[Example]:
    """`count` different messages of at most so many words, each with its summary, as examples of task `summary`."""
    rng, found = random.Random(f"{seed}/notices"), dict[str, Example]()
    for _ in range(20 * count):
        notice = draw(rng)
        text, summary = notice.text, notice.summary
        check = {"kind": "summary", "source": text, "max_words": len(summary.split())}
        if len(text.split()) <= max_words:
            problem = Problem(f"Sum up: {text}", summary, f"{notice.kind}: {summary}", check)
            found.setdefault(text, tasks.example("summary", problem, lineage="programmatic"))
        if len(found) == count:
            break
    return list(found.values())
