"""`GET /openapi.json`: the server in OpenAPI 3.1, made from the bodies that it reads (`openafm.serving.requests`).

What one field asks of another no schema says here; the server refuses it with 400.
"""

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from openafm.serving.body import SILENT, Body
from openafm.serving.embeddings import EmbeddingRequest
from openafm.serving.requests import ChatCompletion, LoraAdapter, TextCompletion
from openafm.serving.responses import ResponseRequest

Schema = dict[str, Any]
COMPONENT = "#/components/schemas/"


def _object(**properties: Any) -> Schema:
    """An object that has these, and may have more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


TEXT, COUNT, OPEN = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}
FINISH = {"enum": ["stop", "length", "tool_calls"]}
EVENT = _object(data=TEXT) | {"description": "Of each server-sent event; of responses it has a name, too."}
USAGE = _object(prompt_tokens=COUNT, total_tokens=COUNT)
MODEL = _object(
    id=TEXT, object={"const": "model"}, created=COUNT, owned_by=TEXT, max_length=COUNT, chat={"type": "boolean"}
)
MESSAGE = _object(role={"const": "assistant"}, content={"type": ["string", "null"]})
ANSWERS: dict[str, Schema] = {
    "Error": _object(
        error=_object(message=TEXT, type=TEXT, param={"type": ["string", "null"]}, code={"type": ["string", "null"]})
    ),
    "Chat": _object(
        id=TEXT, object={"const": "chat.completion"}, created=COUNT, model=TEXT, usage=USAGE,
        choices=_list(_object(index=COUNT, message=MESSAGE, finish_reason=FINISH), minItems=1),
    ),
    "Text": _object(
        id=TEXT, object={"const": "text_completion"}, created=COUNT, model=TEXT, usage=USAGE,
        choices=_list(_object(index=COUNT, text=TEXT, finish_reason=FINISH), minItems=1),
    ),
    "Response": _object(
        id=TEXT, object={"const": "response"}, created_at=COUNT, model=TEXT, output=_list(OPEN, minItems=1),
        status={"enum": ["completed", "incomplete"]}, usage=_object(input_tokens=COUNT, output_tokens=COUNT),
    ),
    "Embeddings": _object(
        object={"const": "list"}, model=TEXT, usage=USAGE,
        data=_list(_object(index=COUNT, embedding={"type": ["array", "string"]}), minItems=1),
    ),
    "Model": MODEL,
    "Models": _object(object={"const": "list"}, data=_list(MODEL, minItems=1)),
    "Removed": _object(id=TEXT, object={"const": "model"}, deleted={"const": True}),
    "Health": _object(status={"const": "ok"}),
}  # fmt: skip
POSTS: dict[str, tuple[type[Body], str, str]] = {
    "/v1/chat/completions": (ChatCompletion, "Chat", "Answer a chat"),
    "/v1/completions": (TextCompletion, "Text", "Continue a text"),
    "/v1/responses": (ResponseRequest, "Response", "Answer a chat, in the newer shape"),
    "/v1/embeddings": (EmbeddingRequest, "Embeddings", "Vectors of texts"),
    "/v1/load_lora_adapter": (LoraAdapter, "Model", "Let requests name an adapter of the server's folder"),
    "/v1/unload_lora_adapter": (LoraAdapter, "Removed", "Let requests name it no more"),
}


def document(models: Sequence[str], length: int, key: bool) -> Schema:
    """The document of a server with these models of so many tokens; with a `key`, all but `/health` ask for it."""
    _, made = models_json_schema(
        [(body, "validation") for body, *_ in POSTS.values()], ref_template=COMPONENT + "{model}"
    )
    schemas: dict[str, Schema] = {name: _nullable(schema) for name, schema in made["$defs"].items()}
    schemas["Message"] = _by_role(made["$defs"]["Message"]["properties"])
    for body, *_ in POSTS.values():
        properties = schemas[body.__name__]["properties"]
        properties |= {name: {} for name in sorted(SILENT)}
        properties |= {
            name: {"enum": [value, None]} for name, value in body.neutral.items() if name not in body.model_fields
        }
        for name in properties.keys() & {"max_tokens", "max_completion_tokens", "max_output_tokens"}:
            properties[name] = {"allOf": [properties[name], {"maximum": length}]}
        if "model" in properties:
            properties["model"] = {"enum": list(models)}
    name = {"name": "name", "in": "path", "required": True, "schema": TEXT, "examples": {"first": {"value": models[0]}}}
    paths: Schema = {path: {"post": _post(*about)} for path, about in POSTS.items()}
    paths |= {
        "/v1/models": {"get": _get("All models, the one to use first", "Models")},
        "/v1/models/{name}": {"get": _get("One model", "Model") | {"parameters": [name]}},
        "/metrics": {"get": _get("Counters for Prometheus", None)},
        "/health": {"get": _get("Whether it runs", "Health") | {"security": []}},
    }
    bearer = {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}} if key else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "openafm serve", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas | ANSWERS, **bearer},
        **({"security": [{"bearer": []}]} if key else {}),
    }


def _nullable(schema: Schema) -> Schema:
    """What need not be there may be null, which means the same."""
    properties = schema.get("properties", {})
    optional = {
        name: {"anyOf": [of, {"type": "null"}]}
        for name, of in properties.items()
        if name not in schema.get("required", [])
    }
    return schema | ({"properties": properties | optional} if properties else {})


def _by_role(of: Schema) -> Schema:
    """A message of each role."""
    no_calls, no_id = {"type": ["array", "null"], "maxItems": 0}, {"type": "null"}
    said = {"enum": ["system", "developer", "user", "assistant"]}
    calls, content = of["tool_calls"] | {"minItems": 1}, {"anyOf": [of["content"], {"type": "null"}]}
    kinds: list[tuple[Schema, list[str]]] = [
        ({"role": said, "content": of["content"], "tool_calls": no_calls, "tool_call_id": no_id}, ["content"]),
        ({"role": {"const": "assistant"}, "content": content, "tool_calls": calls, "tool_call_id": no_id},
         ["tool_calls"]),
        ({"role": {"const": "tool"}, "content": of["content"], "tool_calls": no_calls, "tool_call_id": TEXT},
         ["content", "tool_call_id"]),
    ]  # fmt: skip
    variants = [
        {"type": "object", "properties": properties, "required": ["role", *required], "additionalProperties": False}
        for properties, required in kinds
    ]
    return {"anyOf": variants}


def _json(name: str) -> Schema:
    return {"application/json": {"schema": {"$ref": COMPONENT + name}}}


def _refused(*statuses: int) -> Schema:
    meanings = {
        400: "A bad request, told by name", 401: "No key, or a wrong one", 403: "Not from this machine",
        404: "Unknown model", 408: "The body took too long", 413: "The body is too long", 415: "The body is not JSON",
        429: "The queue is full", 503: "No time or no memory is left, the adapter is damaged, or the server stops",
    }  # fmt: skip
    return {str(status): {"description": meanings[status], "content": _json("Error")} for status in statuses}


def _post(body: type[Body], answer: str, summary: str) -> Schema:
    content = _json(answer)
    if "stream" in body.model_fields:
        content["text/event-stream"] = {"schema": EVENT}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _json(body.__name__)},
        "responses": {"200": {"description": summary, "content": content}}
        | _refused(400, 401, 403, 404, 408, 413, 415, 429, 503),
    }


def _get(summary: str, answer: str | None) -> Schema:
    content = _json(answer) if answer else {"text/plain": {"schema": TEXT}}
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}} | _refused(401, 403, 404),
    }
