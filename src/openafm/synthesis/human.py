"""The human part of post-training data (step `human_data`): what people wrote, as examples with origin `human`.

AFM mixes human demonstrations with synthetic data (arXiv 2407.21075, section 4.1.1). Here people's words come from
package synopses, mail subjects, and any JSONL of conversations in the usual forms, put under `human/` of the sources.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openafm import jsonl
from openafm.stage import Config, Context, Metrics
from openafm.synthesis.items import Collected, finish, prompt_of
from openafm.synthesis.tasks import Example

SUMMARISED = ("synopses", "mails")
HELD_OUT_SHARE = 0.1
ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "function_response": "tool", "observation": "tool",
}  # fmt: skip
"""Names of roles in OpenAI messages, ShareGPT and its kin, and what they are here."""
ASKED = ("prompt", "instruction", "question", "query", "input")
TOLD = ("completion", "response", "output", "answer")
Message = dict[str, str]


class HumanConfig(Config):
    """How much of what people wrote to take, and how long it may be."""

    per_kind: int = 300
    """Most examples taken of each file of `human/`."""
    max_prompt_words: int = 32
    """Longest prompt in words; texts to be summarised are cut after the sentence that reaches it."""
    max_answer_words: int = 16
    """Longest answer in words."""


def shorten(text: str, words: int) -> str:
    """Return a text's opening sentences up to about `words` words, on one line; a longer first sentence is cut."""
    kept: list[str] = []
    for sentence in " ".join(text.split()).replace("! ", ". ").split(". "):
        if kept and len(" ".join(kept).split()) + len(sentence.split()) > words:
            break
        kept.append(sentence)
    return " ".join(". ".join(kept).split()[:words]).rstrip(".") + "."


def summary_example(row: dict[str, Any], kind: str, words: int, answer_words: int) -> Example:
    """A row {"id", "source", "text", "summary"} as an example: sum the text up in one line."""
    source, answer = shorten(row["text"], words), " ".join(row["summary"].split())
    wanted = {"synopses": "Sum up", "mails": "Subject line for"}[kind]
    return {
        "id": row["id"],
        "task": "summary",
        "messages": [{"role": "user", "content": f"{wanted}: {source}"}],
        "answer": answer,
        "check": {"kind": "summary", "source": source, "max_words": answer_words},
        "origin": "human",
        "lineage": f"{kind}/{row['source']}/{row['id']}",
    }


def conversation(row: dict[str, Any]) -> list[Message]:
    """Read one line in a usual chat form as turns that end with an answer.

    OpenAI messages (`messages` of role and content, a content of parts too), ShareGPT (`conversations` of from and
    value), Alpaca (`instruction`, `input`, `output`), prompt with response or completion, and what the labelling page
    writes: `messages` that end with the question, and beside them the `answer` that a person wrote. Turns after the
    last answer are left out. Raises ValueError when it is none of these, a turn is no role with text, or there is no
    answer.
    """
    turns = _turns(row)
    if not turns or not all(role in ROLES and isinstance(text, str) for role, text in turns):
        raise ValueError("it is neither messages, nor conversations, nor a prompt with a completion")
    while turns and ROLES[str(turns[-1][0])] != "assistant":
        turns.pop()
    messages = [{"role": ROLES[str(role)], "content": str(text).strip()} for role, text in turns]
    if len(messages) < 2 or messages[-2]["role"] not in ("user", "tool"):
        raise ValueError("it does not end with a question and its answer")
    return messages


def _turns(row: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Role and text of each turn as the row has them; what is missing is None."""
    listed = row.get("messages") or row.get("conversations")
    if isinstance(listed, list):
        found = [turn for turn in listed if isinstance(turn, dict)]
        turns = [(turn.get("role", turn.get("from")), _text(turn.get("content", turn.get("value")))) for turn in found]
        if isinstance(row.get("answer"), str):
            turns.append(("assistant", row["answer"]))
    else:
        name = next((name for name in ASKED if row.get(name)), "")
        told = next((row[name] for name in TOLD if row.get(name)), None)
        more = f"\n{row['input']}" if name != "input" and row.get("input") else ""
        turns = [("user", f"{row[name]}{more}" if name else None), ("assistant", told)]
    system = row.get("system") or row.get("system_prompt")
    return [("system", system), *turns] if isinstance(system, str) else turns


def _text(content: Any) -> Any:
    """A content as text: OpenAI's list of parts is joined where all are text."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content


def imported(path: Path) -> Iterator[Example]:
    """Read a JSONL file of conversations; each becomes an example that ends with its last answer.

    Raises ValueError naming file and line for what is not JSON or in no known form.
    """
    for number, row in jsonl.numbered(path.read_bytes(), str(path)):
        try:
            messages = conversation(row)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}; mend or delete the line") from error
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]
        yield {
            "id": f"imported-{digest}",
            "task": "imported",
            "messages": messages[:-1],
            "answer": messages[-1]["content"],
            "check": None,
            "origin": "human",
            "lineage": f"imported/{path.stem}",
        }


def _reason(example: Example, config: HumanConfig) -> str | None:
    """Why an example does not fit a small model, or None."""
    words, asked = len(example["answer"].split()), len(prompt_of(example).split())
    if not words or asked < 3:
        return "empty"
    if words > config.max_answer_words:
        return "answer_too_long"
    return "prompt_too_long" if asked > config.max_prompt_words + 8 else None


def summarised(sources: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of `human/<kind>.jsonl`, sorted by id; none when the sources do not hold the file."""
    path = sources / "human" / f"{kind}.jsonl"
    return sorted(jsonl.read(path) if path.exists() else [], key=lambda row: row["id"])


def is_held_out(row: dict[str, Any], seed: int) -> bool:
    """Whether a row is one in ten kept for evaluating summaries, by its page or package: none is on both sides."""
    digest = hashlib.sha256(f"{seed}/summary/{row['id'].split('#')[0]}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def human_data(config: HumanConfig, context: Context, *, sources: Path) -> Metrics:
    """Take what people wrote: `examples.jsonl` and `rejected.jsonl`; pages held out for summaries stay out."""
    collected = Collected()
    for kind in SUMMARISED:
        rows = [row for row in summarised(sources, kind) if not is_held_out(row, context.seed)]
        random.Random(f"{context.seed}/human/{kind}").shuffle(rows)
        for row in rows[: config.per_kind]:
            example = summary_example(row, kind, config.max_prompt_words, config.max_answer_words)
            collected.judge(example, _reason(example, config))
    others = [path for path in sorted((sources / "human").glob("*.jsonl")) if path.stem not in SUMMARISED]
    for path in context.track(others, "imported conversations"):
        for example in list(imported(path))[: config.per_kind]:
            collected.judge(example, _reason(example, config))
    return finish(context, collected, {"model": "none", "tokens": 0})
