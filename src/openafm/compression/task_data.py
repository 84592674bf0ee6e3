"""Step `task_data`: a user's examples of a task, read and checked (`openafm adapt MODEL TASK DATA.jsonl`).

A line is `{"messages": [{"role", "content"}, …], "answer": …}`, or `{"text": …, "summary": …}` for summaries; `answer`
and `summary` may stand for each other, and a conversation that ends with the assistant carries its own answer.
"""

import hashlib
from pathlib import Path
from typing import Any

from openafm import jsonl
from openafm.stage import Config, Context, Metrics
from openafm.tokenizer.chat import ROLES

LEAST = 10
"""Fewer examples leave nothing to train on beside validation and test."""


class TaskDataConfig(Config):
    """Where the examples are."""

    data: str
    """The JSON Lines file."""
    prompt: str = "Sum up: "
    """What stands before the text of a line that has `text` in place of `messages`."""

    def files(self) -> list[Path]:
        """The file itself: a change of it makes the step stale."""
        return [Path(self.data)] if Path(self.data).is_file() else []


def task_data(config: TaskDataConfig, context: Context) -> Metrics:
    """Write `examples.jsonl`. Raises ValueError naming file, line and remedy for the first line that is no example."""
    path = Path(config.data)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a JSON Lines file of examples")
    rows = jsonl.numbered(path.read_bytes(), str(path))
    examples = [example(row, config.prompt, f"{path}:{number}") for number, row in rows]
    if len(examples) < LEAST:
        raise ValueError(f"{path} holds {len(examples)} examples: give at least {LEAST}, better some hundreds")
    jsonl.write(context.out / "examples.jsonl", examples)
    return {"headline": f"{len(examples)} examples", "examples": len(examples)}


def example(row: dict[str, Any], prompt: str, place: str) -> dict[str, Any]:
    """One line as an example; `place` is what errors call it."""
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
