import random
from datetime import date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.scoring import checks
from openafm.synthesis import tasks


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_reference_answer_passes_with_full_grades(name):
    for row in tasks.draw(name, 100, 3):
        assert checks.passes(row, row["answer"]), row
        assert checks.grades(row, row["answer"]) == [2, 2, 2, 2], row


@pytest.mark.parametrize("name", tasks.TASKS)
def test_problems_are_short_and_differ(name):
    drawn = tasks.draw(name, 110, 0)
    assert len(drawn) >= 100
    assert len({row["id"] for row in drawn}) == len({row["messages"][0]["content"] for row in drawn}) == len(drawn)
    assert max(len(row["messages"][0]["content"]) for row in drawn) < 110
    assert max(len(row["answer"]) for row in drawn) < 60


def test_draws_depend_on_the_seed_alone():
    assert tasks.draw("addition", 20, 1) == tasks.draw("addition", 20, 1) != tasks.draw("addition", 20, 2)
    with pytest.raises(ValueError, match="known are addition"):
        tasks.draw("nope", 1, 0)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from(["addition", "subtraction", "multiplication", "expression"]))
def test_arithmetic_is_what_python_says(seed, name):
    problem = tasks.TASKS[name](random.Random(seed))
    shown = problem.key if name == "expression" else problem.key.replace(",", "+")
    assert problem.answer == str(eval(shown))  # our own text, never a model's


def test_sorting_and_reversal_by_other_means():
    for row in tasks.draw("sorting", 50, 0):
        shown = [int(v) for v in row["messages"][0]["content"].removeprefix("Sort: ").split(", ")]
        wanted = [int(v) for v in row["answer"].split(", ")]
        assert all(a < b for a, b in pairwise(wanted)) and set(shown) == set(wanted)
    for row in tasks.draw("letters", 50, 0):
        kind, _, shown = row["messages"][0]["content"].partition(": ")
        letters = shown.split()
        assert row["answer"] == ("".join(letters) if kind == "Join" else " ".join(letters[::-1]))


def test_weekdays_agree_with_the_calendar():
    monday = date(2024, 1, 1)
    for row in tasks.draw("weekday", 60, 0):
        _, _, _, days, _, relation, day = row["messages"][0]["content"].rstrip("?").split()
        start = next(monday + timedelta(i) for i in range(7) if f"{monday + timedelta(i):%A}" == day)
        assert f"{start + timedelta(int(days) * (1 if relation == 'after' else -1)):%A}" == row["answer"]


def test_letters_are_counted_and_dates_follow_the_calendar():
    for row in tasks.draw("letter_counting", 60, 0):
        asked, _, letters = row["messages"][0]["content"].partition(": ")
        assert int(row["answer"]) == sum(letter == asked[-1] for letter in letters.split()) > 0
    for row in tasks.draw("dates", 120, 0):
        _, _, _, days, _, relation, day, month = row["messages"][0]["content"].rstrip("?").split()
        start = datetime.strptime(f"{day} {month} 2023", "%d %B %Y")
        end = start + timedelta(int(days) * (1 if relation == "after" else -1))
        assert row["answer"] == f"{end.day} {end:%B}"
