"""Answers that a stronger model writes for a ready task, through any `Sampler`, kept or rejected with a reason.

Filters, in this order: length and form, names and numbers that the text does not have (`scoring.written.invented`),
and for summaries whether the text says so (`filters.entailment`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from openafm.files import default_cache
from openafm.sampling.opening import open_sampler
from openafm.stage import Context
from openafm.synthesis.items import Collected
from openafm.synthesis.ready import filters
from openafm.synthesis.ready.tasks import Row, Tone, answer_text, ready_example
from openafm.synthesis.tasks import Example
from openafm.synthesis.writer import Writer, WriterConfig, line

TEMPLATES = {"summaries": "summary", "replies": "reply", "tags": "tags", "tone": "tone"}
"""Task to the prompt that its writer continues, `prompts/ready_NAME.jinja`; proofreading has rules alone."""
NEXT = {"replies": "\nMail:", "tone": "\nTone:"}
"""Where the answer of several lines ends, because the model goes on to the next example."""
Open = tuple[Row, dict[str, str], str]
"""What is to be answered, its id and source, and its place in the file."""


def write_answers(
    task: str, rows: Sequence[Open], config: WriterConfig, entailment: bool, context: Context, collected: Collected
) -> None:
    """Let the writer answer each row; what passes is kept in `collected`, the rest is rejected there."""
    dtype = torch.bfloat16 if context.hardware.precision == "bfloat16" else torch.float32
    cache = default_cache() / "endpoint"
    sampler = open_sampler(config.where, model=config.model, cache=cache, dtype=dtype, engine=config.engine)
    name = config.model or Path(config.where).name
    values = [{"text": row.laid_out(), "tone": row.tone if isinstance(row, Tone) else ""} for row, _, _ in rows]
    room = 2 * max(row.longest for row, _, _ in rows)
    writer = Writer(sampler, context, name)
    made = writer.write(f"ready_{TEMPLATES[task]}", values, max_tokens=room, temperature=0.3)
    passing: list[Example] = []
    for (row, known, _), written in zip(rows, made, strict=True):
        answer, reason, evidence = judged(task, row, written[0])
        if reason == "no_json":
            collected.judge({**known, "task": task, "answer": answer}, reason, evidence)
            continue
        example = ready_example(task, row, known, answer, "synthetic", f"writer-{name}")
        if reason is None:
            passing.append(example)
        else:
            collected.judge(example, reason, evidence)
    if task != "summaries" or not entailment or not passing:
        collected.keep(passing)
        return
    texts = [example["check"]["source"] for example in passing]
    pool = [row.check("")["source"] for row, _, _ in rows]
    margins = filters.entailment(sampler, texts, [example["answer"] for example in passing], pool)
    for example, margin in zip(passing, margins, strict=True):
        collected.judge(example, None if margin > 0 else "not_entailed", f"{margin:.2f}")


def judged(task: str, row: Row, text: str) -> tuple[str, str | None, str]:
    """The answer in a written text, and why it is rejected, or None, with the evidence."""
    if task == "tags":
        return _judged_tags(row, text.strip().partition("\n")[0])
    answer = text.partition(NEXT[task])[0].strip() if task in NEXT else line(text)
    reason = filters.form_reason(row.laid_out(), answer, row.longest)
    return (answer, reason, "") if reason else (answer, *filters.invention_reason(row.laid_out(), answer))


def _judged_tags(row: Row, text: str) -> tuple[str, str | None, str]:
    """Tags whose values the text has; what `kind` it is of cannot be looked up there."""
    try:
        answer = answer_text("tags", text)
    except ValueError as error:
        return text, "no_json", str(error)
    source = row.laid_out().casefold()
    held = [str(value) for values in json.loads(answer).values() if isinstance(values, list) for value in values]
    missing = [value for value in held if value.casefold() not in source]
    return answer, "not_in_text" if missing else None, ", ".join(missing)
