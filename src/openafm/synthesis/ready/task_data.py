"""Step `task_data`: a task's examples, read and checked line by line (`openafm adapt BASE --task TASK --data FILE`).

Of a ready task (`openafm.synthesis.ready.tasks`) a line is laid out as that task is; one without an answer gets it by
rule where the task has a rule, else from the writer, filtered. Of any other task a line is `{"messages": [{"role",
"content"}, …], "answer": …}`, or `{"text": …, "summary": …}`; `answer` and `summary` may stand for each other, and a
conversation that ends with the assistant carries its own answer. A file NAME.mbox is read as mail.
"""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from openafm import jsonl
from openafm.stage import Config, Context, Metrics
from openafm.synthesis.items import Collected
from openafm.synthesis.ready import mailbox, rules
from openafm.synthesis.ready.tasks import READY, Row, answer_text, ready_example
from openafm.synthesis.ready.writing import Open, write_answers
from openafm.synthesis.tasks import Example
from openafm.synthesis.writer import WriterConfig
from openafm.tokenizer.chat import ROLES

LEAST = 10
"""Fewer examples leave nothing to train on beside validation and test."""


class TaskDataConfig(Config):
    """Where the examples are, and who answers what has no answer."""

    data: str = ""
    """A JSON Lines file or an mbox; empty for `made` examples alone."""
    task: str = ""
    """A ready task, or empty for one of the user's own."""
    prompt: str = "Sum up: "
    """Of a task of one's own: what stands before the text of a line that has `text` in place of `messages`."""
    made: int = 0
    """Examples made by rule beside those of the file, for the tasks that have such."""
    writer: WriterConfig | None = None
    """The model that answers lines without an answer; also judges whether their text says so, where it can score."""
    entailment: bool = True
    """Whether a written summary must follow from its text, by the writer's own judgement."""

    def files(self) -> list[Path]:
        """The file itself: a change of it makes the step stale."""
        return [Path(self.data)] if self.data and Path(self.data).is_file() else []


def task_data(config: TaskDataConfig, context: Context) -> Metrics:
    """Write `examples.jsonl` and `rejected.jsonl`.

    Raises ValueError naming file, line and remedy for the first line that is no example.
    """
    if config.task and config.task not in READY:
        raise ValueError(f"no ready task {config.task!r}: choose {', '.join(READY)}, or leave task empty for your own")
    collected = Collected()
    open_rows: list[Open] = []
    for row, place in _lines(config):
        if not config.task or "messages" in row:
            collected.keep([example(row, config.prompt, place)])
            continue
        parsed, known, answer = ready_row(config.task, row, place)
        if answer is not None:
            collected.keep([ready_example(config.task, parsed, known, answer, "given", "given")])
        else:
            open_rows.append((parsed, known, place))
    open_rows = [rest for rest in open_rows if not _by_rule(config.task, *rest[:2], context.seed, collected)]
    if open_rows:
        if config.writer is None:
            raise ValueError(
                f'{open_rows[0][2]}: no "answer": add it, or let a model write it (--writer URL_OR_FOLDER)'
            )
        write_answers(config.task, open_rows, config.writer, config.entailment, context, collected)
    if config.made:
        collected.keep(_made(config, context.seed))
    if len(collected.kept) < LEAST:
        rejected = f" ({len(collected.rejected)} were rejected: rejected.jsonl says why)" if collected.rejected else ""
        raise ValueError(
            f"{config.data or config.task} gives {len(collected.kept)} examples{rejected}: give at least {LEAST}, "
            "better some hundreds"
        )
    jsonl.write(context.out / "examples.jsonl", collected.kept)
    jsonl.write(context.out / "rejected.jsonl", collected.rejected)
    reasons = [row["reason"] for row in collected.rejected]
    return {
        "headline": f"{len(collected.kept)} examples" + (f", {len(reasons)} rejected" if reasons else ""),
        "examples": len(collected.kept),
        "rejected": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }


def _lines(config: TaskDataConfig) -> list[tuple[dict[str, Any], str]]:
    """The file's rows, each with what errors call its place."""
    if not config.data:
        if not config.made:
            raise ValueError("no examples: give a file (--data FILE), or a number to make by rule (--made N)")
        return []
    path = Path(config.data)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a JSON Lines file of examples, or an mbox")
    if path.suffix == ".mbox":
        return mailbox.rows(path, config.task)
    return [(row, f"{path}:{number}") for number, row in jsonl.numbered(path.read_bytes(), str(path))]


def ready_row(task: str, row: dict[str, Any], place: str) -> tuple[Row, dict[str, str], str | None]:
    """A line of a ready task: what it reads, its id and source, its answer or None. ValueError naming `place`."""
    rest = {key: value for key, value in row.items() if key not in ("id", "source", "answer", "summary")}
    try:
        parsed = READY[task].model_validate(rest)
        given = row.get("answer", row.get("summary"))
        answer = None if given is None else answer_text(task, given)
    except ValidationError as errors:
        error = errors.errors()[0]
        where = ".".join(map(str, error["loc"]))
        what = f'"{where}": {error["msg"]}' if where else error["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: no line of the task {task}: {what} (docs/adapters.md shows its form)") from None
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    source = row.get("source") or hashlib.sha256(parsed.prompt().encode()).hexdigest()[:16]
    return parsed, {"id": str(row.get("id", place)), "source": str(source)}, answer


def _by_rule(task: str, row: Row, known: dict[str, str], seed: int, collected: Collected) -> bool:
    """Answer a line by the task's rule, where there is one for it; whether there is."""
    made = rules.by_rule(row, f"{seed}/{known['id']}")
    if made is None:
        return False
    asked, answer = made
    new = ready_example(task, asked, known, answer, "synthetic", "rule")
    collected.judge(new, "nothing_to_change" if asked.laid_out() == answer else None)
    return True


def _made(config: TaskDataConfig, seed: int) -> list[Example]:
    if config.task not in rules.MADE:
        raise ValueError(f"nothing is made by rule for {config.task or 'a task of your own'}; so it is for: "
                         f"{', '.join(rules.MADE)}. Give examples instead (--data FILE)")  # fmt: skip
    rows = rules.MADE[config.task](config.made, seed)
    return [
        ready_example(
            config.task, row, {"id": f"made-{number}", "source": f"made-{number}"}, answer, "synthetic", "rule"
        )
        for number, (row, answer) in enumerate(rows)
    ]


def example(row: dict[str, Any], prompt: str, place: str) -> Example:
    """One line of a task of one's own as an example; `place` is what errors call it."""
    messages, answer = row.get("messages"), row.get("answer", row.get("summary"))
    if messages is None:
        if not isinstance(row.get("text"), str):
            raise ValueError(f'{place}: neither "messages" nor "text": write {{"messages": […], "answer": "…"}}')
        messages = [{"role": "user", "content": f"{prompt}{row['text']}"}]
    _check_messages(messages, place)
    if answer is None and messages[-1]["role"] == "assistant":
        *messages, last = messages
        answer = last["content"]
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f'{place}: no "answer" (or "summary"), or it is empty: add the text to be learned')
    if not messages:
        raise ValueError(f"{place}: nothing comes before the answer: add the user's message")
    source = row.get("source") or hashlib.sha256(str(messages[-1]["content"]).encode()).hexdigest()[:16]
    return {"id": str(row.get("id", place)), "source": str(source), "messages": messages, "answer": answer}


def _check_messages(messages: Any, place: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f'{place}: "messages" must be a list of at least one {{"role", "content"}}')
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'{place}: a message needs a text under "content"')
        if message.get("role") not in ROLES:
            raise ValueError(f"{place}: role {message.get('role')!r} is not one of {', '.join(ROLES)}")
