import re

from openafm.synthesis.notices import DAYS, notices
from openafm.synthesis.summaries import SummariesConfig, _reason


def test_notices_differ_repeat_by_seed_and_say_what_their_summaries_say() -> None:
    made = notices(300, 48, seed=1)
    assert made == notices(300, 48, seed=1) != notices(300, 48, seed=2)
    assert len({row["messages"][0]["content"] for row in made}) == 300
    for row in made:
        text, summary = row["check"]["source"], row["answer"]
        assert "{" not in text + summary and len(text.split()) <= 48
        assert _reason(SummariesConfig(), row) is None
        told = set(re.findall(r"\d+(?::\d+)?|[A-Z]\w+day", summary))  # every number, hour and day is the text's
        assert told <= set(re.findall(r"\d+(?::\d+)?|[A-Z]\w+day", text)), (text, summary)


def test_a_later_day_is_later() -> None:
    moved = [row for row in notices(400, 48, seed=3) if "/moved" in row["lineage"]]
    for row in moved:
        first, second = (DAYS.index(day) for day in re.findall(r"[A-Z]\w+day", row["check"]["source"])[:2])
        assert first < second


def test_no_more_than_asked_for_and_none_that_is_too_long() -> None:
    assert notices(0, 48, seed=1) == []
    assert notices(50, 5, seed=1) == []
