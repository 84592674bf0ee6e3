"""JSON schemas by the hundred: is each answer valid, and what does guiding cost a token?

Schemas are drawn: nested objects, enums, patterns, arrays, numbers within bounds, anyOf, optional properties. Each is
asked of `openafm serve` with `response_format`, by `--clients` at a time, and its answer held against the schema by
jsonschema; one that its `--tokens` cut counts as not valid. Then, of every tenth, guided and free tokens are timed in
turn in one engine, as many of both, schema by schema.
Example: openafm bench schemas --model runs/SmolLM2/import --count 500 --json
"""

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import httpx
import jsonschema
from rich.console import Console

from harness import options, show
from openafm.engine import NativeEngine
from openafm.engine.guidance import json_schema
from serving import models_of, ours

WORDS = (
    "name title kind size colour origin price amount weight place date owner code level state parts tags note".split()
)
VALUES = ("red", "green", "blue", "small", "large", "open", "closed", "Berlin", "Lagos", "Quito", "a b", 'q"q', "ü", "")
PATTERNS = (
    r"^[A-Z]{2}-\d{4}$", r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d)$", r"^#[0-9a-f]{6}$", r"^(yes|no|maybe)$",
    r"^[a-z]{1,8}@[a-z]{1,8}\.(com|org)$", r"^v\d{1,2}(\.\d{1,2}){1,2}$", r"^\+?[0-9]{5,9}$",
)  # fmt: skip
DEEPEST = 3


def schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of some kind; the outermost is an object."""
    leaves = (_enum, _string, _pattern, _integer, _number, _boolean, _constant)
    kinds = (_object,) if depth == 0 else leaves if depth == DEEPEST else (*leaves, _object, _array, _any_of)
    return draw.choice(kinds)(draw, depth + 1)


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(WORDS, draw.randint(1, 5))
    required = draw.sample(names, draw.randint(0, len(names)))  # the others are optional
    properties = {name: schema(draw, depth) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    fewest = draw.randint(0, 2)
    return {"type": "array", "items": schema(draw, depth), "minItems": fewest, "maxItems": fewest + draw.randint(0, 3)}


def _any_of(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [schema(draw, depth) for _ in range(draw.randint(2, 3))]}


def _enum(draw: random.Random, _: int) -> dict[str, Any]:
    return {"enum": draw.sample([*VALUES, 3, 2.5, None, True], draw.randint(1, 5))}


def _string(draw: random.Random, _: int) -> dict[str, Any]:
    fewest = draw.randint(0, 3)
    return {"type": "string", "minLength": fewest, "maxLength": fewest + draw.randint(1, 40)}


def _pattern(draw: random.Random, _: int) -> dict[str, Any]:
    return {"type": "string", "pattern": draw.choice(PATTERNS)}


def _integer(draw: random.Random, _: int) -> dict[str, Any]:
    least = draw.randint(-1000, 1000)
    return {"type": "integer", "minimum": least, "maximum": least + draw.randint(0, 2000)}


def _number(draw: random.Random, _: int) -> dict[str, Any]:
    least = round(draw.uniform(-100, 100), 2)
    return {
        "type": "number",
        draw.choice(("minimum", "exclusiveMinimum")): least,
        "maximum": least + draw.randint(1, 500),
    }


def _boolean(_: random.Random, __: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _constant(draw: random.Random, _: int) -> dict[str, Any]:
    return {"const": draw.choice((*VALUES, 7, None, False))}


def messages(wanted: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Make up a plausible JSON value for this schema:\n{json.dumps(wanted)}"}]


async def asked(given: argparse.Namespace, url: str, wanted: list[dict[str, Any]]) -> list[str]:
    """What became of each schema's answer: "valid", "cut", or what is wrong with it."""
    model, gate = models_of(url)[0], asyncio.Semaphore(given.clients)
    async with httpx.AsyncClient(timeout=600) as http:

        async def one(number: int, schema: dict[str, Any]) -> str:
            form = {"type": "json_schema", "json_schema": {"name": "value", "strict": True, "schema": schema}}
            body = {"model": model, "messages": messages(schema), "response_format": form, "seed": number,
                    "max_tokens": given.tokens, "temperature": given.temperature}  # fmt: skip
            async with gate:
                response = await http.post(f"{url}/chat/completions", json=body)
            return verdict(response, schema)

        return await asyncio.gather(*(one(number, schema) for number, schema in enumerate(wanted)))


def verdict(response: httpx.Response, wanted: dict[str, Any]) -> str:
    if response.status_code != 200:
        return f"refused {response.status_code}: {response.json()['error']['message']}"
    (choice,) = response.json()["choices"]
    if choice["finish_reason"] != "stop":
        return "cut"
    try:
        jsonschema.validate(json.loads(choice["message"]["content"]), wanted)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"not valid: {str(error).splitlines()[0]}"
    return "valid"


def overhead(given: argparse.Namespace, wanted: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Milliseconds a token of every tenth schema's answer: guided, and then as many free ones, schema by schema."""
    engine = NativeEngine.load(Path(given.model), threads=given.threads or None)
    stop, figures = engine.stop, dict[str, list[float]](guided=[], free=[])

    def answered(number: int, most: int, **grammar: str) -> tuple[int, float]:
        """Tokens after the first, and their seconds."""
        prompt = engine.tokenizer.render_chat(messages(wanted[number]))
        stream = engine.generate(prompt, max_tokens=most, temperature=given.temperature, seed=number, **grammar)
        next(stream)
        started = time.perf_counter()
        return sum(1 for _ in stream), time.perf_counter() - started

    for round_number in range(given.repeats + 1):
        count, guided, free = 0, 0.0, 0.0
        for number in range(0, len(wanted), 10):
            engine.stop = stop
            made, seconds = answered(number, given.tokens, grammar=json_schema(wanted[number]))
            engine.stop = set()  # both make as many tokens
            count, guided, free = count + made, guided + seconds, free + answered(number, made + 1)[1]
        if round_number:  # the first one warms up
            figures["guided"].append(1000 * guided / count)
            figures["free"].append(1000 * free / count)
    engine.stop = stop
    return figures


def main() -> None:
    given = options(
        __doc__, model="runs/device/recovery", count=500, seed=1, clients=8, tokens=2000, temperature=0.7, threads=0
    )  # fmt: skip
    draw = random.Random(given.seed)
    wanted = [schema(draw) for _ in range(given.count)]
    with ours(given, given.count) as url:
        verdicts = asyncio.run(asked(given, url, wanted))
    valid = verdicts.count("valid")
    for number, found in enumerate(verdicts):
        if found != "valid":
            Console().print(f"schema {number}: {found}: {json.dumps(wanted[number])}", markup=False)
    Console().print(f"{valid} of {given.count} answers are valid")
    detail = {"count": given.count, "valid": valid, "share": valid / given.count, "cut": verdicts.count("cut")}
    figures = overhead(given, wanted)
    show("schemas", "ms a token", figures, limit=None, detail=detail, as_json=given.json, better="less")


if __name__ == "__main__":
    main()
