import json

import numpy as np
import pytest

from openafm.data.dedup import near_duplicates
from openafm.sampling import sandbox
from openafm.scoring import answers, checks
from openafm.synthesis import code, human, long_qa, mathematics, summaries, tasks, tool_use
from openafm.synthesis.items import prompt_of
from openafm.tokenizer import load

STAGES = [
    (mathematics.math_data, mathematics.MathConfig(per_task=8, seeds=6, written=2, solutions=2)),
    (tool_use.tool_data, tool_use.ToolConfig(per_tool_task=12, per_instruction_task=6, written=3)),
    (code.code_data, code.CodeConfig(topics=5, outputs=4, per_task=20, written=1, solutions=2)),
    (human.human_data, human.HumanConfig()),
    (summaries.summaries, summaries.SummariesConfig(written=2)),
]
NAMES = [stage.__name__ for stage, _ in STAGES]


def rows(folder, name="examples"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("stage", "config"), STAGES, ids=NAMES)
def test_stages_are_reproducible_and_account_for_every_item(stage, config, sources, context):
    first, resumed, fresh = context("a"), context("b"), context("c", scratch="other")
    metrics = stage(config, first, sources=sources)
    assert stage(config, resumed, sources=sources) == metrics == stage(config, fresh, sources=sources)
    assert contents(first.out) == contents(resumed.out) == contents(fresh.out)
    kept, rejected = rows(first.out), rows(first.out, "rejected")
    assert (len(kept), len(rejected)) == (metrics["examples"], metrics["rejected"])
    assert sum(metrics["reasons"].values()) == len(rejected) and all(row["reason"] for row in rejected)
    assert sum(metrics["origins"].values()) == len(kept)
    assert len({row["id"] for row in kept}) == len(kept)
    for row in kept:
        assert set(row) == {"id", "task", "messages", "answer", "check", "origin", "lineage"}
        assert row["messages"][-1]["role"] == "user" and row["answer"]
        assert row["check"]["kind"] == "summary" or checks.passes(row, row["answer"])


@pytest.mark.parametrize(("stage", "config"), STAGES[:3], ids=NAMES[:3])
def test_without_a_writer_the_programmatic_half_remains(stage, config, tmp_path, context):
    (tmp_path / "empty").mkdir()
    metrics = stage(config, context("a"), sources=tmp_path / "empty")
    assert metrics["writer"] == {"model": "none", "tokens": 0} and metrics["examples"] > 30
    assert not any(source.startswith("writer") for source in metrics["yield"])


def test_without_a_sandbox_no_program_is_run(sources, context, monkeypatch):
    monkeypatch.setattr(sandbox, "backend", lambda: "none")
    metrics = code.code_data(STAGES[2][1], context("a"), sources=sources)
    assert metrics["sandbox"] == "none" and metrics["solutions"] == 0 and metrics["examples"] > 10
    assert "no sandbox here" in metrics["headline"]


def test_the_random_writer_is_used_and_rejected(sources, context):
    metrics = STAGES[0][0](STAGES[0][1], context("a"), sources=sources)
    assert metrics["writer"]["tokens"] > 0 and metrics["writer"]["model"] == "models/writer"
    assert metrics["yield"]["writer-rephrase"] == {"made": 2, "kept": 0}


def seed(expression):
    a, sign, b = expression.split()
    return mathematics.Seed(int(a), sign, int(b))


@pytest.mark.parametrize(
    ("name", "prompt", "solutions", "reason"),
    [
        ("rephrase", "Sam has 8 pens and gets 3. How many pens does he have?", [], None),
        ("rephrase", "Sam has 8 pens and loses 3. How many pens does he have?", ["11", "11"], "answer_check"),
        ("rephrase", "Sam has 8 pens, his aunt brings 3. How many?", [], "unread"),
        ("reverse", "I add 3 to a number and get 11. What was the number?", [], None),
        ("reverse", "I take 3 from a number and get 11. What was the number?", ["8"], "answer_check"),
        ("deeper", "Sam has 8 pens, buys 3 and loses 2. How many pens does he have left?", ["4", "4"], None),
        ("wider", "Ben has 8 coins on his wallet. He takes 2. How many more does he have left?", [], "unread"),
        ("rephrase", "Sam has 8 pens and gets 3. How many?", ["8 + 3 = 11", "10"], None),
        ("rephrase", "Sam has 8 pens and gets 3. How many?", ["10", "10"], "answer_check"),
        ("rephrase", "Sam has 8 pens. How many?", ["11"], "numbers_lost"),
        ("rephrase", "Sam has 8 pens, 3 caps and 5 hats. How many?", ["11"], "numbers_added"),
        ("rephrase", "Sam has pens", ["11"], "no_question"),
        ("reverse", "I add 3 to a number and get 11. Which?", ["11 - 3 = 8"], None),
        ("reverse", "I add 8 to a number and get 11. Which?", ["8"], "answer_check"),
        ("reverse", "What is 8 + 3?", ["11", "11"], "not_reversed"),
        ("wider", "Ann has 4 cats and 2 dogs. How many pets?", ["6", "4 + 2 = 6", "5"], None),
        ("wider", "Ann has 4 cats and 2 dogs. How many pets?", ["6", "7", "5"], "no_majority"),
        ("wider", "Ann has 4 cats and 2 dogs. How many pets?", ["9", "9", "9"], "unreachable"),
        ("wider", "word " * 30 + "?", ["6", "6"], "too_long"),
    ],
)
def test_written_problems_are_judged(name, prompt, solutions, reason):
    row, found = mathematics.judge_written(name, seed("8 + 3"), prompt.replace(" ?", "?"), solutions, 20)
    assert found == reason
    if reason is None:
        assert checks.passes(row, row["answer"])


def test_rules_keep_or_change_the_answer_as_sympy_says():
    import random

    for number, (a, sign, b) in enumerate([(8, "+", 3), (9, "-", 4), (30, "-", 9)]):
        for rule in mathematics.RULES.values():
            prompt, expression = rule(mathematics.Seed(a, sign, b), random.Random(number))
            assert all(answers.number(str(v)) is not None for v in answers.numbers(prompt))
            if "Find ?" in prompt:  # put the answer in the hole: the equation must hold
                left, right = prompt.removesuffix(". Find ?").replace("?", f"({expression})").split(" = ")
                assert answers.equal(left, right)


def test_code_seeds_cover_the_71_topics_and_each_has_a_solution_that_passes(context, sources):
    import random

    import yaml

    seeds = yaml.safe_load((code.FOLDER / "code_seeds.yaml").read_text())
    assert len(code.topics()) == len(set(code.topics())) == 71
    assert [row["topic"] for row in seeds] == code.topics()
    for row in seeds:  # our own expressions: checked here without the sandbox, as a second program
        f = [eval(f"lambda x: {solution}") for solution in row["solutions"]]
        assert any(all(g(given) == wanted for given, wanted in row["tests"]) for g in f), row["topic"]
    exercises = code.seeds(code.CodeConfig(topics=3, outputs=3), random.Random(0))
    programs = ["while True: pass", "f = lambda x: x", "f = lambda x: 1"]
    exercise = code.Exercise("t", "p", ["assert f(1) == 1", "assert f(2) == 2"], programs, [3], "writer")
    found = code.judge([*exercises, exercise], sandbox.Limits(wall_seconds=3, cpu_seconds=1))
    assert [verdict.share for verdict in found[-1]] == [0, 1, 0.5]
    assert found[-1][1].values == ["3"]


FORGED = json.dumps({"passed": [True, True], "results": ["True", "True"], "values": ["3"]})
FORGERIES = {
    "leave early": "import os; os._exit(0)",
    "print a verdict and leave": f"print({FORGED!r}, flush=True)\nimport os; os._exit(0)",
    "print a verdict at the end": f"import atexit\natexit.register(print, {FORGED!r})\nf = lambda x: 0",
    "equal to everything": "class A:\n  def __eq__(self, other): return True\nf = lambda x: A()",
    "an equal number": "class A(int):\n  def __eq__(self, other): return True\nf = lambda x: A(7)",
    "its own printed form": "class A:\n  def __repr__(self): return '__import__(\"os\").getpid()'\nf = lambda x: A()",
    "other builtins": "import builtins\nbuiltins.repr = lambda v: 'True'\nbuiltins.eval = lambda *v: True\nf = int",
    "another json": f"import json\njson.dumps = lambda v: {FORGED!r}\nf = lambda x: 0",
    "no assertions": "import sys\nsys.settrace(None)\n__debug__\nf = lambda x: 0",
    "an exit that looks well": "def f(x): raise SystemExit(0)",
    "read the tests from the frames": "import sys\nframe = sys._getframe()\nseen = ''\nwhile frame:\n"
    "  seen += str(frame.f_locals)\n  frame = frame.f_back\nf = lambda x: "
    "next((n for n in (77309 + 1, 88419 + 1) if str(n) in seen), 0)",
    "a deep answer": "f = lambda x: eval('[' * 90 + ']' * 90)",
    "a huge answer": "f = lambda x: 'x' * 10**6",
    "types that are none": "import json\nd = json.dumps\njson.dumps = lambda v: d({'results': [[], {}], "
    "'values': [{}]})\nf = int",
}


def test_no_verdict_can_be_forged():
    tests = ["assert f('a') == 77310", "assert f('b') == 88420"]
    exercise = code.Exercise("t", "p", tests, list(FORGERIES.values()), [3], "writer")
    (found,) = code.judge([exercise], sandbox.Limits(wall_seconds=10, cpu_seconds=2))
    assert {name: v.share for name, v in zip(FORGERIES, found, strict=True) if v.share} == {}
    assert all(value is None or isinstance(value, str) for verdict in found for value in verdict.values)


@pytest.mark.parametrize(
    "line",
    ["assert f(1) == open('/x')", "assert f(1)", "assert g(1) == 1", "x = 1", "assert f(1) == 1 == 1", "assert ("],
)
def test_tests_are_literal_or_none(line):
    assert code.given_and_wanted(line) is None and code.asserts(line) == []
    assert code.given_and_wanted("assert f([1, 2], k='a') == {'b': (1,)}") == ("[1, 2], k='a'", {"b": (1,)})


def test_programs_and_tests_are_read_from_what_models_write():
    assert code.program("\n    return x + 1\n\n# Write\ndef f(x):\n    return 2") == "def f(x):\n\n    return x + 1"
    text = "ok\nassert f(1) == 2\nassert g(1) == 2\nassert f(1) == 2\n# Write\nassert f(3) == 4"
    assert code.asserts(text) == ["assert f(1) == 2"]


def test_tests_of_several_tries_are_put_together_by_votes():
    tries = ["assert f(1) == 2\nassert f(2) == 3", "assert f(1) == 5\nassert f(3) == 4", "assert f( 1 ) == 2 # Write"]
    assert code.agreed(tries) == ["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4"]
    assert code.agreed(["assert f(1) == 2", "assert f(1) == 3"]) == []


def test_kept_programs_count_in_the_yield(sources, context):
    metrics = code.code_data(STAGES[2][1], made := context("a"), sources=sources)
    kept, rejected = rows(made.out, "solutions"), rows(made.out, "rejected")
    made_of = [row for row in [*kept, *rejected] if row["lineage"].startswith("programmatic-solution/")]
    assert metrics["yield"]["programmatic-solution"] == {"made": len(made_of), "kept": len(kept)} and len(kept) == 5


@pytest.mark.parametrize(
    ("source", "answer", "reason"),
    [
        ("A command-line interface for maps of the world.", "world maps cli", None),
        ("Maps by CLI, for everyone and everywhere.", "command line interface of maps", None),
        ("A tool that draws maps.", "world weather cli", "not_from_the_text"),
    ],
)
def test_initials_are_of_the_text_where_its_words_are(source, answer, reason):
    example = {"answer": answer, "check": {"source": source}}
    assert summaries._reason(summaries.SummariesConfig(), example) == reason


def test_answers_of_the_labelling_page_are_imported(tmp_path, context):
    (tmp_path / "human").mkdir()
    asked = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is the sea made of?"}]
    row = {"messages": asked, "answer": "Water and salt.", "labeller": "ann", "id": "7"}
    (tmp_path / "human" / "labelled.jsonl").write_text(json.dumps(row) + "\n")
    human.human_data(human.HumanConfig(), made := context("a"), sources=tmp_path)
    (example,) = rows(made.out)
    assert example["messages"] == asked and example["answer"] == "Water and salt."
    assert (example["origin"], example["lineage"]) == ("human", "imported/labelled")
    (tmp_path / "human" / "labelled.jsonl").write_text(json.dumps({"messages": asked}) + "\n")
    with pytest.raises(ValueError, match=r"labelled\.jsonl:1"):
        human.human_data(human.HumanConfig(), context("b"), sources=tmp_path)


def test_usual_chat_forms_are_imported(tmp_path, context):
    (tmp_path / "human").mkdir()
    path = tmp_path / "human" / "mine.jsonl"
    turns = [{"role": "user", "content": "What is it now?"}, {"role": "assistant", "content": "Late."}]
    forms = [
        {"messages": turns},
        {"conversations": [{"from": "human", "value": "What is the sea?"}, {"from": "gpt", "value": "Water."}]},
        {"prompt": "What is the sky?", "completion": "Air."},
        {"instruction": "Translate this word.", "input": "Wasser", "output": "water"},
        {"instruction": "Translate this word.", "input": "", "response": "water!"},
        {"messages": [{"role": "developer", "content": "Be short."}, {"role": "user", "content":
            [{"type": "text", "text": "Where is"}, {"type": "text", "text": "the sun?"}]}, turns[1]]},
        {"system": "Be kind.", "conversations": [{"from": "human", "value": "Where am I now?"},
            {"from": "gpt", "value": "Here."}, {"from": "human", "value": "Thanks"}]},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(form) + "\n" for form in forms))
    metrics = human.human_data(human.HumanConfig(), made := context("a"), sources=tmp_path)
    assert metrics["origins"] == {"human": 7, "synthetic": 0}
    assert [row["answer"] for row in rows(made.out)] == ["Late.", "Water.", "Air.", "water", "water!", "Late.", "Here."]
    assert rows(made.out)[3]["messages"][0]["content"] == "Translate this word.\nWasser"
    assert rows(made.out)[5]["messages"][1]["content"] == "Where is\nthe sun?"
    assert [m["role"] for m in rows(made.out)[6]["messages"]] == ["system", "user"]
    image = {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, turns[1]]}
    for bad in (
        json.dumps(image),
        '{"text": "x"}',
        "not json",
        '{"messages": []}',
        json.dumps({"messages": turns[:1]}),
    ):
        path.write_text(bad + "\n")
        with pytest.raises(ValueError, match=r"mine\.jsonl:1"):
            human.human_data(human.HumanConfig(), context("b"), sources=tmp_path)


def test_summaries_hold_out_whole_packages_and_reject_what_the_text_does_not_say(sources, context):
    made = context("a")
    metrics = summaries.summaries(summaries.SummariesConfig(written=0), made, sources=sources)
    train, held = rows(made.out), rows(made.out, "heldout")
    assert metrics["reasons"]["not_from_the_text"] > 0 and len(held) == metrics["heldout"] > 0
    assert not {row["id"] for row in train} & {row["id"] for row in held}
    human_made = context("b")
    human.human_data(human.HumanConfig(), human_made, sources=sources)
    assert not {row["id"] for row in rows(human_made.out)} & {row["id"] for row in held}


def test_long_questions_fill_their_length_exactly_and_can_be_answered(shards, tokenizer_folder, context):
    config = long_qa.LongQAConfig(length=420, train=8, heldout=3, facts=3)
    made, again = context("a"), context("b")
    metrics = long_qa.long_qa(config, made, shards=shards, tokenizer=tokenizer_folder)
    assert long_qa.long_qa(config, again, shards=shards, tokenizer=tokenizer_folder) == metrics
    for name in ("long_qa.jsonl", "heldout.jsonl", "index.json", "train/long_qa.bin", "train/long_qa.offsets.npy"):
        assert (made.out / name).read_bytes() == (again.out / name).read_bytes()
    tokens = np.fromfile(made.out / "train" / "long_qa.bin", dtype="<u2")
    offsets = np.load(made.out / "train" / "long_qa.offsets.npy")
    assert offsets.tolist() == [420 * i for i in range(9)] and len(tokens) == 3360
    tokenizer = load(tokenizer_folder)
    orders = set()
    for number, sample in enumerate(rows(made.out, "long_qa")):
        part = tokens[offsets[number] : offsets[number + 1]].tolist()
        assert part[-1] == tokenizer.eos_id
        asked = "".join(f"\n{q['question']} {q['answer']}." for q in sample["questions"])
        assert tokenizer.decode(part) == sample["text"] + asked
        assert sample["text"].count("The code of") == len(sample["questions"]) == 3
        for q in sample["questions"]:
            thing = q["question"].split("code of the ")[1].split("?")[0]
            fact = f"The code of the {thing} is {q['answer']}."
            assert sample["text"].count(fact) == 1
            assert abs(sample["text"].index(fact) / len(sample["text"]) - q["depth"]) < 0.3
        orders.add(tuple(np.argsort([q["depth"] for q in sample["questions"]])))
    assert len(orders) > 2  # where a fact stands does not tell when it is asked for
    with pytest.raises(ValueError, match="raise `length`"):
        long_qa.long_qa(long_qa.LongQAConfig(length=40), context("c"), shards=shards, tokenizer=tokenizer_folder)


def test_long_questions_stand_in_prose_of_their_own_split(shards, tokenizer_folder, context):
    made = context("a")
    config = long_qa.LongQAConfig(length=420, train=8, heldout=8, facts=2)
    long_qa.long_qa(config, made, shards=shards, tokenizer=tokenizer_folder)
    for name, split, other in (("long_qa", "train", "heldout"), ("heldout", "heldout", "train")):
        texts = " ".join(sample["text"] for sample in rows(made.out, name))
        assert f"web {split}" in texts and f"web {other}" not in texts and f"code {split}" not in texts


def test_written_near_copies_go_and_rule_made_ones_stay(context):
    from openafm.synthesis.items import Collected, finish

    problem = tasks.Problem("How many birds sit on the old wall by the river now?", "3", "k")
    again = tasks.Problem(problem.prompt.replace("now?", "now ?"), "3", "k")
    written = [tasks.example("t", each, lineage="writer-x") for each in (problem, again)]
    made = [tasks.example("addition", tasks.number(p, 1, p)) for p in ("7 + 2 = ?", "7 - 2 = ?", "7 + 2 = ?")]
    assert len(near_duplicates([prompt_of(row) for row in written], 0.8)) == 1
    metrics = finish(context("a"), Collected(made + written), {"model": "none", "tokens": 0})
    assert metrics["examples"] == 3 and metrics["reasons"] == {"copy": 2}
