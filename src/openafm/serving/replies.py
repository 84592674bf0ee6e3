"""What `openafm serve` answers: OpenAI's objects for chats and text completions, whole and in chunks."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from openafm.serving.answer import Answer


@dataclass(frozen=True)
class Reply:
    """One request's envelope; its answer is put in whole or piece by piece."""

    model: str
    chat: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, answer: Answer) -> dict[str, Any]:
        """The finished answer."""
        content = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": answer.finish}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(answer)}

    def first(self) -> list[dict[str, Any]]:
        """What a stream begins with: a chat's role."""
        return [self._chunk({"role": "assistant", "content": ""}, None)] if self.chat else []

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk with more text."""
        return self._chunk({"content": text} if self.chat else text, None)

    def last(self, answer: Answer) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        return self._chunk({} if self.chat else "", answer.finish)

    def counts(self, answer: Answer) -> dict[str, Any]:
        """The chunk after the last, with the token counts."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answer)}

    def _chunk(self, content: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, ("delta" if self.chat else "text"): content, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, chat_kind: str) -> dict[str, Any]:
        prefix, kind = ("chatcmpl-", chat_kind) if self.chat else ("cmpl-", "text_completion")
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}


def usage(answer: Answer) -> dict[str, int]:
    """Token counts; the stop token counts as one of the completion."""
    prompt, made = answer.prompt_tokens, answer.tokens
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
