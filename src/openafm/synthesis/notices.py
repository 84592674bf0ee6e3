"""Short messages made by rule with a one-line summary that is right by construction (used by `summaries`).

They work where no model and no person wrote one: a kind of notice is drawn, then what it says, then its wording
(`notices.yaml`). A message may hold an aside, before or after, that the summary leaves out.
"""

import random
from functools import cache
from pathlib import Path
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


def notices(count: int, max_words: int, seed: int) -> list[Example]:
    """`count` different messages of at most so many words, each with its summary, as examples of task `summary`."""
    rng, found = random.Random(f"{seed}/notices"), dict[str, Example]()
    forms = _forms()
    for _ in range(20 * count):
        kind = rng.choice(sorted(forms["kinds"]))
        details = _details(rng)
        sentences = [rng.choice(forms["kinds"][kind]["texts"]), rng.choice(forms["asides"])]
        sentences = [sentences[:1], sentences, sentences[::-1]][rng.randrange(3)]
        text = " ".join(sentences).format(**details)
        summary = forms["kinds"][kind]["summary"].format(**details)
        check = {"kind": "summary", "source": text, "max_words": len(summary.split())}
        if len(text.split()) <= max_words:
            problem = Problem(f"Sum up: {text}", summary, f"{kind}: {summary}", check)
            found.setdefault(text, tasks.example("summary", problem, lineage="programmatic"))
        if len(found) == count:
            break
    return list(found.values())
