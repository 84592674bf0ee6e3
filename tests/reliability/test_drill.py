"""The drill in short, on tiny's first two steps; all of it, on all steps: python tests/reliability/drill.py"""

import pytest
from tests.reliability import drill as drills
from tests.reliability.drill import Drill

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def drill(tmp_path_factory) -> Drill:
    made = Drill(tmp_path_factory.mktemp("drill"), until="extract")
    made.unbroken()
    return made


def test_two_runs_on_one_folder(drill):
    drills.two(drill)


def test_a_flipped_bit_anywhere_is_seen_named_and_mended(drill):
    tries, _ = drills.flips(drill, kinds=("manifest",), singles=1)
    assert tries > 100


def test_a_full_and_a_read_only_disk(drill):
    try:
        tries, outcome = drills.disk(drill, sizes=(200, 1_500))
    except drills.SkippedError as reason:
        pytest.skip(str(reason))
    assert tries >= 2, outcome


def test_broken_records_are_counted(drill):
    tries, _ = drills.warc(drill)
    assert tries == 4
