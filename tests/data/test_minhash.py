"""The sketch of arXiv 1704.04370, its bands and its pairs, against the same in Python's whole numbers, one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import minhash
from openafm.data.minhash import BANDS, ROWS, band_keys, components, jaccard, pairs, signatures, unique

BINS = 126
ROUNDS = 8


def splitmix(number: int) -> int:
    """The finaliser of splitmix64."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def sketch(shingles: set[int]) -> list[int]:
    """Each bin's least value of the first round in which anything fell into it; of all shingles where nothing did."""
    found: dict[int, int] = {}
    for number in range(ROUNDS):
        least: dict[int, int] = {}
        for shingle in shingles:
            mixed = splitmix(shingle ^ (number + 1) << 32)
            place = (mixed >> 32) * BINS >> 32
            least[place] = min(mixed % 2**32, least.get(place, 2**32))
        found = least | found
    for place in range(BINS):
        found.setdefault(
            place, min((splitmix(s ^ (place + ROUNDS + 1) << 32) >> 32 for s in shingles), default=2**32 - 1)
        )
    return [found[place] for place in range(BINS)]


def flat(sets: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Sets as their members in one row, and where each set begins."""
    return np.array([s for one in sets for s in sorted(one)], np.uint32), np.cumsum([0, *map(len, sets)])


@pytest.mark.parametrize("at_once", [2, 1024])
@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.sampled_from([0, 1, 2, 40, 700]), max_size=5), seed=st.integers(0, 999))
def test_signatures_are_the_papers_sketch(at_once, sizes, seed):
    draw = np.random.default_rng(seed)
    sets = [set(draw.integers(0, 2**32, size).tolist()) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minhash, "_AT_ONCE", at_once)
        found = signatures(*flat(sets))
    assert found.dtype == np.uint32 and found.shape == (len(sets), BINS)
    assert found.tolist() == [sketch(one) for one in sets]


def test_bands_are_found_with_the_documented_probabilities():
    probabilities = [1 - (1 - similarity**ROWS) ** BANDS for similarity in (0.8, 0.75, 0.5)]
    assert [round(p, digits) for p, digits in zip(probabilities, (3, 2, 2), strict=True)] == [0.998, 0.98, 0.28]


def test_a_bands_key_is_of_its_place_and_its_values_in_order():
    signed = np.random.default_rng(0).integers(0, 2**32, (3, BINS), dtype=np.uint32)
    for row, keys in zip(signed.tolist(), band_keys(signed).tolist(), strict=True):
        for band, found in enumerate(keys):
            key = band + 1
            for value in row[band * ROWS : (band + 1) * ROWS]:
                key = splitmix(key ^ value * 0x9E3779B97F4A7C15 % 2**64)
            assert found == key


def paired(entries: list[tuple[int, int]]) -> list[list[int]]:
    """All pairs of up to 24 owners of a key; of more each with the next and with the first."""
    found = set()
    for key in {key for key, _ in entries}:
        owners = sorted(owner for k, owner in entries if k == key)
        every = itertools.combinations(owners, 2)
        found |= set(every if len(owners) <= 24 else [*itertools.pairwise(owners), *((owners[0], o) for o in owners)])
    return sorted([a, b] for a, b in found if a != b)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=120))
def test_pairs_are_those_that_share_a_key(entries):
    keys, owners = np.array(entries, np.int64).reshape(-1, 2).T
    assert pairs(keys.astype(np.uint64), owners).tolist() == paired(entries)


@pytest.mark.parametrize("size", [1, 2, 3, 23, 24, 25, 26, 60])
def test_larger_groups_are_paired_with_the_next_and_the_first(size):
    entries = [*((3, owner) for owner in range(5, 5 + size)), (7, 1), (7, 5)]
    keys, owners = np.array(entries).T
    found = pairs(keys.astype(np.uint64), owners)
    assert found.dtype == np.int64 and found.tolist() == paired(entries)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=20))
def test_unique_pairs(listed):
    found = unique(np.array(listed, np.int64).reshape(-1, 2))
    assert found.tolist() == sorted(
        {tuple(sorted(pair)): sorted(pair) for pair in listed if len(set(pair)) > 1}.values()
    )


SETS = st.lists(st.tuples(*[st.sets(st.integers(0, 9) | st.just(2**32 - 1))] * 2), max_size=6)


@given(SETS)
def test_similarity_is_that_of_the_sets(both):
    found = jaccard(*(flat([pair[side] for pair in both]) for side in (0, 1)))
    assert found.tolist() == [len(a & b) / max(1, len(a | b)) for a, b in both]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_components_are_those_of_a_walk(edges):
    labels = components(31, np.array(edges, np.int64).reshape(-1, 2))
    for start in range(31):
        seen, waiting = {start}, [start]
        while waiting:
            at = waiting.pop()
            new = {a + b - at for a, b in edges if at in (a, b)} - seen
            seen |= new
            waiting += new
        assert labels[start] == min(seen)
