"""A second program that solves every kept synthetic example again, from its text alone.

    openafm bench reverify --run runs/nano

It shares no code with openafm.synthesis and openafm.scoring: prompts are read by patterns of its own, equations solved
by sympy, weekdays taken from the calendar, calls validated by the package jsonschema and executed anew, programs run
again with their tests in a fresh sandbox. Each example is `right`, `wrong`, or `unread` (a problem in a model's own
words, of which this program's own reader of plain words, `wordings.py`, understands less than all: it is counted, not
vouched for).
"""

import argparse
import ast
import datetime
import json
import operator
import re
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import sympy
import yaml

import wordings
from openafm.sampling import sandbox

Row = dict[str, Any]
RIGHT, WRONG, UNREAD = "right", "wrong", "unread"
PACKAGE = Path(sandbox.__file__).parents[1] / "synthesis"

# --- mathematics: what the text asks, by patterns ---------------------------------------------------------------------
INT = r"(-?\d+)"
PLUS = (rf"Sum of {INT} and {INT}\?", rf"{INT} plus {INT} is\?", rf"How much is {INT} and {INT}\?",
        rf"Add {INT} and {INT}\.",
        rf"\w+ has {INT} [\w ]+, (?:gets|buys|finds|picks|earns|bakes) {INT}\. How many now\?")  # fmt: skip
MINUS = (rf"{INT} minus {INT} is\?", rf"{INT} less {INT}\?", rf"Difference of {INT} and {INT}\?",
         rf"\w+ has {INT} [\w ]+, (?:loses|sells|gives away|eats|spends) {INT}\. How many now\?")  # fmt: skip
ANSWERS = {
    **{pattern: lambda a, b: int(a) + int(b) for pattern in PLUS},
    **{pattern: lambda a, b: int(a) - int(b) for pattern in MINUS},
    rf"Take {INT} from {INT}\.": lambda b, a: int(a) - int(b),
    rf"What is {INT} times {INT}\?": lambda a, b: int(a) * int(b),
    r"(?:What is )?(\d+(?: [+\-*] \d+)+)(?: = \?|\?)": lambda text: sympy.sympify(text),
    r"(.+) = (\d+)\. Find \?": lambda left, right: sympy.solve(
        sympy.sympify(left.replace("?", "x")) - int(right), sympy.Symbol("x")
    )[0],
    rf"Which is larger, {INT} or {INT}\?": lambda a, b: max(int(a), int(b)),
    rf"Which is smaller, {INT} or {INT}\?": lambda a, b: min(int(a), int(b)),
    r"Find the largest: ([\d, ]+)": lambda text: max(listed(text)),
    r"Find the smallest: ([\d, ]+)": lambda text: min(listed(text)),
    r"(?:What comes next|Next number): ([\d, ?]+)": lambda text: 2 * listed(text)[-1] - listed(text)[-2],
    r"How many times (\w+): (.+)": lambda word, text: text.split().count(word),
    r"How many words: (.+)": lambda text: len(text.split()),
    r"How many (\w+) are in (\d+) (\w+)\?": lambda small, count, large: int(count) * factor(large, small),
    r"Sort: ([\d, ]+)": lambda text: ", ".join(map(str, sorted(listed(text)))),
    r"Is (\d+) (even|odd)\?": lambda n, kind: "yes" if ("even", "odd")[int(n) % 2] == kind else "no",
    r"Which day is (\d+) days? (after|before) (\w+)\?": lambda n, where, day: weekday(day, int(n), where),
    r"Join: (.+)": lambda text: text.replace(" ", ""),
    r"Reverse: (.+)": lambda text: text[::-1],
    r"Spell (\w+)\.": lambda word: " ".join(word),
    r"First letter of (\w+)\?": lambda word: word[0],
    r"Say (\w+) (\d) times\.": lambda word, n: " ".join([word] * int(n)),
    r"(?:Repeat|Say): (.+)": lambda text: text,
}


def listed(text: str) -> list[int]:
    return [int(part) for part in text.replace("?", "").split(",") if part.strip()]


def factor(large: str, small: str) -> int:
    centimeters = {"km": 100_000, "meters": 100, "cm": 1}
    grams = {"kg": 1000, "grams": 1}
    seconds = {"weeks": 604_800, "days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}
    months = {"years": 12, "months": 1}
    scale = next(s for s in (centimeters, grams, seconds, months) if large in s and small in s)
    return scale[large] // scale[small]


def weekday(day: str, days: int, where: str = "after") -> str:
    start = next(d for n in range(7) if (d := datetime.date(2024, 1, 1 + n)).strftime("%A") == day)
    return (start + datetime.timedelta(days=days if where == "after" else -days)).strftime("%A")


def mathematics(row: Row, gym: dict[str, Any]) -> str:
    """Solve the prompt; drawn problems of reasoning-gym are drawn again and judged by its own scorer."""
    prompt, answer = row["messages"][-1]["content"].strip(), row["answer"]
    if row["task"].startswith("gym_"):
        return gym_verdict(row, prompt, gym)
    solved = next((f(*m.groups()) for p, f in ANSWERS.items() if (m := re.fullmatch(p, prompt))), None)
    if solved is None:
        solved = wordings.solved(prompt)
    if solved is None:
        return members(prompt, answer)
    given = re.findall(r"-?\d+(?:/\d+)?", answer)
    if re.fullmatch(r"-?\d+(/\d+)?", str(solved)) and given:
        return RIGHT if Fraction(given[-1]) == Fraction(str(solved)) else WRONG
    return RIGHT if answer.casefold() == str(solved).casefold() else WRONG


def members(prompt: str, answer: str) -> str:
    """`Name 3 animals.` and its forms: as many different words, each of the kind, in the form that was asked for."""
    found = re.fullmatch(r"Name (\d) (\w+)\.(?: (No commas|In capitals|Start with (\w+))\.)?", prompt)
    if not found:
        return UNREAD
    count, kind, form, first = found.groups()
    rows = dict(line.split(": ") for line in (PACKAGE / "words.txt").read_text().splitlines())
    said = answer.replace(",", "").split()
    right = len(set(said)) == int(count) == len(said) and {w.casefold() for w in said} <= set(rows[kind].split())
    formed = {"No commas": "," not in answer, "In capitals": answer.isupper()}.get(form or "", True)
    return RIGHT if right and formed and (not first or said[0] == first) else WRONG


def gym_verdict(row: Row, prompt: str, gym: dict[str, Any]) -> str:
    import reasoning_gym

    name = row["task"].removeprefix("gym_")
    known = gym.setdefault(name, {})
    if not known:
        data = reasoning_gym.create_dataset(name, seed=gym["seed"], size=gym["size"])
        known.update({entry["question"].strip(): (data, entry) for entry in data})
    if prompt not in known:
        return UNREAD
    data, entry = known[prompt]
    return RIGHT if data.score_answer(row["answer"], entry) == 1.0 else WRONG


# --- tools: calls read as JSON, held against their schemas, and executed anew -----------------------------------------
SHORT = {
    "add": (operator.add, int, int), "subtract": (operator.sub, int, int), "multiply": (operator.mul, int, int),
    "larger": (max, int, int), "upper": (str.upper, str), "reverse": (lambda t: "".join(reversed(t)), str),
    "length": (len, str), "day_after": (weekday, str, int),
    "to_minutes": (lambda h: 60 * h, int), "to_meters": (lambda k: 1000 * k, int),
}  # fmt: skip
ASKED = {
    r"Add (\d+) and (\d+)\.": ("add", 0, 1), r"Take (\d+) from (\d+)\.": ("subtract", 1, 0),
    r"What is (\d+) times (\d+)\?": ("multiply", 0, 1), r"Which is larger, (\d+) or (\d+)\?": ("larger", 0, 1),
    r"Write (\w+) in capitals\.": ("upper", 0), r"Write (\w+) backwards\.": ("reverse", 0),
    r"How many letters has (\w+)\?": ("length", 0), r"Which day is (\d+) days after (\w+)\?": ("day_after", 1, 0),
    r"How many minutes are (\d+) hours\?": ("to_minutes", 0), r"How many meters are (\d+) km\?": ("to_meters", 0),
}  # fmt: skip


def short_tool(row: Row) -> str:
    """The short form: signatures in the prompt, {NAME: {arguments}} as the answer."""
    shown, _, request = row["messages"][-1]["content"].partition("\n")
    signatures = dict(re.findall(r"(\w+)\(([^)]*)\)", shown))
    needed = next(((t, f.groups()) for p, t in ASKED.items() if (f := re.fullmatch(p, request))), None)
    if row["answer"] == "No tool needed.":
        return WRONG if needed and needed[0][0] in signatures else RIGHT
    ((name, arguments),) = json.loads(row["answer"]).items()
    if name not in signatures or list(arguments) != signatures[name].split(", "):
        return WRONG
    function, *kinds = SHORT[name]
    types = {int: "integer", str: "string"}
    properties = {key: {"type": types[kind]} for key, kind in zip(arguments, kinds, strict=True)}
    jsonschema.validate(arguments, {"type": "object", "properties": properties, "additionalProperties": False})
    result = function(*arguments.values())
    if needed is None:
        return own_words(request, name, arguments)
    (wanted, *order), given = needed
    expected = [kind(given[place]) for place, kind in zip(order, SHORT[wanted][1:], strict=True)]
    return RIGHT if name == wanted and result == SHORT[wanted][0](*expected) else WRONG


def own_words(request: str, name: str, arguments: Row) -> str:
    """A request that a writer worded: the tool its words name and the values in their order."""
    told = wordings.call(request)
    if told is None:
        return UNREAD
    given = [str(value).casefold() for value in arguments.values()]
    wanted = [value.casefold() for value in told[1]]
    same = given == wanted or (name in ("add", "multiply", "larger") and sorted(given) == sorted(wanted))
    return RIGHT if told[0] == name and same else WRONG


def library_tool(row: Row, expressions: dict[str, str]) -> str:
    """Real tools: every call of the conversation against its schema, every result by running the tool again."""
    schemas = {s["name"]: s["parameters"] for s in json.loads(row["messages"][0]["content"].removeprefix("Tools: "))}
    results: list[Any] = []
    for message in [*row["messages"][1:], {"role": "assistant", "content": row["answer"]}]:
        lines = message["content"].splitlines()
        if message["role"] == "tool" and [json.loads(line) for line in lines] != results:
            return WRONG
        if message["role"] != "assistant":
            continue
        if lines[0].startswith('{"name"'):
            calls = [json.loads(line) for line in lines]
            for call in calls:
                jsonschema.validate(call["arguments"], {**schemas[call["name"]], "additionalProperties": False})
            results = [evaluate(expressions[call["name"]], call["arguments"]) for call in calls]
        elif not results:
            return RIGHT if row["answer"] == "No tool needed." else WRONG
        elif message["content"] != "; ".join(map(plain, results)):
            return WRONG
    return RIGHT


def plain(value: Any) -> str:
    if value in (True, False) and isinstance(value, bool):
        return ("no", "yes")[value]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def evaluate(expression: str, arguments: dict[str, Any]) -> Any:
    """Run a tool's expression in this process: it is the package's own text, and its arguments were validated."""
    names = {n.id for n in ast.walk(ast.parse(expression)) if isinstance(n, ast.Name)} - set(arguments)
    space = {name: __import__(name) for name in names if name in sys.stdlib_module_names}
    if "urllib" in space:
        __import__("urllib.parse")
    return eval(expression, space, dict(arguments))


# --- code: programs run again with their tests ------------------------------------------------------------------------
def programs(rows: list[Row]) -> list[str]:
    """Each solution with its assertions as plain Python, in a sandbox of its own; the last line tells how many held."""
    jobs = []
    for row in rows:
        tests = "\n".join(f"try:\n  {test}\n  held += 1\nexcept Exception: pass" for test in row["tests"])
        jobs.append(sandbox.Job(f"{row['answer']}\nheld = 0\n{tests}\nprint(held)"))
    told = [result.stdout.splitlines()[-1:] for result in sandbox.run_all(jobs)]
    promised = [[str(round(row["passed"] * len(row["tests"])))] for row in rows]
    return [RIGHT if out == wanted else WRONG for out, wanted in zip(told, promised, strict=True)]


def outputs(rows: list[Row], batch: int = 100) -> list[str]:
    """What the expressions and functions of prompts give, evaluated in the sandbox."""
    code = (
        "import json, sys\nfor program, line in json.load(sys.stdin):\n  space = {}\n  exec(program, space)\n"
        "  value = eval(line, space)\n  print(json.dumps([str(value), repr(value)]))"
    )
    found: list[str] = []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        parts = [row["messages"][-1]["content"].rpartition("\n") for row in some]
        asked = [[program, last.removeprefix(">>> ")] for program, _, last in parts]
        lines = sandbox.run(code, json.dumps(asked)).stdout.splitlines()
        for row, line in zip(some, lines + ["null"] * (len(some) - len(lines)), strict=True):
            shown = json.loads(line) or []
            found.append(RIGHT if row["answer"] in [text.strip("'") for text in shown] else WRONG)
    return found


# --- all of it --------------------------------------------------------------------------------------------------------
def reverify(folder: Path, seed: int = 0, gym_size: int = 400) -> dict[str, Counter[str]]:
    """Verdicts by task over the `examples.jsonl` and `solutions.jsonl` of one step; wrong ones are printed."""
    expressions = {t["name"]: t["call"] for t in yaml.safe_load((PACKAGE / "tool_library.yaml").read_text())}
    gym: dict[str, Any] = {"seed": seed, "size": gym_size}
    rows, solutions = read(folder / "examples.jsonl"), read(folder / "solutions.jsonl")
    evaluated = [row for row in rows if row["task"] in ("code_output", "expression")]
    verdicts = dict(zip((row["id"] for row in evaluated), outputs(evaluated), strict=True))
    verdicts |= dict(zip((row["id"] for row in solutions), programs(solutions), strict=True))
    counts: dict[str, Counter[str]] = {}
    for row in [*rows, *solutions]:
        if row["origin"] == "human" or row["task"] == "summary":
            continue
        verdict = verdicts.get(row["id"]) or judge(row, gym, expressions)
        counts.setdefault(row["task"], Counter())[verdict] += 1
        if verdict == WRONG:
            print(f"WRONG {row['id']}: {row['messages'][-1]['content']!r} -> {row['answer']!r}")
    return counts


def judge(row: Row, gym: dict[str, Any], expressions: dict[str, str]) -> str:
    """The verdict on one example that is not code."""
    try:
        if row["lineage"].startswith("library-"):
            return library_tool(row, expressions)
        if row["messages"][-1]["content"].startswith("Tools: "):
            return short_tool(row)
        return mathematics(row, gym)
    except (jsonschema.ValidationError, ValueError, KeyError, TypeError):
        return WRONG


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def reverify_run(run: Path) -> dict[str, Counter[str]]:
    """Verdicts by task over all data steps of a run."""
    total: dict[str, Counter[str]] = {}
    for path in sorted(run.glob("*/examples.jsonl")):
        manifest = json.loads((path.parent / "manifest.json").read_text())
        if manifest["stage"] in ("math_data", "tool_data", "code_data"):
            size = manifest["config"].get("per_task", 400)
            for task, counts in reverify(path.parent, manifest.get("seed", 0), size).items():
                total.setdefault(task, Counter()).update(counts)
    return total


def table(total: dict[str, Counter[str]]) -> Counter[str]:
    """Print verdicts by task; return their sum."""
    summed = sum(total.values(), Counter())
    print(f"{'task':<20}{'right':>8}{'wrong':>8}{'unread':>8}")
    for task, counts in [*sorted(total.items()), ("all", summed)]:
        print(f"{task:<20}{counts[RIGHT]:>8}{counts[WRONG]:>8}{counts[UNREAD]:>8}")
    return summed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/nano"), help="a run's folder, default runs/nano")
    parser.add_argument("--json", action="store_true", help="print the counts as one last line of JSON")
    asked = parser.parse_args()
    total = reverify_run(asked.run)
    summed = table(total)
    if asked.json:
        print(json.dumps({"name": "reverify", **{k: summed[k] for k in (RIGHT, WRONG, UNREAD)}, "tasks": total}))
    sys.exit(1 if summed[WRONG] or not summed else 0)


if __name__ == "__main__":
    main()
