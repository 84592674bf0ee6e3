"""`/v1/responses`: OpenAI's newer shape of a chat. A request becomes one, and the answer is told in items and events.

Nothing is stored: a client sends the conversation so far as `input`.
"""

import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import Field, ValidationError, WithJsonSchema, field_validator, model_validator

from openafm.serving.answer import Answer, Piece
from openafm.serving.body import ApiError, Body, text_or_parts
from openafm.serving.calls import CallReader, Delta
from openafm.serving.replies import Chunk
from openafm.serving.requests import MAX_TOOLS, SMALLEST, WARMTH, ChatCompletion
from openafm.serving.tools import Function

NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}
"""What a chat's fields are called here."""
KINDS = ("input_text", "output_text", "text")
"""Types of a content's parts."""
PARTS = WithJsonSchema(text_or_parts(*KINDS))


class Item(Body):
    """A message, a call of a tool, or its result; what came back as output may be sent again."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Annotated[str | None, PARTS] = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Annotated[str | None, PARTS] = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    @field_validator("content", "output", mode="before")
    @classmethod
    def _joined(cls, content: Any) -> Any:
        """Accept text in parts."""
        if not isinstance(content, list):
            return content
        for part in content:
            if not (isinstance(part, dict) and part.get("type") in KINDS and isinstance(part.get("text"), str)):
                raise ValueError("this model reads text only: give a string or parts of type input_text or output_text")
        return "".join(part["text"] for part in content)

    @model_validator(mode="after")
    def _whole(self) -> "Item":
        needs = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }[self.type]
        if missing := [name for name in needs if getattr(self, name) is None]:
            raise ValueError(f"an item of type {self.type} has {missing[0]}")
        return self


class FlatTool(Function):
    """A function as responses name it, without a level of its own."""

    type: Literal["function"]


class NamedFunction(Body):
    """A `tool_choice` that names the tool."""

    type: Literal["function"]
    name: str


class Format(Body):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    description: str = ""
    strict: bool = True
    schema_: dict[str, Any] = Field({}, alias="schema")

    def response_format(self) -> dict[str, Any]:
        """The same in a chat."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"schema": self.schema_}}


class TextOptions(Body):
    """Options of the answer's text."""

    format: Format = Format.model_validate({})


def _or_text(schema: dict[str, Any]) -> None:
    """`input` may be a text."""
    items = {name: schema.pop(name) for name in ("type", "items", "minItems")}
    schema["anyOf"] = [{"type": "string"}, items]


class ResponseRequest(Body):
    """Body of `/v1/responses`."""

    neutral: ClassVar[dict[str, Any]] = {
        "store": False, "background": False, "truncation": "disabled", "include": [], "top_logprobs": 0,
        "service_tier": "auto",
    }  # fmt: skip
    model: str
    input: list[Item] = Field(min_length=1, json_schema_extra=_or_text)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: Annotated[float, WithJsonSchema(WARMTH)] = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=SMALLEST, le=1)
    stream: bool = False
    tools: list[FlatTool] = Field([], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedFunction = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions = TextOptions()
    previous_response_id: Annotated[Any, WithJsonSchema({"type": "null"})] = None
    conversation: Annotated[Any, WithJsonSchema({"type": "null"})] = None

    @field_validator("input", mode="before")
    @classmethod
    def _said(cls, given: Any) -> Any:
        """A text is a user's only message."""
        return [{"role": "user", "content": given}] if isinstance(given, str) else given

    @field_validator("previous_response_id", "conversation")
    @classmethod
    def _nothing_kept(cls, _: Any) -> Any:
        raise ValueError("this server stores no responses: send the conversation so far as input")

    @model_validator(mode="after")
    def _is_a_chat(self) -> "ResponseRequest":
        self.chat()
        return self

    def chat(self) -> ChatCompletion:
        """The chat that it asks for. Raises ValueError where that is none."""
        kept = ("model", "temperature", "top_p", "stream", "parallel_tool_calls")
        choice: Any = self.tool_choice
        if isinstance(choice, NamedFunction):
            choice = {"type": "function", "function": {"name": choice.name}}
        try:
            return ChatCompletion.model_validate(
                {name: getattr(self, name) for name in kept}
                | {
                    "messages": self._messages(),
                    "max_tokens": self.max_output_tokens,
                    "response_format": self.text.format.response_format(),
                    "tools": [{"type": "function", "function": tool.shown} for tool in self.tools],
                    "tool_choice": choice,
                }
            )
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None

    def _messages(self) -> list[dict[str, Any]]:
        """The conversation; calls that were made side by side belong to the message before them."""
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        for item in self.input:
            if item.type == "message":
                messages.append({"role": item.role, "content": item.content})
            elif item.type == "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
            else:
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
                messages[-1].setdefault("tool_calls", []).append(call)
        return messages


class ResponseReply:
    """One response: its items grow with the answer, and each change is an event."""

    done = b""

    def __init__(self, asked: ResponseRequest, reader: CallReader):
        self.id = f"resp_{secrets.token_hex(12)}"
        self._asked, self._reader = asked, reader
        self._created = int(time.time())
        self._items: list[dict[str, Any]] = []
        """The last one is open until it has a status that says more."""
        self._sent = 0

    def whole(self, made: Sequence[Sequence[Piece]], answers: Sequence[Answer]) -> Chunk:
        """The finished response."""
        for piece in made[0]:
            self.piece(0, piece)
        self.last(0, answers[0])
        return self._response(answers)

    def begin(self, answers: Sequence[Answer]) -> list[Chunk]:
        """The response without output."""
        return [self._event(f"response.{name}", response=self._response()) for name in ("created", "in_progress")]

    def piece(self, index: int, piece: Piece) -> list[Chunk]:
        """What a piece of text changes."""
        return self._told(self._reader.push(piece.text))

    def last(self, index: int, answer: Answer) -> list[Chunk]:
        """The end of the last item; a response without any has an empty message."""
        events = self._told(self._reader.rest())
        if not self._items:
            events += self._add_message()
        cut = answer.finish == "length" and not (self._reader.calls and self._reader.calls[-1].whole)
        return [*events, *self._close("incomplete" if cut else "completed")]

    def end(self, answers: Sequence[Answer]) -> list[Chunk]:
        """The finished response once more."""
        response = self._response(answers)
        return [self._event(f"response.{response['status']}", response=response)]

    def error(self, error: ApiError) -> Chunk:
        """The event of an error."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def frame(self, chunk: Chunk) -> bytes:
        """A server-sent event that is named as in its data."""
        kind: str = chunk["type"]
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(chunk) + b"\n\n"

    def _told(self, deltas: Sequence[Delta]) -> list[Chunk]:
        events: list[Chunk] = []
        number = len(self._reader.calls) - sum(delta.kind == "call" for delta in deltas)
        for delta in deltas:
            if delta.kind == "call":
                events += self._close("completed")
                events += self._add_call(delta.text, self._reader.calls[number].id)
                number += 1
            elif delta.kind == "arguments":
                self._items[-1]["arguments"] += delta.text
                events.append(self._within("response.function_call_arguments.delta", delta=delta.text))
            else:
                events += [] if self._items else self._add_message()
                self._items[-1]["content"][0]["text"] += delta.text
                events.append(
                    self._within("response.output_text.delta", content_index=0, delta=delta.text, logprobs=[])
                )
        return events

    def _add_message(self) -> list[Chunk]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "status": "in_progress"}
        self._items.append({**item, "content": [part]})
        return [
            self._event("response.output_item.added", output_index=0, item={**item, "content": []}),
            self._within("response.content_part.added", content_index=0, part=dict(part)),
        ]

    def _add_call(self, name: str, call_id: str) -> list[Chunk]:
        item = {"id": f"fc_{secrets.token_hex(12)}", "type": "function_call", "status": "in_progress"}
        self._items.append({**item, "call_id": call_id, "name": name, "arguments": ""})
        added = dict(self._items[-1])
        return [self._event("response.output_item.added", output_index=len(self._items) - 1, item=added)]

    def _close(self, status: str) -> list[Chunk]:
        if not self._items:
            return []
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "message":
            (part,) = item["content"]
            events = [
                self._within("response.output_text.done", content_index=0, text=part["text"], logprobs=[]),
                self._within("response.content_part.done", content_index=0, part=part),
            ]
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            events = [self._within("response.function_call_arguments.done", **done)]
        return [*events, self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)]

    def _within(self, kind: str, **fields: Any) -> Chunk:
        """An event of the open item."""
        return self._event(kind, item_id=self._items[-1]["id"], output_index=len(self._items) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> Chunk:
        self._sent += 1
        return {"type": kind, "sequence_number": self._sent - 1, **fields}

    def _response(self, answers: Sequence[Answer] = ()) -> Chunk:
        """The response object: in progress without answers."""
        cut = bool(answers) and self._items[-1]["status"] == "incomplete"
        asked = self._asked.model_dump(by_alias=True, include={
            "model", "instructions", "max_output_tokens", "temperature", "top_p", "tools", "tool_choice",
            "parallel_tool_calls", "text",
        })  # fmt: skip
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if not answers else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            **asked,
            "output": list(self._items),
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "metadata": {},
            "usage": _usage(answers[0]) if answers else None,
        }


def _usage(answer: Answer) -> Chunk:
    read, made = len(answer.prompt), answer.tokens
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + made,
    }
