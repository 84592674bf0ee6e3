"""Our comparison of tool calls beside BFCL's own checker, on its questions: right calls, and calls with one fault.

Each question's wanted calls are written out (the first allowed value of each argument), then spoiled in each way that
is known here: a value, a type, an argument left out or too many, another name, calls doubled or in another order. Both
checkers judge all of them. BFCL's is read out of its package, without the models that it would import.

    openafm bench tool-checks
"""

import copy
import json
import sys
import tempfile
import types
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import machine, options
from openafm.data.packages import Package, ensure
from openafm.files import default_cache
from openafm.scoring.calling import as_wanted
from openafm.scoring.toolcalls import Call

BFCL = Package("pypi", "bfcl-eval", "2026.3.23", "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a")
KINDS = ("simple_python", "multiple", "parallel", "parallel_multiple")
Calls = list[dict[str, dict[str, Any]]]


def theirs(folder: Path) -> Callable[[list[Any], Calls, list[Any], str], bool]:
    """BFCL's checker; what it knows of models is replaced by one that writes dots as they are."""
    known = types.ModuleType("bfcl_eval.constants.model_config")
    settings = types.SimpleNamespace(underscore_to_dot=False)
    known.MODEL_CONFIG_MAPPING = {"any": settings}  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))
    sys.modules["bfcl_eval.constants.model_config"] = known
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    def judge(tools: list[Any], calls: Calls, wanted: list[Any], kind: str) -> bool:
        if kind == "multiple":
            (name,) = wanted[0]
            tools, kind = [tool for tool in tools if tool["name"] == name], "simple_python"
        try:
            return bool(ast_checker(tools, calls, wanted, Language.PYTHON, kind, "any")["valid"])
        except (TypeError, AttributeError, KeyError):  # it fails on some wrong types, which counts as wrong there too
            return False

    return judge


def value(allowed: list[Any]) -> Any:
    """The first allowed value written out."""
    first = next(one for one in allowed if one != "")
    if isinstance(first, dict):
        return {key: value(values) for key, values in first.items() if "" not in values}
    if isinstance(first, list):
        return [
            {key: value(values) for key, values in part.items() if "" not in values} if isinstance(part, dict) else part
            for part in first
        ]
    return first


def written(wanted: list[Any]) -> Calls:
    """The wanted calls as a model would make them."""
    calls = []
    for expected in wanted:
        ((name, arguments),) = expected.items()
        calls.append({name: {key: value(values) for key, values in arguments.items() if any(v != "" for v in values)}})
    return calls


def spoiled(calls: Calls) -> Iterator[tuple[str, Calls]]:
    """The calls with one fault, or one difference that may be none."""
    yield "as wanted", calls
    yield "doubled", [*calls, calls[0]]
    yield "one left out", calls[1:]
    yield "reversed", calls[::-1]
    (name,) = calls[0]
    yield "another name", [{f"{name}_x": calls[0][name]}, *calls[1:]]
    yield "an argument more", [{name: {**calls[0][name], "zz": 1}}, *calls[1:]]
    for key, given in calls[0][name].items():
        for what, changed in variants(given):
            other = copy.deepcopy(calls)
            other[0][name][key] = changed
            yield what, other
        without = copy.deepcopy(calls)
        del without[0][name][key]
        yield "an argument less", without


def variants(given: Any) -> Iterator[tuple[str, Any]]:
    """Other values of an argument."""
    yield "as text", str(given)
    yield "in a list", [given]
    if isinstance(given, str):
        yield "other case", given.upper()
        yield "other marks", given.replace(" ", "-") + "."
        yield "another text", given + " not"
    elif isinstance(given, bool):
        yield "the opposite", not given
        yield "as a number", int(given)
    elif isinstance(given, int | float):
        yield "one more", given + 1
        yield "as a float", float(given)
    elif isinstance(given, list):
        yield "another order", given[::-1]
        yield "one entry less", given[:-1]
        yield "entries as text", [str(part) for part in given]
    elif isinstance(given, dict):
        yield "an entry less", dict(list(given.items())[:-1])
        yield "an entry more", {**given, "zz": 1}


def main() -> None:
    chosen = options(__doc__)
    agreed, total, apart = Counter[str](), Counter[str](), []
    with tempfile.TemporaryDirectory() as temporary:
        with zipfile.ZipFile(ensure(BFCL, default_cache()).path) as file:
            file.extractall(temporary, [name for name in file.namelist() if name.endswith((".py", ".json"))])
        judge, data = theirs(Path(temporary)), Path(temporary) / "bfcl_eval" / "data"
        for kind in KINDS:
            questions = [json.loads(line) for line in (data / f"BFCL_v4_{kind}.json").read_text().splitlines()]
            lines = (data / "possible_answer" / f"BFCL_v4_{kind}.json").read_text().splitlines()
            answers = {row["id"]: row["ground_truth"] for row in map(json.loads, lines)}
            for question in questions:
                wanted, tools = answers[question["id"]], question["function"]
                for what, calls in spoiled(written(wanted)):
                    pairs = [next(iter(call.items())) for call in calls]
                    mine = as_wanted([Call(name, arguments) for name, arguments in pairs], wanted, tools)
                    other = judge(tools, copy.deepcopy(calls), wanted, kind)
                    total[what] += 1
                    agreed[what] += mine == other
                    if mine != other:
                        apart.append((question["id"], what, mine, other, json.dumps(calls)[:160]))
    table = Table(title="Calls that both checkers judge alike", title_justify="left")
    for heading in ("calls", "n", "alike", "%"):
        table.add_column(heading, justify="left" if heading == "calls" else "right")
    for what, count in total.items():
        table.add_row(what, f"{count:,}", f"{agreed[what]:,}", f"{100 * agreed[what] / count:.2f}")
    table.add_row("all", f"{total.total():,}", f"{agreed.total():,}", f"{100 * agreed.total() / total.total():.2f}")
    console = Console(width=160)
    console.print(table)
    for row in apart[:20]:
        console.print(f"apart: {row[0]} {row[1]}: ours {row[2]}, theirs {row[3]}: {row[4]}", markup=False)
    if chosen.json:
        share = round(agreed.total() / total.total(), 5)
        print(json.dumps({"name": "tool-checks", "unit": "judged alike", "ours": share, "peers": {"bfcl": 1.0},
                          "limit": 1.0, "detail": dict(total), "machine": machine()}))  # fmt: skip


if __name__ == "__main__":
    main()
