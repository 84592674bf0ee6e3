"""Tool calls: BFCL's single-turn questions, answers compared as its syntax trees are (openafm.scoring.calling).

A model whose chat template shows tools is asked by it; others read their JSON schemas in the system message, with one
sentence on how to call. Where no tool fits, a call of any is the fault.
"""

import json
from collections.abc import Iterable
from typing import Any

from openafm import jsonl
from openafm.evaluation.suite.items import Item
from openafm.evaluation.suite.material import spread
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.sampling.sampler import Completion
from openafm.scoring import toolcalls
from openafm.scoring.calling import as_wanted, calls_a_tool, schema

KINDS = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
HOW = (
    'To call a function, answer with JSON only, a line a call: {"name": NAME, "arguments": {...}}. '
    "If none of them fits, answer in words."
)
TOKENS = 128
"""Longest answer."""


def measure(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Right or wrong for each question, by kind."""
    files = bench.material.files("bfcl")
    questions = {name.rpartition("/")[2]: name for name in files if "possible_answer" not in name}
    for kind in bench.context.track(KINDS, "tools"):
        name = questions[f"BFCL_v4_{kind}.json"]
        rows = spread(jsonl.parse(files[name], name), bench.size.items)
        wanted = {}
        if kind != "irrelevance":
            answers = files[name.replace("/data/", "/data/possible_answer/")]
            wanted = {row["id"]: row["ground_truth"] for row in jsonl.parse(answers, name)}
        for row, answer in zip(rows, _answers(subject, rows), strict=True):
            calls = toolcalls.parse(answer.text.replace('"parameters":', '"arguments":'))
            tools = row["function"]
            if kind == "irrelevance":
                right = bool(answer.text.strip()) and not calls_a_tool(calls, tools)  # it may talk for long
            else:
                right = answer.finished and as_wanted(calls, wanted[row["id"]], tools)
            asked = row["question"][0][-1]["content"]
            yield Item(kind, row["id"], float(right), 1.0, {"asked": asked, "answer": answer.text})


def _answers(subject: Subject, rows: list[dict[str, Any]]) -> list[Completion]:
    """Greedy answers, by the template where it shows tools."""
    shown = [[schema(tool) for tool in row["function"]] for row in rows]
    if subject.talks and subject.tokenizer.call_form() is not None:
        prompts = [
            subject.tokenizer.render_chat(
                row["question"][0], tools=[{"type": "function", "function": tool} for tool in tools]
            )
            for row, tools in zip(rows, shown, strict=True)
        ]
        return subject.continue_tokens(prompts, TOKENS)
    chats = []
    for row, tools in zip(rows, shown, strict=True):
        told = f"Tools: {json.dumps(tools, ensure_ascii=False)}\n{HOW}"
        own = row["question"][0]
        rest = own[1:] if own[0]["role"] == "system" else own
        lead = f"{told}\n{own[0]['content']}" if own[0]["role"] == "system" else told
        chats.append([{"role": "system", "content": lead}, *rest])
    return [answer for (answer,) in subject.ask(chats, TOKENS)]


TASKS = (Task("tools", "right calls, BFCL single turn", measure, Size(12), Size(200), ("bfcl",)),)
