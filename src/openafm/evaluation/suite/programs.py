"""Code: HumanEval's functions completed and run against their tests in the sandbox (Chen et al., arXiv 2107.03374).

pass@k is its unbiased estimate 1 - C(n-c, k) / C(n, k) over n samples of which c pass; the nano suite has n = 1,
greedy, the full one n = 10 at temperature 0.8.
"""

import gzip
import re
from collections.abc import Iterable
from math import comb
from typing import Any

from openafm import jsonl
from openafm.evaluation.suite.items import Item, NotMeasuredError
from openafm.evaluation.suite.material import spread
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.sampling import sandbox
from openafm.sampling.interpreter import Limits

TOKENS, TEMPERATURE = 256, 0.8
LIMITS = Limits(wall_seconds=10.0, cpu_seconds=5)
_FENCE = re.compile(r"```(?:[Pp]ython|py)?\n(.*?)(?:```|\Z)", re.S)
_ENDS = re.compile(r"\n(?=(?:def|class|if|print|assert|@|#|from|import)\b|```|[A-Za-z])")
"""Where a completion leaves the function it is in."""


def measure(subject: Subject, bench: Bench) -> Iterable[Item]:
    """pass@1 of each function, and pass@n where there are more samples."""
    if sandbox.backend() == "none":
        raise NotMeasuredError("no sandbox for model-written code on this system (openafm doctor)")
    (data,) = bench.material.files("human_eval").values()
    rows = spread(
        jsonl.parse(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, "HumanEval"), bench.size.items
    )
    many = bench.size.samples
    temperature = 0.0 if many == 1 else TEMPERATURE
    bench.context.report("functions written", 0, None)
    if subject.talks:
        chats = [
            [{"role": "user", "content": f"Complete this Python function:\n\n```python\n{row['prompt']}```"}]
            for row in rows
        ]
        made = subject.ask(chats, TOKENS, n=many, temperature=temperature)
    else:
        made = subject.complete([row["prompt"] for row in rows], TOKENS, n=many, temperature=temperature)
    for row, answers in bench.context.track(list(zip(rows, made, strict=True)), "functions run"):
        codes = [program(row["prompt"], answer.text) for answer in answers]
        test = f"\n\n{row['test']}\n\ncheck({row['entry_point']})\n"
        results = sandbox.run_all([sandbox.Job(code + test) for code in codes], LIMITS)
        passed = sum(result.ok for result in results)
        for k in sorted({1, many}):
            shown: dict[str, Any] = {"answer": answers[0].text, "stderr": results[0].stderr[-300:]}
            yield Item(f"pass@{k}", row["task_id"], pass_at(k, many, passed), 1.0, shown)


def pass_at(k: int, n: int, passed: int) -> float:
    """Chance that one of k of the n samples passes, drawn without putting back: 1 - C(n-c, k) / C(n, k) (eq. 1)."""
    if not 0 <= passed <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {passed} in {n}: needs 0 <= passed <= n and 1 <= k <= n")
    return 1.0 - comb(n - passed, k) / comb(n, k)


def program(prompt: str, answer: str) -> str:
    """The whole function: the answer's code block where it defines it, else the prompt continued by the answer."""
    blocks = _FENCE.findall(answer)
    code = blocks[0] if blocks else answer
    name = re.findall(r"def (\w+)", prompt)[-1]
    if re.search(rf"def {name}\b", code):
        return f"{prompt.partition('def ')[0]}\n{code}"
    return prompt + _ENDS.split(code, maxsplit=1)[0]


TASKS = (
    Task(
        "code", "HumanEval functions that pass their tests", measure, Size(16), Size(164, samples=10), ("human_eval",)
    ),
)
