"""Calls of tools in an answer's text, told apart from what it says while it is still being made."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from openafm.tokenizer.calls import CallForm


class Delta(NamedTuple):
    """What a piece of text adds to the answer."""

    kind: Literal["text", "call", "arguments"]
    text: str
    """Words, the name of the tool that is called from here on, or more of its arguments."""


@dataclass
class Made:
    """A call that was read."""

    name: str
    arguments: str = ""
    whole: bool = False
    """Its arguments came to their end; else the answer was cut before."""
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


class CallReader:
    """Reads one answer that is guided by `openafm.serving.tools`; without tools all of it is text.

    Blanks before a call belong to its form and not to what is said, so blanks are held back until more text comes.
    """

    def __init__(self, markers: Mapping[str, str]):
        """`markers` are the texts before a call's arguments, with the name of the tool that each calls."""
        self._markers = markers
        self._held = ""
        self.calls: list[Made] = []

    @classmethod
    def of(cls, form: CallForm, names: list[str]) -> "CallReader":
        """A reader of calls to these tools."""
        return cls({form.marker(name): name for name in names})

    def push(self, text: str) -> list[Delta]:
        """What this text adds."""
        if not self._markers:
            return [Delta("text", text)] if text else []
        self._held += text
        found: list[Delta] = []
        while delta := self._next():
            found.append(delta)
        return [delta for delta in found if delta.text]

    def rest(self) -> list[Delta]:
        """What is held back when no text follows."""
        held, self._held = self._held, ""
        return [Delta("text", held)] if held and not self.calls else []

    def _next(self) -> Delta | None:
        if self.calls and not self.calls[-1].whole:
            return self._arguments(self.calls[-1])
        at, marker = min(((at, m) for m in self._markers if (at := self._held.find(m)) >= 0), default=(-1, ""))
        if at >= 0 and (self.calls or not self._held[:at].strip()):
            self._held = self._held[at + len(marker) :]
            self.calls.append(Made(self._markers[marker]))
            return Delta("call", self.calls[-1].name)
        said = self._held[:at].rstrip() if at >= 0 else self._sayable()
        if self.calls or not said:  # nothing is said after the first call
            return None
        self._held = self._held[len(said) :]
        return Delta("text", said)

    def _sayable(self) -> str:
        """What cannot be part of a call any more."""
        longest = min(max(map(len, self._markers)) - 1, len(self._held))
        tails = (n for n in range(longest, 0, -1) if any(m.startswith(self._held[-n:]) for m in self._markers))
        return self._held[: len(self._held) - next(tails, 0)].rstrip()

    def _arguments(self, call: Made) -> Delta | None:
        """More of the call's arguments, up to the brace that closes them."""
        end = _closed(call.arguments, self._held)
        more, self._held = self._held[:end], self._held[len(self._held) if end is None else end :]
        call.whole = end is not None
        call.arguments += more
        return Delta("arguments", more) if more else None


def _closed(before: str, text: str) -> int | None:
    """Where in `text`, which follows `before`, the JSON object ends; None where it does not."""
    try:
        _, end = json.JSONDecoder().raw_decode(before + text)
    except ValueError:
        return None
    return end - len(before)
