"""What `openafm serve` answers: OpenAI's objects for chats and text completions, whole and in chunks."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openafm.serving.answer import Answer


@dataclass(frozen=True)
class Reply:
    """One request's envelope; its answers are put in whole or piece by piece."""

    model: str
    chat: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, texts: Sequence[str], answers: Sequence[Answer]) -> dict[str, Any]:
        """The finished answers."""
        choices = []
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            message = {"role": "assistant", "content": text, "refusal": None}
            content = {"message": message} if self.chat else {"text": text}
            choices.append({"index": index, **content, "logprobs": None, "finish_reason": answer.finish})
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(answers)}

    def first(self, count: int) -> list[dict[str, Any]]:
        """What a stream begins with: a chat's roles."""
        begin = {"role": "assistant", "content": ""}
        return [self._chunk(index, begin, None) for index in range(count)] if self.chat else []

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """A chunk with more text."""
        return self._chunk(index, {"content": text} if self.chat else text, None)

    def last(self, index: int, answer: Answer) -> dict[str, Any]:
        """The chunk that says why an answer ended."""
        return self._chunk(index, {} if self.chat else "", answer.finish)

    def counts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The chunk after the last, with the token counts."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answers)}

    def _chunk(self, index: int, content: Any, finish: str | None) -> dict[str, Any]:
        key = "delta" if self.chat else "text"
        choice = {"index": index, key: content, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, chat_kind: str) -> dict[str, Any]:
        prefix, kind = ("chatcmpl-", chat_kind) if self.chat else ("cmpl-", "text_completion")
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Token counts: the prompt once, and all answers with their stop tokens."""
    prompt, made = len(answers[0].prompt), sum(answer.tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
