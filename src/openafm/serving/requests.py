"""What `openafm serve` accepts: the bodies of OpenAI's chat and text completions, and of vLLM's calls for adapters."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from openafm.engine.guidance import json_schema
from openafm.engine.protocol import CUTS, PENALTIES, TOP_LOGPROBS
from openafm.serving.body import Body, text_or_parts
from openafm.serving.tools import NamedTool, Tool, Toolbox, ToolCall

MAX_STOPS, MAX_STOP_LENGTH, MAX_ANSWERS, MAX_ALTERNATIVES, MAX_TOOLS = 4, 256, 8, 20, 128
COLDEST = 0.01
"""Lowest temperature but 0: below it logits overflow."""
SMALLEST = 1e-6
"""Lowest `top_p`: the engine computes in float32, where much less is 0."""
WARMTH = {"anyOf": [{"const": 0}, {"type": "number", "minimum": COLDEST, "maximum": 2}]}
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
STOPS = {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]}
PROMPT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1}]}
"""What validators accept beyond the field's type, for the document."""


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False
    """Send the token counts in a last chunk."""
    continuous_usage_stats: bool = False
    """Send those so far in each chunk too (vLLM has this; OpenAI has not)."""

    @model_validator(mode="after")
    def _consistent(self) -> "StreamOptions":
        if self.continuous_usage_stats and not self.include_usage:
            raise ValueError("continuous_usage_stats goes with include_usage=true only")
        return self


class JsonSchema(Body):
    """A schema and what clients send with it; answers keep to it whether `strict` or not."""

    name: str = ""
    description: str = ""
    strict: bool = True
    schema_: dict[str, Any] = Field({}, alias="schema")


class ResponseFormat(Body):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with that")
        return self

    def grammar(self) -> str | None:
        """The grammar that guides the answer; None for text. Raises ValueError for what is no schema."""
        if self.type == "text":
            return None
        return json_schema(self.json_schema.schema_ if self.json_schema else {"type": "object"})


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, WithJsonSchema(text_or_parts("text"))] = ""
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: Any) -> Any:
        """Accept text in parts."""
        if not isinstance(content, list):
            return content
        for part in content:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise ValueError("this model reads text only: give a string or parts of type text")
        return "".join(part["text"] for part in content)

    @model_validator(mode="after")
    def _consistent(self) -> "Message":
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise ValueError("content is missing: only an assistant's message that calls tools can do without")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls belong to the assistant's messages")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id goes with the role tool, and only with that")
        return self


class Completion(Body):
    """What chats and text completions have in common."""

    neutral: ClassVar[dict[str, Any]] = {
        "best_of": 1, "logit_bias": {}, "suffix": "", "modalities": ["text"], "store": False,
        "service_tier": "auto",
    }  # fmt: skip
    model: str
    n: int = Field(1, ge=1, le=MAX_ANSWERS)
    temperature: Annotated[float, WithJsonSchema(WARMTH)] = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=SMALLEST, le=1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    # OpenAI has not these three
    top_k: int = Field(0, ge=0, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: Annotated[list[str], WithJsonSchema(STOPS)] = Field([], max_length=MAX_STOPS)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    response_format: ResponseFormat = ResponseFormat()

    @field_validator("temperature")
    @classmethod
    def _warm(cls, temperature: float) -> float:
        if 0 < temperature < COLDEST:
            raise ValueError(f"use 0 (the likeliest token) or at least {COLDEST}")
        return temperature

    @field_validator("stop", mode="before")
    @classmethod
    def _list(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _sized(cls, stop: list[str]) -> list[str]:
        if not all(0 < len(string) <= MAX_STOP_LENGTH for string in stop):
            raise ValueError(f"a stop string has 1 to {MAX_STOP_LENGTH} characters")
        return stop

    @model_validator(mode="after")
    def _consistent(self) -> "Completion":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ: give one")
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options goes with stream=true only")
        return self

    @property
    @abstractmethod
    def told(self) -> int | None:
        """How many alternatives the log-probabilities of each token are told with; None: none are told."""

    def options(self) -> dict[str, Any]:
        """What the engine is asked for beside temperature and seed, as far as it changes anything."""
        fields = type(self).model_fields
        cuts = {name: getattr(self, name) for name in CUTS + PENALTIES if getattr(self, name) != fields[name].default}
        return cuts if self.told is None else {**cuts, TOP_LOGPROBS: self.told}

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer, or None for what the context leaves."""
        return self.max_completion_tokens or self.max_tokens


class ChatCompletion(Completion):
    """Body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_ALTERNATIVES)

    @model_validator(mode="after")
    def _told_with(self) -> "ChatCompletion":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs=true only")
        return self

    @property
    def told(self) -> int | None:
        """Alternatives of each token."""
        return self.top_logprobs if self.logprobs else None

    tools: list[Tool] = Field([], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _callable(self) -> "ChatCompletion":
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is none of the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice required goes with tools only")
        if self.toolbox and self.response_format.type != "text":
            raise ValueError("response_format goes with tools only where tool_choice is none: give one of them")
        return self

    @model_validator(mode="after")
    def _answered(self) -> "ChatCompletion":
        made: set[str | None] = set()
        for number, message in enumerate(self.messages):
            made |= {call.id for call in message.tool_calls}
            if message.role == "tool" and message.tool_call_id not in made:
                raise ValueError(f"messages.{number}: no call before it has the id {message.tool_call_id!r}")
        return self

    @property
    def toolbox(self) -> Toolbox | None:
        """What may be called; None where nothing may."""
        functions = [tool.function for tool in self.tools]
        if not functions or self.tool_choice == "none":
            return None
        if isinstance(self.tool_choice, NamedTool):
            wanted = self.tool_choice.function.name
            return Toolbox([function for function in functions if function.name == wanted], "required", False)
        return Toolbox(functions, self.tool_choice, self.parallel_tool_calls)


class TextCompletion(Completion):
    """Body of `/v1/completions`."""

    neutral: ClassVar[dict[str, Any]] = {**Completion.neutral, "tools": []}
    prompt: Annotated[str, WithJsonSchema(PROMPT)]
    max_tokens: int | None = Field(16, ge=0)
    """As with OpenAI, 16 unless told; 0 with `echo`."""
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
    echo: bool = False
    """The prompt itself is told with its log-probabilities; nothing is made."""

    @model_validator(mode="after")
    def _only_told(self) -> "TextCompletion":
        if self.echo != (self.max_tokens == 0):
            raise ValueError("echo goes with max_tokens=0, and that only with echo: a prompt is scored, or continued")
        if self.echo and (self.logprobs is None or self.stream or self.n > 1 or not self.prompt):
            raise ValueError("echo tells log-probabilities: give a prompt and logprobs, without stream and n")
        return self

    @property
    def told(self) -> int | None:
        """Alternatives of each token."""
        return self.logprobs

    @field_validator("prompt", mode="before")
    @classmethod
    def _one(cls, prompt: Any) -> Any:
        if isinstance(prompt, list):
            if len(prompt) != 1 or not isinstance(prompt[0], str):
                raise ValueError("give one prompt, as text")
            return prompt[0]
        return prompt


class LoraAdapter(Body):
    """Body of `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them."""

    lora_name: str
    lora_path: str | None = None
    """Where it lies in the server's folder: by its name, wherever that is."""

    @model_validator(mode="after")
    def _inside(self) -> "LoraAdapter":
        if self.lora_path is not None and self.lora_path.rstrip("/").rpartition("/")[2] != self.lora_name:
            raise ValueError("lora_path must end with lora_name: adapters come from the server's own folder, by name")
        return self
