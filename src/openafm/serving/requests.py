"""What `openafm serve` accepts: the bodies of OpenAI's chat and text completions, and errors in OpenAI's shape.

A parameter that would change the answer and is not carried out is refused by name, never ignored.
"""

from typing import Any, Literal, TypeVar

import orjson
from pydantic import Field, ValidationError, field_validator, model_validator

from openafm.engine.guidance import json_schema
from openafm.engine.protocol import CUTS, PENALTIES, TOP_LOGPROBS
from openafm.sampling.sampler import Prompt
from openafm.stage import Config

NEUTRAL: dict[str, Any] = {
    "best_of": 1, "logit_bias": {}, "echo": False, "suffix": "", "tools": [], "modalities": ["text"], "store": False,
    "service_tier": "auto",
}  # fmt: skip
"""Parameters that are accepted with the value that changes nothing, and refused with any other."""
SILENT = frozenset(("user", "metadata", "safety_identifier", "prompt_cache_key"))
"""Parameters that never change an answer."""
MAX_STOPS, MAX_STOP_LENGTH, MAX_ANSWERS, MAX_ALTERNATIVES = 4, 256, 8, 20
COLDEST = 0.01
"""Lowest temperature but 0: below it logits overflow."""


class ApiError(Exception):
    """A request that is refused; the server answers with `body()` and `status`."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = {429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Body(Config, strict=True):
    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class StreamOptions(_Body):
    """Options of a stream."""

    include_usage: bool = False
    """Send the token counts in a last chunk."""


class JsonSchema(_Body):
    """A schema and what clients send with it; answers keep to it whether `strict` or not."""

    name: str = ""
    description: str = ""
    strict: bool = True
    schema_: dict[str, Any] = Field({}, alias="schema")


class ResponseFormat(_Body):
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


class Message(_Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str

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


class Completion(_Body):
    """What chats and text completions have in common."""

    model: str
    n: int = Field(1, ge=1, le=MAX_ANSWERS)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    # OpenAI has not these three
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: list[str] = Field([], max_length=MAX_STOPS)
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
    def told(self) -> int | None:
        """How many alternatives the log-probabilities of each token are told with; None: none are told."""
        raise NotImplementedError

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

    def text(self) -> Prompt:
        """The conversation; OpenAI's newer name of the system role is taken as that."""
        renamed = {"developer": "system"}
        return [{"role": renamed.get(m.role, m.role), "content": m.content} for m in self.messages]


class TextCompletion(Completion):
    """Body of `/v1/completions`."""

    prompt: str
    max_tokens: int | None = Field(16, ge=1)
    """As with OpenAI, 16 unless told."""
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)

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

    def text(self) -> Prompt:
        """The text to continue."""
        return self.prompt


class LoraAdapter(_Body):
    """Body of `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them."""

    lora_name: str
    lora_path: str | None = None
    """Where it lies in the server's folder: by its name, wherever that is."""

    @model_validator(mode="after")
    def _inside(self) -> "LoraAdapter":
        if self.lora_path is not None and self.lora_path.rstrip("/").rpartition("/")[2] != self.lora_name:
            raise ValueError("lora_path must end with lora_name: adapters come from the server's own folder, by name")
        return self


Kind = TypeVar("Kind", ChatCompletion, TextCompletion, LoraAdapter)


def parse(kind: type[Kind], raw: bytes) -> Kind:
    """Read a body. Raises ApiError naming the parameter that is wrong or not supported."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    kept = {name: value for name, value in body.items() if name not in SILENT and value is not None}
    for name, neutral in NEUTRAL.items():
        if kept.pop(name, neutral) != neutral:
            remedy = f"leave it out or send {orjson.dumps(neutral).decode()}"
            raise ApiError(400, f"unsupported value of {name}: {remedy}", name, "unsupported_value")
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        raise _named(error) from None


def _named(error: ValidationError) -> ApiError:
    """OpenAI's error for the first thing that pydantic found."""
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unsupported parameter: {param}", param, "unsupported_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"missing required parameter: {param}", param, "missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, param, "invalid_value")
