"""Reading an mbox as lines of the tasks summaries and replies: threads, oldest mail first.

Mails belong to a thread by the headers In-Reply-To and References. For `replies` a thread's last mail is the answer to
those before it; threads of one mail are left out. Only plain text is read; attachments and HTML are not.
"""

import mailbox
from email.header import decode_header, make_header
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from openafm.synthesis.ready.layouts import unquoted


def rows(path: Path, task: str) -> list[tuple[dict[str, Any], str]]:
    """Rows for `summaries` (threads) or `replies` (a thread, and its last mail's own words as the answer).

    Each comes with its place in the file. Raises ValueError for another task and for a file without mails.
    """
    if task not in ("summaries", "replies"):
        raise ValueError(
            f"{path}: an mbox gives summaries and replies; give a JSON Lines file for {task or 'this task'}"
        )
    box = mailbox.mbox(str(path), create=False)
    threads = _threads([message for message in box if _text(message)])
    if not threads:
        raise ValueError(f"{path} holds no mail with a plain text: give an mbox (mails parted by lines `From …`)")
    found: list[tuple[dict[str, Any], str]] = []
    for number, thread in enumerate(threads, 1):
        mails = [_row(message) for message in thread]
        place = f"{path}, thread {number}"
        if task == "summaries":
            found.append(({"mails": mails, "source": place}, place))
        elif len(mails) > 1 and (answer := unquoted(mails[-1]["body"])):
            found.append(({"mails": mails[:-1], "answer": answer, "source": place}, place))
    return found


def _threads(messages: list[Message]) -> list[list[Message]]:
    """Messages grouped by the first one they go back to, each group by date."""
    root: dict[str, str] = {}
    groups: dict[str, list[Message]] = {}
    for number, message in enumerate(sorted(messages, key=_when)):
        own = str(message["Message-ID"] or number)
        before = f"{message['References'] or ''} {message['In-Reply-To'] or ''}".split()
        root[own] = next((root[one] for one in reversed(before) if one in root), own)
        groups.setdefault(root[own], []).append(message)
    return list(groups.values())


def _when(message: Message) -> float:
    """Seconds since 1970; 0 where the date is missing or wrong."""
    try:
        return parsedate_to_datetime(str(message["Date"])).timestamp()
    except (TypeError, ValueError):
        return 0.0


def _row(message: Message) -> dict[str, str]:
    heads = {"from": "From", "subject": "Subject", "date": "Date"}
    return {key: _decoded(message[head]) for key, head in heads.items()} | {"body": _text(message)}


def _decoded(header: Any) -> str:
    """A header's text, RFC 2047 words decoded; as it stands where they are broken."""
    try:
        return " ".join(str(make_header(decode_header(str(header or "")))).split())
    except (LookupError, ValueError):
        return " ".join(str(header).split())


def _text(message: Message) -> str:
    """The first plain text part."""
    for part in message.walk():
        if part.get_content_type() == "text/plain" and not part.get_filename():
            data = part.get_payload(decode=True)
            charset = part.get_content_charset("utf-8")
            if isinstance(data, bytes):
                try:
                    return data.decode(charset, errors="replace").strip()
                except LookupError:
                    return data.decode("utf-8", errors="replace").strip()
    return ""
