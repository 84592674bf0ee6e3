"""The ready tasks: for each, what a line of its data holds, how that is laid out, and how an answer is checked.

| task | reads | answers |
|---|---|---|
| summaries | `mails`, `chat`, `notifications` or `text` | one line |
| replies | `mails`, and what the answer is to say, `wish` | a reply to the last mail |
| tone | `text`, and the `tone` it is to have | the text in that tone |
| proofreading | `text` | the text without its mistakes |
| tags | `text` | JSON: kind, people, days, times, places, amounts |

Beside these a line has its `answer`, and may have `id` and `source` (what belongs together in one split).
"""

import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import JsonValue, model_validator

from openafm.stage import Config
from openafm.synthesis.ready import layouts
from openafm.synthesis.ready.layouts import Mail, Notification, Said
from openafm.synthesis.tasks import Example

FIELDS = ("kind", "people", "days", "times", "places", "amounts")
"""Fields of the task tags; `kind` is one text, the others are lists, empty where the text has none."""


class Row(Config, ABC):
    """A line of a task's data without its answer."""

    instruction: ClassVar[str]
    """What stands before the text."""
    room: ClassVar[int] = 150
    """Longest text, in words."""
    longest: ClassVar[int]
    """Longest answer, in words."""

    @abstractmethod
    def laid_out(self) -> str:
        """What stands after the instruction; all that an answer may take names and numbers from."""

    def prompt(self) -> str:
        """The user's turn."""
        return self.instruction + self.laid_out()

    @abstractmethod
    def check(self, answer: str) -> dict[str, Any]:
        """How `scoring` checks an answer, `answer` being the right one."""


class Summaries(Row):
    """One of four layouts, to be summed up in a line; asked as the page of `openafm serve` asks."""

    instruction = "Sum up: "
    longest = 20
    mails: tuple[Mail, ...] = ()
    chat: tuple[Said, ...] = ()
    notifications: tuple[Notification, ...] = ()
    text: str = ""

    @model_validator(mode="after")
    def _one_layout(self) -> "Summaries":
        if sum(map(bool, (self.mails, self.chat, self.notifications, self.text.strip()))) != 1:
            raise ValueError("give one of mails, chat, notifications and text, not empty")
        return self

    def laid_out(self) -> str:
        """The layout of what there is."""
        if self.mails:
            return layouts.thread(self.mails, self.room)
        if self.chat:
            return layouts.chat(self.chat, self.room)
        if self.notifications:
            return layouts.bundle(self.notifications, self.room)
        return layouts.cut(" ".join(self.text.split()), self.room)

    def check(self, answer: str) -> dict[str, Any]:
        """Its source is the text without headers, so that its first sentence is one."""
        text = layouts.cut(layouts.unquoted(self.mails[-1].body), self.room) if self.mails else self.laid_out()
        return {"kind": "summary", "source": text, "max_words": self.longest}


class Replies(Row):
    """A thread to be answered."""

    instruction = "Write a reply to the last mail:\n\n"
    longest = 80
    mails: tuple[Mail, ...]
    wish: str = ""

    @model_validator(mode="after")
    def _has_mail(self) -> "Replies":
        if not self.mails:
            raise ValueError("mails must hold the mail that is answered")
        return self

    def laid_out(self) -> str:
        """The thread, and the wish below it."""
        wish = f"\n\nThe reply says: {self.wish.strip()}" if self.wish.strip() else ""
        return layouts.thread(self.mails, self.room) + wish

    def check(self, answer: str) -> dict[str, Any]:
        """Nothing invented, not too long."""
        return {"kind": "reply", "source": self.laid_out(), "max_words": self.longest}


class Tone(Row):
    """A text to be put in another tone."""

    instruction = "Write this in a {tone} tone:\n\n"
    longest = 150
    text: str
    tone: Literal["formal", "casual", "friendly", "concise"]

    def laid_out(self) -> str:
        """The text, its lines kept."""
        return layouts.cut(self.text.strip(), self.room)

    def prompt(self) -> str:
        """The instruction names the tone."""
        return self.instruction.format(tone=self.tone) + self.laid_out()

    def check(self, answer: str) -> dict[str, Any]:
        """The tone by its marks, the words kept."""
        return {"kind": "tone", "source": self.laid_out(), "tone": self.tone}


class Proofreading(Row):
    """A text whose mistakes are to be corrected."""

    instruction = "Correct the mistakes:\n\n"
    longest = 150
    text: str

    def laid_out(self) -> str:
        """The text on one line: corrections are compared word by word."""
        return layouts.cut(" ".join(self.text.split()), self.room)

    def check(self, answer: str) -> dict[str, Any]:
        """The corrections, as edits of words."""
        return {"kind": "edits", "source": self.laid_out()}


class Tags(Row):
    """A text whose facts are wanted as JSON."""

    instruction = f"List as JSON with the keys {', '.join(FIELDS)}:\n\n"
    longest = 100
    text: str

    def laid_out(self) -> str:
        """The text on one line."""
        return layouts.cut(" ".join(self.text.split()), self.room)

    def check(self, answer: str) -> dict[str, Any]:
        """The fields and their values."""
        return {"kind": "fields", "fields": json.loads(answer)}


READY: dict[str, type[Row]] = {
    "summaries": Summaries,
    "replies": Replies,
    "tone": Tone,
    "proofreading": Proofreading,
    "tags": Tags,
}
"""Task to what a line of its data holds."""


def ready_example(task: str, row: Row, known: dict[str, str], answer: str, origin: str, lineage: str) -> Example:
    """An example of a ready task."""
    return {
        **known,
        "task": task,
        "messages": [{"role": "user", "content": row.prompt()}],
        "answer": answer,
        "check": row.check(answer),
        "origin": origin,
        "lineage": f"{lineage}/{task}/{known['source']}",
    }


def answer_text(task: str, answer: JsonValue) -> str:
    """An answer as the model is to write it; of tags the object as compact JSON. Raises ValueError for another form."""
    if task == "tags":
        fields = json.loads(answer) if isinstance(answer, str) else answer
        if not isinstance(fields, dict) or set(fields) - set(FIELDS):
            raise ValueError(f'"answer" must be an object with the keys {", ".join(FIELDS)}')
        return json.dumps(fields, ensure_ascii=False)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError('"answer" is empty or no text')
    return answer.strip()
