"""How mails, chats and notifications look to a model: what training and use must lay out alike.

AFM trains its summaries on the layouts of real mails, messages and notifications (arXiv 2407.21075, section 5.2).
Addresses are left out, names stay. What is too long is cut where it tells least: quoted lines first, then old mails.
"""

import re
from collections.abc import Iterable, Sequence
from email.utils import parseaddr
from typing import Literal

from pydantic import ConfigDict, Field

from openafm.stage import Config

QUOTED_LINES = 3
"""Lines in a row that a mail may quote before the rest of them is left out."""


class Part(Config):
    """Of what a task reads; `from` is a word of Python's, so the field is called `sender` here."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Mail(Part):
    """One mail of a thread."""

    sender: str = Field(alias="from")
    subject: str = ""
    date: str = ""
    body: str


class Said(Part):
    """One message of a chat."""

    sender: str = Field(alias="from")
    time: str = ""
    text: str


class Notification(Part):
    """One notification; the levels of urgency are the desktop specification's (freedesktop.org, version 1.2)."""

    app: str
    title: str = ""
    body: str = ""
    time: str = ""
    urgency: Literal["low", "normal", "critical"] = "normal"


def name_of(sender: str) -> str:
    """The name of `Ann Lee <ann@example.org>`; of a bare address what stands before the @."""
    name, address = parseaddr(sender)
    return name or address.partition("@")[0] or sender.strip()


def own_text(body: str) -> str:
    """A mail's text without its signature, quotes shortened to `QUOTED_LINES` lines each."""
    body = re.split(r"^-- ?$", body.replace("\r\n", "\n"), maxsplit=1, flags=re.MULTILINE)[0]
    lines, quoted = [], 0
    for line in body.split("\n"):
        quoted = quoted + 1 if line.startswith(">") else 0
        if quoted <= QUOTED_LINES:
            lines.append(line.rstrip())
        elif quoted == QUOTED_LINES + 1:
            lines.append("> …")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def unquoted(body: str) -> str:
    """What the sender of a mail wrote alone: no quoted lines, no line that announces them, no signature."""
    text = own_text(body)
    text = re.sub(r"^(?:On .{5,80}|.{2,60}) wrote:\s*\n(?=>|\s*\n>)", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"^>.*\n?", "", text, flags=re.MULTILINE)).strip()


def cut(text: str, words: int) -> str:
    """The first `words` words of a text, its lines kept; an ellipsis stands for the rest."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text if len(ends) <= words else f"{text[: ends[words - 1]]} …"


def mail(one: Mail, words: int) -> str:
    """A mail with the headers that a reader sees."""
    heads = {"From": name_of(one.sender), "Date": one.date, "Subject": one.subject}
    told = [f"{head}: {' '.join(value.split())}" for head, value in heads.items() if value.strip()]
    return "\n".join(told) + "\n\n" + cut(own_text(one.body), words)


def thread(mails: Sequence[Mail], words: int) -> str:
    """Mails of a thread, the oldest first. The newest has half of the room or more; of older ones the newest lead."""
    laid: list[str] = []
    left = words
    for number, one in enumerate(reversed(mails)):
        if left < 8:
            break
        older = len(mails) - number - 1
        text = mail(one, max(left // 2, left - 40 * older) if older else left)
        laid.append(text)
        left -= len(text.split())
    return "\n\n---\n\n".join(reversed(laid))


def chat(messages: Iterable[Said], words: int) -> str:
    """A chat, a line a message; of one that is too long the end."""
    lines = [f"{name_of(one.sender)}{f' ({one.time})' if one.time else ''}: {_flat(one.text)}" for one in messages]
    return _last_lines(lines, words)


def bundle(notifications: Iterable[Notification], words: int) -> str:
    """A bundle of notifications, a line each, urgent ones first and marked; of one that is too long the beginning."""
    order = sorted(notifications, key=lambda one: ("critical", "normal", "low").index(one.urgency))
    lines = []
    for one in order:
        told = ": ".join(part for part in (_flat(one.title), _flat(one.body)) if part)
        when = f", {one.time}" if one.time else ""
        lines.append(f"[{_flat(one.app)}{when}]{' (urgent)' if one.urgency == 'critical' else ''} {told}")
    return cut("\n".join(lines), words)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _last_lines(lines: Sequence[str], words: int) -> str:
    kept: list[str] = []
    for line in reversed(lines):
        if kept and sum(len(one.split()) for one in kept) + len(line.split()) > words:
            break
        kept.append(line)
    return cut("\n".join(reversed(kept)), words)
