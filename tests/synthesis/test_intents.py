"""Requests that ask for their call, in many words, and those that only sound like it."""

import pytest

from openafm.scoring.toolcalls import TOOLS
from openafm.synthesis.intents import asks_for, phrases
from openafm.synthesis.tasks import ASKED_TOOLS, draw

ASKING = [
    ("add", {"a": 4, "b": 9}, "How much is 4 and 9 together?"),
    ("add", {"a": 4, "b": 9}, "Please add 9 to 4."),
    ("add", {"a": 4, "b": 9}, "What is the sum of 4 and 9?"),
    ("multiply", {"a": 4, "b": 1}, "What is 4 multiplied by 1?"),
    ("multiply", {"a": 4, "b": 1}, "Can you multiply 4 by 1?"),
    ("multiply", {"a": 4, "b": 1}, "What is the product of 1 and 4?"),
    ("subtract", {"a": 8, "b": 2}, "What is 8 minus 2?"),
    ("subtract", {"a": 8, "b": 2}, "How much is left if I take 2 from 8?"),
    ("upper", {"text": "tree"}, "Write the word 'tree' in all capitals, please."),
    ("reverse", {"text": "red"}, 'What is "red" backwards?'),
    ("length", {"text": "bus"}, 'How many characters does the word "bus" have?'),
    ("length", {"text": "bus"}, "Count the letters in bus."),
    ("day_after", {"day": "Friday", "days": 3}, "Which day is 3 days from Friday?"),
    ("to_minutes", {"hours": 6}, "Convert 6 hours to minutes."),
    ("to_meters", {"km": 46}, "What is 46 kilometers in meters?"),
    ("add", {"a": 33, "b": 7}, "What is a total of 33 and 7?"),
    ("to_minutes", {"hours": 62}, "How many minutes equal 62 hours?"),
    ("larger", {"a": 3, "b": 25}, "What is the larger number of 25 and 3?"),
]
ELSE = [
    ("subtract", {"a": 8, "b": 2}, "How much can I subtract from 8 and 2?"),
    ("subtract", {"a": 8, "b": 2}, "Take 8 from 2."),
    ("subtract", {"a": 5, "b": 62}, "What is the difference between 5 and 62?"),
    ("length", {"text": "bus"}, 'How many characters left in "bus"?'),
    ("to_meters", {"km": 46}, "How many km will be there in 46 days?"),
    ("to_meters", {"km": 5}, "How many kilometers will be equal to 5 miles?"),
    ("to_minutes", {"hours": 98}, "How many hours can be added to 98 to get a day?"),
    ("upper", {"text": "open"}, "I am going to open the document."),
    ("reverse", {"text": "eat"}, "I am going to eat eat."),
    ("add", {"a": 4, "b": 9}, "What are 4 and 9?"),
    ("add", {"a": 4, "b": 9}, "What is 4 plus 9 times 3?"),
    ("multiply", {"a": 4, "b": 1}, "What is 14 times 1?"),
    ("larger", {"a": 3, "b": 25}, "What is the number of a larger than 25?"),
]


@pytest.mark.parametrize(("tool", "arguments", "request_"), ASKING)
def test_a_request_may_ask_in_many_words(tool, arguments, request_):
    assert asks_for(request_, tool, arguments)
    other = {name: value + 1 if isinstance(value, int) else f"x{value}" for name, value in arguments.items()}
    assert not asks_for(request_, tool, other)
    assert not any(
        asks_for(request_, name, arguments) for name in ASKED_TOOLS if name != tool and fits(name, arguments)
    )


@pytest.mark.parametrize(("tool", "arguments", "request_"), ELSE)
def test_words_of_a_tool_are_no_request_for_it(tool, arguments, request_):
    assert not asks_for(request_, tool, arguments)


def test_every_programmatic_request_is_one():
    assert set(phrases()) == set(ASKED_TOOLS)
    for row in draw("single_tool", 200, 1):
        call, request = row["check"]["call"], row["messages"][0]["content"].partition("\n")[2]
        assert asks_for(request, call["name"], call["arguments"]), request


def fits(tool, arguments):
    return list(TOOLS[tool].parameters) == list(arguments)
