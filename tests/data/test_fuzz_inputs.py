"""A few hundred of the mutated inputs that benchmarks/fuzz_inputs.py makes by the hundred thousand."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_inputs.py"


def test_no_input_crashes_hangs_or_vanishes(tmp_path):
    fates, faults, _ = runpy.run_path(str(SCRIPT))["run"](400, 7, tmp_path)
    assert faults == []
    assert all(counts.total() >= 30 for counts in fates.values())
    assert fates["warc"]["kept"] and fates["warc"]["warc.broken"] and fates["wet"]["kept"]
