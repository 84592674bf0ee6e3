"""Tools of a request: how the model is told of them, and the grammar that keeps its calls valid.

A model whose chat template shows tools is asked by that. One that was trained here is asked as its training data ask:
JSON schemas in the system message (`openafm.synthesis.tool_library`), or, where the run made none of those, signatures
before the request (`openafm.synthesis.tasks`), which is all that a small vocabulary has room for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator

from openafm.engine.guidance import ending, lark
from openafm.serving.body import Body
from openafm.tokenizer import Message, Tokenizer
from openafm.tokenizer.calls import CallForm

MOST_CALLS = 16
"""Of one answer, so that a model that likes to call comes to an end."""
LIBRARY = CallForm('{"name": "', '", "arguments": ', "}")
SHORT = CallForm('{"', '":', "}", separators=(",", ":"))


class Function(Body):
    """A function that the client can run."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = True
    """Arguments keep to the schema whether or not."""

    @field_validator("parameters")
    @classmethod
    def _of_an_object(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(parameters.get("properties", {}), dict) or parameters.get("type", "object") != "object":
            raise ValueError("parameters are the JSON schema of an object, its properties by name")
        return parameters

    @property
    def shown(self) -> dict[str, Any]:
        """What a model is told of it."""
        schema = self.parameters or {"type": "object", "properties": {}}
        return {"name": self.name, "description": self.description, "parameters": schema}

    @property
    def signature(self) -> str:
        """The short form: `add(a, b)`."""
        return f"{self.name}({', '.join(self.parameters.get('properties', {}))})"

    def guide(self, form: CallForm) -> str:
        """The schema of its arguments, and of no others unless it says so, written as the form has it."""
        item, key = form.separators
        style = {"whitespace_flexible": False, "item_separator": item, "key_separator": key}
        return ending({"additionalProperties": False, **self.parameters, "type": "object", "x-guidance": style})


class Tool(Body):
    """A tool of a chat."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """Names a function."""

    name: str


class NamedTool(Body):
    """A `tool_choice` that names the tool."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Body):
    """What was called, with which arguments."""

    name: str
    arguments: Annotated[dict[str, Any], WithJsonSchema({"type": ["object", "string"]})]

    @field_validator("arguments", mode="before")
    @classmethod
    def _read(cls, arguments: Any) -> Any:
        try:
            return json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError as error:
            raise ValueError(f"arguments are a JSON object, as text: {error}") from None


class ToolCall(Body):
    """A call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


@dataclass(frozen=True)
class Toolbox:
    """The tools that an answer may call, and whether it must."""

    tools: Sequence[Function] = ()
    choice: Literal["auto", "required"] = "auto"
    several: bool = True
    """It may make several calls."""

    @property
    def names(self) -> list[str]:
        """Of the tools."""
        return [tool.name for tool in self.tools]

    def grammar(self, form: CallForm) -> str:
        """The grammar of answers: text, calls or both, or calls only. Raises ValueError for what is no schema."""
        texts = [json.dumps(form.marker(tool.name)) for tool in self.tools]
        ends = [f"arguments_{i} {json.dumps(form.end)}" for i in range(len(self.tools))]
        rules = [f"arguments_{i}: %json {tool.guide(form)}" for i, tool in enumerate(self.tools)]
        rules.append(f"call: {' | '.join(f'{text} {end}' for text, end in zip(texts, ends, strict=True))}")
        more = f"({json.dumps(form.between)} call){{0,{MOST_CALLS - 1}}}" if self.several and form.between else ""
        if self.choice == "required":
            return lark("\n".join([f"start: call {more}", *rules]))
        # What is said ends where a call begins: where its name stands or, where the form has a word for it, at that.
        leads = [form.opener] if form.opener else [form.marker(name) for name in self.names]
        if form.opener:
            rests = [json.dumps(form.marker(name).removeprefix(form.opener)) for name in self.names]
            begun = [f"lead_0 {rest} {end}" for rest, end in zip(rests, ends, strict=True)]
        else:
            begun = [f"lead_{i} {end}" for i, end in enumerate(ends)]
        rules += [f"lead_{i}[lazy]: /(.|\\n)*{_literal(lead)}/" for i, lead in enumerate(leads)]
        rules.append(f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*({'|'.join(map(_literal, leads))})(.|\\n)*/")
        return lark("\n".join([f"start: TEXT? | ({' | '.join(begun)}) {more}", *rules]))


def _literal(text: str) -> str:
    """A text as a regular expression between slashes."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


class Manner:
    """How one model is told of tools, of calls and of their results."""

    def __init__(self, tokenizer: Tokenizer, short: bool):
        """`short`: the model was trained here, on signatures only."""
        own = tokenizer.call_form()
        self.form = own or (SHORT if short else LIBRARY)
        self._tokenizer, self._template = tokenizer, own is not None

    def prompt(self, messages: Sequence[Message], tools: Sequence[Function]) -> list[int]:
        """The tokens of a conversation with tools at hand."""
        if self._template:
            shown = [{"type": "function", "function": tool.shown} for tool in tools]
            return self._tokenizer.render_chat(messages, add_generation_prompt=True, tools=shown)
        return self._tokenizer.render_chat(self._told(_joined(messages), tools), add_generation_prompt=True)

    def turn(self, said: str, calls: Sequence[ToolCall]) -> str:
        """A turn as the model reads it: of an earlier answer what it said, and its calls as it wrote them."""
        written = [self.form.write(call.function.name, call.function.arguments) for call in calls]
        between = self.form.between or "\n"
        return between.join([said, *written] if said else written)

    def _told(self, messages: list[Message], tools: Sequence[Function]) -> list[Message]:
        if not tools:
            return messages
        if self.form is SHORT:
            shown, role = f"Tools: {', '.join(tool.signature for tool in tools)}", "user"
            at = max((i for i, message in enumerate(messages) if message["role"] == role), default=-1)
        else:
            shown, role = f"Tools: {json.dumps([tool.shown for tool in tools], ensure_ascii=False)}", "system"
            at = 0 if messages[0]["role"] == role else -1
        if at < 0:
            return [{"role": role, "content": shown}, *messages]
        return [*messages[:at], {"role": role, "content": f"{shown}\n{messages[at]['content']}"}, *messages[at + 1 :]]


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Results of calls that were made side by side as one message, a line each, as the training data have them."""
    joined: list[Message] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == "tool":
            joined[-1] = {"role": "tool", "content": f"{joined[-1]['content']}\n{message['content']}"}
        else:
            joined.append(message)
    return joined
