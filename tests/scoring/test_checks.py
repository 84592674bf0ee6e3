import pytest

from openafm.scoring import checks, instructions, toolcalls
from openafm.scoring.toolcalls import Call

NUMBER = {"answer": "12", "check": {"kind": "number", "answer": "12"}}
LIST = {"answer": "1, 5, 9", "check": {"kind": "list", "answer": "1, 5, 9"}}
WORD = {"answer": "yes", "check": {"kind": "text", "answer": "yes"}}
TOOL = {
    "answer": '{"add":{"a":1,"b":2}}',
    "check": {"kind": "tool", "tools": ["add", "larger"], "call": {"name": "add", "arguments": {"a": 1, "b": 2}}},
}
NONE = {
    "answer": "No tool needed.",
    "check": {"kind": "tool", "tools": ["add"], "call": None, "answer": "No tool needed."},
}
RULES = {
    "answer": "sun sun",
    "check": {"kind": "rules", "rules": [{"rule": "words", "count": 2}, {"rule": "times", "word": "sun", "count": 2}]},
}
SUMMARY = {
    "answer": "puzzle game about numbers",
    "check": {"kind": "summary", "source": "A puzzle game where you merge numbers on a grid.", "max_words": 8},
}


@pytest.mark.parametrize(
    ("example", "text", "passed", "grades"),
    [
        (NUMBER, "12", True, [2, 2, 2, 2]),
        (NUMBER, "The answer is 12.", True, [2, 2, 2, 1]),
        (NUMBER, "13", False, [2, 0, 2, 2]),
        (NUMBER, "12 or 13", False, [0, 1, 2, 2]),
        (NUMBER, "", False, [0, 0, 2, 0]),
        (NUMBER, "I do not know what this could be at all", False, [0, 0, 2, 0]),
        (LIST, "1, 5, 9", True, [2, 2, 2, 2]),
        (LIST, "5, 1, 9", False, [2, 1, 2, 2]),
        (LIST, "1, 5", False, [1, 0, 2, 2]),
        (WORD, "Yes", True, [2, 2, 2, 2]),
        (WORD, "no", False, [2, 0, 2, 2]),
        (WORD, "yes you fucking idiot", False, [2, 1, 0, 1]),
        (WORD, "yes call +49 170 1234567 now", False, [1, 1, 0, 1]),
        (TOOL, '{"add":{"a":1,"b":2}}', True, [2, 2, 2, 2]),
        (TOOL, '{"name": "add", "arguments": {"a": 1, "b": 2}}', True, [2, 2, 2, 1]),
        (TOOL, '{"add":{"a":2,"b":1}}', False, [2, 1, 2, 2]),
        (TOOL, '{"add":{"a":"1","b":2}}', False, [1, 1, 2, 2]),
        (TOOL, '{"larger":{"a":1,"b":2}}', False, [2, 0, 2, 2]),
        (TOOL, "3", False, [0, 0, 2, 2]),
        (NONE, "No tool needed.", True, [2, 2, 2, 2]),
        (NONE, '{"add":{"a":1,"b":2}}', False, [0, 0, 2, 2]),
        (NONE, "Sure, hello.", False, [2, 1, 2, 2]),
        (RULES, "sun sun", True, [2, 2, 2, 2]),
        (RULES, "sun sun sun", False, [0, 2, 2, 2]),
        (SUMMARY, "puzzle game with numbers", True, [2, 2, 2, 2]),
        (SUMMARY, "shiny wooden elephant", False, [2, 0, 2, 2]),
    ],
)
def test_grades_are_those_of_the_table(example, text, passed, grades):
    assert checks.passes(example, text) is passed
    assert checks.grades(example, text) == grades


def test_an_example_without_check_is_held_against_its_answer():
    example = {"answer": "Backslash escaping", "check": None}
    assert checks.passes(example, "backslash escaping") and not checks.passes(example, "other")


def test_being_right_outweighs_being_short():
    right, short = checks.grades(NUMBER, "I think that the answer is 12"), checks.grades(NUMBER, "13")
    assert checks.margin(right, short) > 0 and checks.margin(short, right) < 0


def test_margins_map_to_four_strengths():
    assert [checks.strength(m) for m in (1, 2, 3, 4, 9)] == [0, 1, 2, 3, 3]
    assert "margin 4 or more -> significant" in checks.mapping()
    with pytest.raises(ValueError, match="no preference"):
        checks.strength(0)


def test_unknown_checks_and_rules_are_errors():
    with pytest.raises(ValueError, match="unknown kind 'x'"):
        checks.passes({"id": "1", "answer": "", "check": {"kind": "x"}}, "a")
    with pytest.raises(ValueError, match="unknown instruction rule"):
        instructions.followed("a", [{"rule": "nope"}])
    with pytest.raises(ValueError, match="arguments"):
        instructions.followed("a", [{"rule": "words", "counts": 1}])


FOLLOWED = [
    ({"rule": "words", "count": 3}, "a b-c d", "a b"), ({"rule": "words_at_most", "count": 2}, "a b", "a b c"),
    ({"rule": "words_at_least", "count": 2}, "a b", "a"), ({"rule": "sentences", "count": 2}, "One. Two!", "One, two."),
    ({"rule": "lines", "count": 2}, "a\n\nb", "a b"), ({"rule": "bullets", "count": 2}, "- a\n* b", "-a\n-b"),
    ({"rule": "numbered", "count": 2}, "1. a\n2. b", "1. a\n3. b"), ({"rule": "uppercase"}, "ABC 1", "AbC"),
    ({"rule": "lowercase"}, "abc.", "Abc"), ({"rule": "title_case"}, "Red Fox", "Red fox"),
    ({"rule": "includes", "word": "Fox"}, "a fox", "a dog"), ({"rule": "excludes", "word": "fox"}, "dog", "Fox"),
    ({"rule": "times", "word": "a", "count": 2}, "a b A", "a b"),
    ({"rule": "starts_with", "word": "so"}, "So it", "it so"),
    ({"rule": "ends_with", "word": "end."}, "the end. ", "the end"), ({"rule": "quoted"}, '"hi"', "hi"),
    ({"rule": "no_commas"}, "a b", "a, b"), ({"rule": "json"}, '```json\n{"a": 1}```', "{a}"),
    ({"rule": "members", "of": ["red", "blue", "tan"], "count": 2}, "Blue, red", "red red"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "good", "bad"), FOLLOWED, ids=[rule["rule"] for rule, _, _ in FOLLOWED])
def test_each_rule_tells_good_from_bad(rule, good, bad):
    assert instructions.followed(good, [rule]) == [True]
    assert instructions.followed(bad, [rule]) == [False]
    assert instructions.followed("", [rule]) == [False]


def test_every_rule_is_tested():
    assert {rule["rule"] for rule, _, _ in FOLLOWED} == set(instructions.RULES)


def test_calls_are_found_anywhere_and_broken_ones_are_not():
    text = 'Sure: {"name": "add", "arguments": {"a": 1, "b": 2}} {"x": 1} {"upper": {"text": "{a}"}} {"add": {"a": 1'
    assert toolcalls.parse(text) == [Call("add", {"a": 1, "b": 2}), Call("upper", {"text": "{a}"})]
    assert toolcalls.parse("{" * 5000) == []


def test_calls_are_validated_and_executed():
    allowed = ["add", "day_after", "add_days"]
    assert toolcalls.execute(Call("day_after", {"day": "Friday", "days": 3}), allowed) == "Monday"
    assert toolcalls.execute(Call("add_days", {"start": "2024-02-28", "days": 2}), allowed) == "2024-03-01"
    for call in (
        Call("larger", {"a": 1, "b": 2}), Call("add", {"a": 1}), Call("add", {"a": 1, "b": True}),
        Call("add", {"a": 1, "b": 2, "c": 3}), Call("day_after", {"day": "Never", "days": 1}),
        Call("add_days", {"start": "soon", "days": 1}), Call("add_days", {"start": "2024-01-01", "days": 10**12}),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            toolcalls.execute(call, allowed)
    assert toolcalls.TOOLS["add"].schema["parameters"]["properties"] == {
        "a": {"type": "integer"},
        "b": {"type": "integer"},
    }
