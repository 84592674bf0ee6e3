"""What guiding costs a token: JSON under a schema against as many tokens without one; every text must be valid.

Example: openafm bench guided --model runs/SmolLM2/import --json
"""

import json
import time
from pathlib import Path

import jsonschema

from harness import alternate, options, show, timed
from openafm.engine import NativeEngine
from openafm.engine.guidance import json_schema

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "year": {"type": "integer", "minimum": 1000, "maximum": 2100},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 16}, "minItems": 2, "maxItems": 4},
        "people": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 30}, "role": {"enum": ["author", "editor"]}},
                "required": ["name", "role"],
                "additionalProperties": False,
            },
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["title", "year", "tags", "people"],
    "additionalProperties": False,
}


def main() -> None:
    given = options(__doc__, model="runs/device/recovery", answers=4, threads=0, temperature=0.7)
    engine = NativeEngine.load(Path(given.model), threads=given.threads or None)
    asked = "Describe a book as JSON with title, year, tags and people."
    prompt = engine.tokenizer.render_chat([{"role": "user", "content": asked}])
    grammar = json_schema(SCHEMA)
    settings = {"temperature": given.temperature, "grammar": grammar}
    answers = [list(engine.generate(prompt, max_tokens=600, seed=seed, **settings)) for seed in range(given.answers)]
    for tokens in answers:
        jsonschema.validate(json.loads(engine.tokenizer.decode(tokens)), SCHEMA)
    lengths = [len(tokens) for tokens in answers]

    def milliseconds(guided: bool) -> float:
        """A token's time; without the grammar stop tokens are passed over, so that both make as many."""
        count, seconds = 0, 0.0
        for seed, length in enumerate(lengths):
            stop, engine.stop = engine.stop, engine.stop if guided else set()
            kept_to = settings if guided else settings | {"grammar": None}
            stream = engine.generate(prompt, max_tokens=length, seed=seed, **kept_to)
            next(stream)
            started = time.perf_counter()
            count += sum(1 for _ in stream)
            seconds += time.perf_counter() - started
            engine.stop = stop
        return 1000 * seconds / count

    compiling = timed(lambda: engine._guide(grammar))
    detail = {"compile_ms": round(1000 * compiling, 2), "valid": len(answers), "tokens": lengths}
    figures = alternate({"guided": lambda: milliseconds(True), "free": lambda: milliseconds(False)}, given.repeats)
    show("guided", "ms a token", figures, limit=None, detail=detail, as_json=given.json, better="less")


if __name__ == "__main__":
    main()
