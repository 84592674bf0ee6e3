"""Plain decoding against prompt look-up and a draft model: tokens a second of greedy answers, which must be the same.

Texts are cut into prompts: `continue` lets the model go on from each, `summarise` asks it for a summary in a chat.
Example: openafm bench speculation --model runs/SmolLM2/import --draft runs/SmolLM2/compress --text README.md --json
"""

import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

from harness import alternate, options, show
from openafm.engine import NativeEngine


def main() -> None:
    given = options(__doc__, model="runs/device/recovery", draft="", text="README.md", prompts=4, length=384,
                    tokens=64, threads=0)  # fmt: skip
    threads = given.threads or None
    plain = NativeEngine.load(Path(given.model), threads=threads)
    contestants = {"plain": plain, "look-up": NativeEngine.load(Path(given.model), threads=threads, draft="lookup")}
    if given.draft:
        draft = NativeEngine.load(Path(given.draft), threads=threads)
        contestants["draft"] = NativeEngine.load(Path(given.model), threads=threads, draft=draft)
    text = plain.tokenizer.encode(Path(given.text).read_text(encoding="utf-8"))
    parts = [text[i * given.length : (i + 1) * given.length] for i in range(given.prompts)]
    parts = [part for part in parts if len(part) == given.length]
    assert parts, f"{given.text} is too short for prompts of {given.length} tokens"
    for task, prompts in prompts_of(plain, parts).items():
        expected = [answer(plain, prompt, given.tokens) for prompt in prompts]
        detail: dict[str, object] = {"prompts": len(prompts), "tokens": sum(map(len, expected))}
        for name, engine in contestants.items():
            assert [answer(engine, prompt, given.tokens) for prompt in prompts] == expected, f"{name} changed an answer"
            detail[f"{name}_tokens_a_step"] = round(sum(map(len, expected)) / steps(engine, prompts, given.tokens), 2)
        rates: dict[str, Callable[[], float]] = {
            name: lambda engine=engine, prompts=prompts: rate(engine, prompts, given.tokens)
            for name, engine in reversed(contestants.items())
        }
        figures = alternate(rates, given.repeats)
        show(f"speculation_{task}", "tokens/s", figures, limit=None, detail=detail, as_json=given.json)


def prompts_of(engine: NativeEngine, parts: list[list[int]]) -> dict[str, list[list[int]]]:
    """The texts to go on from, and the chats that ask for their summaries."""
    asked = "Summarise this text in its own words:\n\n"
    chats = [
        engine.tokenizer.render_chat([{"role": "user", "content": asked + engine.tokenizer.decode(part)}])
        for part in parts
    ]
    return {"continue": [[engine.tokenizer.bos_id, *part] for part in parts], "summarise": chats}


def answer(engine: NativeEngine, prompt: list[int], tokens: int) -> list[int]:
    return list(engine.generate(prompt, max_tokens=tokens, temperature=0.0))


def steps(engine: NativeEngine, prompts: list[list[int]], tokens: int) -> int:
    """How many steps of the model the answers take: fewer than their tokens where proposals are taken."""
    model = engine.model
    engine.model = watched = Mock(wraps=model)
    for prompt in prompts:
        answer(engine, prompt, tokens)
    engine.model = model
    return watched.take.call_count


def rate(engine: NativeEngine, prompts: list[list[int]], tokens: int) -> float:
    """Tokens a second once the prompt is computed: both models keep it from the short answer before."""
    count, seconds = 0, 0.0
    for prompt in prompts:
        answer(engine, prompt, 2)  # a draft model is not asked for the last token
        started = time.perf_counter()
        count += len(answer(engine, prompt, tokens))
        seconds += time.perf_counter() - started
    return count / seconds


if __name__ == "__main__":
    main()
