from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.scoring.rouge import longest_common_subsequence, rouge_l, rouge_n

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


@settings(deadline=None, max_examples=50)
@given(WORDS, WORDS, st.integers(1, 3))
def test_rouge_n_pairs_off_equal_ngrams(first, second, n):
    """Each n-gram of one text takes one equal n-gram of the other away; precision and recall from what was taken."""
    ours, theirs = ([tuple(w[i : i + n]) for i in range(max(0, len(w) - n + 1))] for w in (first, second))
    left, taken = list(theirs), 0
    for gram in ours:
        if gram in left:
            left.remove(gram)
            taken += 1
    precision, recall = taken / len(ours) if ours else 0.0, taken / len(theirs) if theirs else 0.0
    expected = 2 * precision * recall / (precision + recall) if taken else 0.0
    assert rouge_n(" ".join(first), " ".join(second), n) == pytest.approx(expected)


def test_rouge_n_by_hand():
    assert rouge_n("the cat the cat", "the cat sat", 1) == pytest.approx(4 / 7)  # the, cat: 2 of 4 and 2 of 3
    assert rouge_n("the cat the cat", "The cat sat!", 2) == pytest.approx(2 / 5)
    assert rouge_n("one", "one", 2) == 0.0
