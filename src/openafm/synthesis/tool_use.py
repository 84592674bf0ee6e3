"""Synthetic tool use and instruction following (step `tool_data`): calls that were parsed, validated and executed.

AFM (arXiv 2407.21075, section 4.1.2): single-tool first, then several tools with similar distractors, and
intent-detection data, where no tool at hand is needed, against over-triggering. The short tasks are for models of a
million weights; `library` adds real tools with JSON schemas, calls side by side and in several steps
(`openafm.synthesis.tool_library`).
"""

import random
import re
from pathlib import Path
from typing import Any

from openafm.sampling import sandbox
from openafm.scoring import checks, toolcalls
from openafm.stage import Config, Context, Metrics
from openafm.synthesis import tasks, tool_library
from openafm.synthesis.intents import asks_for
from openafm.synthesis.items import Collected, finish
from openafm.synthesis.tasks import Example
from openafm.synthesis.writer import Writer, WriterConfig, line


class ToolConfig(Config):
    """How much tool use to make."""

    tool_tasks: tuple[str, ...] = tuple(tasks.TOOL_USE)
    """Tool tasks, out of `openafm.synthesis.tasks.TOOL_USE`: single tool, several tools, no tool needed."""
    per_tool_task: int = 900
    """Programmatic examples of each of them."""
    instruction_tasks: tuple[str, ...] = tuple(tasks.LANGUAGE)
    """Instruction tasks, out of `openafm.synthesis.tasks.LANGUAGE`: letters, spelling, copying, naming."""
    per_instruction_task: int = 300
    """Programmatic examples of each of them."""
    largest: int = tasks.LARGEST
    """Largest number in a request."""
    written: int = 12
    """Requests that the writer model words; 0 leaves the model out."""
    max_words: int = 16
    """Longest request kept of the writer's, in words."""
    writer: WriterConfig | None = None
    """A writer other than the sources' model."""
    library: int = 0
    """Trajectories of each kind with the real tools of the library, run in the sandbox: one tool, several at hand, two
    calls side by side, several steps, and requests that no tool at hand serves."""


def reject(example: Example) -> str | None:
    """Say why a tool example is wrong, or None: its call is parsed from the answer, validated and really executed."""
    check = example["check"]
    if check["kind"] != "tool":
        return None if checks.passes(example, example["answer"]) else "answer_check"
    calls = toolcalls.parse(example["answer"])
    if check["call"] is None:
        return "call_not_needed" if calls else None
    if len(calls) != 1 or toolcalls.problem(calls[0], check["tools"]):
        return "schema"
    try:
        toolcalls.execute(calls[0], check["tools"])
    except ValueError:
        return "execution"
    return None if checks.passes(example, example["answer"]) else "answer_check"


def _written(config: ToolConfig, context: Context, writer: Writer, collected: Collected) -> None:
    """Let the model word requests for calls that are known beforehand; each must name all its arguments."""
    seeds = tasks.draw("single_tool", config.written, f"{context.seed}/written")
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        wanted = seed["check"]["call"]
        values = ", ".join(f"{name} = {value}" for name, value in wanted["arguments"].items())
        rows.append({"name": wanted["name"], "arguments": values})
    rng = random.Random(f"{context.seed}/tool_data")
    for seed, texts in zip(seeds, writer.write("tool_request", rows, max_tokens=24), strict=True):
        request, wanted = line(texts[0]), seed["check"]["call"]
        collected.judge(*_worded(seed, request, wanted, rng, config.max_words))


def _worded(
    seed: Example, request: str, wanted: dict[str, Any], rng: random.Random, max_words: int
) -> tuple[Example, str | None]:
    """Put a written request in the place of the seed's own, beside one distractor."""
    names = [wanted["name"], rng.choice([name for name in tasks.ASKED_TOOLS if name != wanted["name"]])]
    shown = rng.sample(names, 2)
    prompt = f"Tools: {', '.join(toolcalls.TOOLS[name].signature for name in shown)}\n{request}"
    key = seed["lineage"].split("/", 2)[2]
    problem = tasks.Problem(prompt, seed["answer"], key, {"kind": "tool", "tools": shown, "call": wanted})
    row = tasks.example("several_tools", problem, lineage="writer-request")
    if not request or len(request.split()) > max_words:
        return row, "too_long" if request else "empty"
    said = set(re.findall(r"\w+", request.casefold()))
    given = {str(value).casefold() for value in wanted["arguments"].values()}
    if not given <= said:
        return row, "argument_missing"
    if any(word.isdigit() and word not in given for word in said):
        return row, "number_added"
    return row, reject(row) if asks_for(request, wanted["name"], wanted["arguments"]) else "intent_missing"


def tool_data(config: ToolConfig, context: Context, *, sources: Path) -> Metrics:
    """Make tool-use and instruction examples: `examples.jsonl` and `rejected.jsonl`; yields are in the metrics."""
    collected = Collected()
    wanted = dict.fromkeys(config.tool_tasks, config.per_tool_task)
    wanted |= dict.fromkeys(config.instruction_tasks, config.per_instruction_task)
    for name, count in context.track(wanted.items(), "tool tasks", len(wanted)):
        for row in tasks.draw(name, count, context.seed, config.largest):
            collected.judge(row, reject(row))
    distractors = _library(config, context, sources, collected)
    writer = Writer.open(sources, context, config.written > 0, config.writer)
    if writer.present:
        _written(config, context, writer, collected)
    return finish(context, collected, writer.used) | distractors


def _library(config: ToolConfig, context: Context, sources: Path, collected: Collected) -> Metrics:
    """Add what the library's trajectories teach; return what distractors were chosen by."""
    if not config.library:
        return {}
    if sandbox.backend() == "none":
        return {"tools": 0, "sandbox": "none"}
    context.report("tools in the sandbox", 0, None)
    found, by = tool_library.trajectories(config.library, context.seed, sources / "models" / "embedder")
    for trajectory in found:
        for row in tool_library.examples(trajectory):
            reason = trajectory.reason or (None if checks.passes(row, row["answer"]) else "answer_check")
            collected.judge(row, reason, trajectory.evidence)
    return {"distractors_by": by, "tools": len(tool_library.library())}
