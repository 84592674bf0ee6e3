"""What `openafm serve` answers: OpenAI's objects for chats and text completions, whole and in chunks."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from openafm.model.generation import Choice
from openafm.serving.answer import Answer, Piece
from openafm.serving.body import ApiError
from openafm.serving.calls import CallReader, Delta
from openafm.serving.logprobs import Teller
from openafm.serving.requests import StreamOptions

Chunk = dict[str, Any]


class Reply(Protocol):
    """One request's envelope; its answers are put in whole, or as events piece by piece."""

    done: bytes
    """The wire's last bytes, after `end`."""

    @property
    def id(self) -> str:
        """What the answers are called, here and in the log."""
        ...

    def whole(self, made: Sequence[Sequence[Piece]], answers: Sequence[Answer]) -> Chunk:
        """The finished answers."""
        ...

    def begin(self, answers: Sequence[Answer]) -> list[Chunk]:
        """What a stream of these answers begins with."""
        ...

    def piece(self, index: int, piece: Piece) -> list[Chunk]:
        """Events of a further piece of one answer."""
        ...

    def last(self, index: int, answer: Answer) -> list[Chunk]:
        """Events of one answer's end."""
        ...

    def end(self, answers: Sequence[Answer]) -> list[Chunk]:
        """What a stream ends with when all answers have."""
        ...

    def error(self, error: ApiError) -> Chunk:
        """What a stream ends with in their stead."""
        ...

    def frame(self, chunk: Chunk) -> bytes:
        """One event on the wire."""
        ...


@dataclass(frozen=True)
class CompletionReply:
    """The envelope of a chat or a text completion."""

    model: str
    chat: bool
    readers: Sequence[CallReader]
    """One for each answer."""
    tellers: Sequence[Teller] = ()
    """One for each answer, where log-probabilities are told."""
    counts: StreamOptions = field(default_factory=StreamOptions)
    streamed: list[Answer] = field(default_factory=list)
    """The answers of a stream, for their counts so far."""
    key: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    done = b"data: [DONE]\n\n"

    @property
    def id(self) -> str:
        """OpenAI's id of the completion."""
        return ("chatcmpl-" if self.chat else "cmpl-") + self.key

    def whole(self, made: Sequence[Sequence[Piece]], answers: Sequence[Answer]) -> Chunk:
        """The finished answers."""
        choices = []
        for index, (pieces, answer) in enumerate(zip(made, answers, strict=True)):
            told = self._told(index, [piece.choice for piece in pieces])
            content = self._content(self.readers[index], "".join(piece.text for piece in pieces))
            choices.append({"index": index, **content, "logprobs": told, "finish_reason": self._finish(index, answer)})
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(answers)}

    def echo(self, prompt: str, read: Sequence[Choice]) -> Chunk:
        """A prompt with its log-probabilities, and nothing made."""
        choice = {"index": 0, "text": prompt, "logprobs": self._told(0, read), "finish_reason": "length"}
        count = len(read) + 1
        usage = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
        return {**self._head(""), "choices": [choice], "usage": usage}

    def _content(self, reader: CallReader, text: str) -> Chunk:
        said = "".join(delta.text for delta in [*reader.push(text), *reader.rest()] if delta.kind == "text")
        if not self.chat:
            return {"text": said}
        message: Chunk = {"role": "assistant", "content": said, "refusal": None}
        if reader.calls:
            calls = [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                     for call in reader.calls]  # fmt: skip
            message |= {"content": said or None, "tool_calls": calls}
        return {"message": message}

    def begin(self, answers: Sequence[Answer]) -> list[Chunk]:
        """A chat's roles."""
        self.streamed.extend(answers)
        role = {"role": "assistant", "content": ""}
        return [self._chunk(index, role, None) for index in range(len(answers))] if self.chat else []

    def piece(self, index: int, piece: Piece) -> list[Chunk]:
        """Chunks with more text or calls; where log-probabilities are told, a token's has them and may have no text."""
        told = self._told(index, [piece.choice]) if piece.choice else None
        contents = self._deltas(index, self.readers[index].push(piece.text))
        if told and not contents:
            contents = [{"content": ""} if self.chat else ""]
        return [self._chunk(index, content, None, None if i else told) for i, content in enumerate(contents)]

    def _deltas(self, index: int, deltas: Sequence[Delta]) -> list[Any]:
        """What of a stream's chunks a text becomes."""
        if not self.chat:
            return [delta.text for delta in deltas]
        calls = self.readers[index].calls
        number = len(calls) - 1 - sum(delta.kind == "call" for delta in deltas)
        contents: list[Any] = []
        for delta in deltas:
            if delta.kind == "text":
                contents.append({"content": delta.text})
                continue
            call: Chunk = {"function": {"arguments": delta.text}}
            if delta.kind == "call":
                number += 1
                call = {"id": calls[number].id, "type": "function", "function": {"name": delta.text, "arguments": ""}}
            contents.append({"tool_calls": [{"index": number, **call}]})
        return contents

    def last(self, index: int, answer: Answer) -> list[Chunk]:
        """What was held back, and the chunk that says why an answer ended."""
        rest = self._deltas(index, self.readers[index].rest())
        chunks = [self._chunk(index, content, None) for content in rest]
        return [*chunks, self._chunk(index, {} if self.chat else "", self._finish(index, answer))]

    def _finish(self, index: int, answer: Answer) -> str:
        """Why an answer ended: with calls that are whole, or for the reason that cut the last one."""
        calls = self.readers[index].calls
        return "tool_calls" if calls and calls[-1].whole else answer.finish

    def end(self, answers: Sequence[Answer]) -> list[Chunk]:
        """The token counts, if asked for."""
        head = self._head("chat.completion.chunk")
        return [{**head, "choices": [], "usage": usage(answers)}] if self.counts.include_usage else []

    def error(self, error: ApiError) -> Chunk:
        """An error in the place of a chunk."""
        return error.body()

    def frame(self, chunk: Chunk) -> bytes:
        """A server-sent event."""
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _told(self, index: int, choices: Sequence[Choice | None]) -> Chunk | None:
        return self.tellers[index].tell(choice for choice in choices if choice) if self.tellers else None

    def _chunk(self, index: int, content: Any, finish: str | None, told: Chunk | None = None) -> Chunk:
        key = "delta" if self.chat else "text"
        choice = {"index": index, key: content, "logprobs": told, "finish_reason": finish}
        so_far = usage(self.streamed) if self.counts.continuous_usage_stats else None
        counted = {"usage": so_far} if self.counts.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **counted}

    def _head(self, chat_kind: str) -> Chunk:
        kind = chat_kind if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Token counts: the prompt once, and all answers with their stop tokens."""
    prompt, made = len(answers[0].prompt), sum(answer.tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
