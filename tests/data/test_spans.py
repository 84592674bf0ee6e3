import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import addresses, identifiers, phones
from openafm.data.spans import in_digit_runs

PATTERNS = {
    "international": phones._INTERNATIONAL,
    "american": phones._AMERICAN,
    "national": phones._NATIONAL,
    "in a row": phones._IN_A_ROW,
    "card": identifiers._CARD,
    "ssn": identifiers._SSN,
    "ipv4": addresses._IPV4,
}
PIECES = [
    *"0123456789 ()+.-/\u00a0\u2010xé_,:%$\n",
    "555",
    "(020) 7946 0958",
    "+49 30",
    "4111 1111 1111 1111",
    "8.8.4.4",
    "00",
    "1-",
]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
def test_numbers_are_found_in_runs_of_digits_as_in_the_whole_text(pattern: re.Pattern[str], text: str) -> None:
    least = 8 if pattern in (phones._INTERNATIONAL, phones._NATIONAL) else 0  # shorter ones are no phone numbers
    within, everywhere = (
        [m.span() for m in found if len(m[0]) >= least]
        for found in (in_digit_runs(pattern, text), pattern.finditer(text))
    )
    assert within == everywhere
