"""Bodies of requests and errors in OpenAI's shape: what all paths of `openafm serve` read and refuse alike."""

import re
from typing import Any, ClassVar, TypeVar

import orjson
from pydantic import ValidationError, model_validator

from openafm.stage import Config

SILENT = frozenset(("user", "metadata", "safety_identifier", "prompt_cache_key"))
"""Parameters that never change an answer."""


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


class Body(Config, strict=True):
    """Base of all bodies and their parts. What would change the answer and is not carried out is refused by name."""

    neutral: ClassVar[dict[str, Any]] = {}
    """Parameters that are accepted with the value that changes nothing, and refused with any other."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


def text_or_parts(*kinds: str) -> dict[str, Any]:
    """The schema of a content: text, or parts of text of these types."""
    properties = {"type": {"enum": list(kinds)}, "text": {"type": "string"}}
    part = {"type": "object", "properties": properties, "required": ["type", "text"]}
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]}


Kind = TypeVar("Kind", bound=Body)


def parse(kind: type[Kind], raw: bytes) -> Kind:
    """Read a body. Raises ApiError naming the parameter that is wrong or not supported."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    kept = {name: value for name, value in body.items() if name not in SILENT and value is not None}
    for name, neutral in kind.neutral.items():
        if orjson.dumps(kept.pop(name, neutral)) != orjson.dumps(neutral):  # to Python, false is 0
            remedy = f"leave it out or send {orjson.dumps(neutral).decode()}"
            raise ApiError(400, f"unsupported value of {name}: {remedy}", name, "unsupported_value")
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        raise _named(error) from None


def _named(error: ValidationError) -> ApiError:
    """OpenAI's error for the first thing that pydantic found."""
    first = error.errors()[0]
    named = (str(part) for part in first["loc"])  # the branches of a union are no fields
    param = ".".join(part for part in named if re.fullmatch(r"[a-z0-9_]+", part)) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unsupported parameter: {param}", param, "unsupported_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"missing required parameter: {param}", param, "missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, param, "invalid_value")
