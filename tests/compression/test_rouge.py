from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.compression.rouge import longest_common_subsequence, rouge_l

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


def every_subsequence(words):
    return {tuple(c) for n in range(len(words) + 1) for c in combinations(words, n)}


@settings(deadline=None, max_examples=50)
@given(WORDS, WORDS)
def test_longest_common_subsequence_against_all(first, second):
    best = max(map(len, every_subsequence(first) & every_subsequence(second)))
    assert longest_common_subsequence(first, second) == best


def test_rouge_l_by_hand():
    # Lin (2004), section 3.1: LCS of the sentences is 3 of 4 words each
    assert rouge_l("Police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)
    assert rouge_l("one", "one two three") == pytest.approx(2 * 1 * (1 / 3) / (1 + 1 / 3))
    assert rouge_l("", "words") == 0.0
    assert rouge_l("same words", "Same, words!") == 1.0
