import pytest

from openafm.scoring.calling import as_wanted, calls_a_tool, schema
from openafm.scoring.toolcalls import Call

TOOL = {
    "name": "travel.book",
    "description": "Books.",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "nights": {"type": "integer"},
            "price": {"type": "float"},
            "late": {"type": "boolean"},
            "days": {"type": "array", "items": {"type": "string"}},
            "guest": {"type": "dict", "properties": {}},
            "guests": {"type": "array", "items": {"type": "dict", "properties": {}}},
        },
        "required": ["city"],
    },
}
WANTED = [
    {
        "travel.book": {
            "city": ["New York", "NY"],
            "nights": [2, ""],
            "price": [9.0, ""],
            "days": [["Mon", "Tue"], ""],
            "late": [True, ""],
            "guest": [{"name": ["Ada"], "age": [7, ""]}, ""],
            "guests": [[{"name": ["Ada"]}, {"name": ["Bob"]}], ""],
        }
    }
]


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"city": "New York"}, True),
        ({"city": "new-york."}, True),
        ({"city": "Boston"}, False),
        ({}, False),
        ({"city": "NY", "nights": 2}, True),
        ({"city": "NY", "nights": 3}, False),
        ({"city": "NY", "nights": "2"}, False),
        ({"city": "NY", "nights": 2.0}, False),
        ({"city": "NY", "price": 9}, True),
        ({"city": "NY", "price": 9.5}, False),
        ({"city": "NY", "late": True}, True),
        ({"city": "NY", "late": 1}, False),
        ({"city": "NY", "days": ["mon", "TUE"]}, True),
        ({"city": "NY", "days": ["tue", "mon"]}, False),
        ({"city": "NY", "days": "mon"}, False),
        ({"city": "NY", "guest": {"name": "ada"}}, True),
        ({"city": "NY", "guest": {"name": "ada", "age": 7}}, True),
        ({"city": "NY", "guest": {"age": 7}}, False),
        ({"city": "NY", "guest": {"name": "ada", "size": 7}}, False),
        ({"city": "NY", "guests": [{"name": "Ada"}, {"name": "Bob"}]}, True),
        ({"city": "NY", "guests": [{"name": "Bob"}, {"name": "Ada"}]}, False),
        ({"city": "NY", "extra": 1}, False),
    ],
)
def test_arguments_are_compared_by_type_and_value(arguments, right):
    assert as_wanted([Call("travel.book", arguments)], WANTED, [TOOL]) is right
    assert as_wanted([Call("travel_book", arguments)], WANTED, [TOOL]) is right


def test_an_argument_that_may_not_be_left_out_is_needed_although_the_schema_does_not_say_so():
    wanted = [{"travel.book": {"city": ["NY"], "nights": [2]}}]
    assert not as_wanted([Call("travel.book", {"city": "NY"})], wanted, [TOOL])


def test_calls_side_by_side_match_in_any_order_and_number():
    wanted = [{"travel.book": {"city": ["NY"]}}, {"travel.book": {"city": ["Rome"]}}]
    ny, rome = Call("travel.book", {"city": "NY"}), Call("travel.book", {"city": "Rome"})
    assert as_wanted([rome, ny], wanted, [TOOL]) and as_wanted([ny, rome], wanted, [TOOL])
    assert not as_wanted([ny, ny], wanted, [TOOL]) and not as_wanted([ny], wanted, [TOOL])
    assert not as_wanted([ny, rome, ny], wanted, [TOOL])


def test_where_no_tool_fits_only_calls_of_the_tools_are_a_fault():
    assert calls_a_tool([Call("travel_book", {})], [TOOL]) and not calls_a_tool([Call("other", {})], [TOOL])


def test_models_are_shown_json_schema():
    shown = schema(TOOL)
    assert shown["name"] == "travel_book" and shown["parameters"]["type"] == "object"
    assert shown["parameters"]["properties"]["price"]["type"] == "number"
    assert TOOL["parameters"]["type"] == "dict"
