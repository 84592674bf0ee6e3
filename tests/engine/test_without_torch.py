"""Opening and decoding with the native engine imports no torch."""

import subprocess
import sys

import pytest
import torch
from tests.engine.random_models import SHAPE, random_model

from openafm.engine.native_engine import missing
from openafm.model.checkpoint import save_model

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
DECODE = """
import sys
from pathlib import Path
from openafm.engine import open_engine
from openafm.engine.guidance import regex
engine = open_engine(Path(sys.argv[1]))
adapter = next(iter(engine.adapters()), None)
assert len(list(engine.generate([5, 6], max_tokens=3, adapter=adapter, grammar=regex("[a-z]{9}")))) == 3
assert len(engine.batch([[5], [6, 7]], max_tokens=3)) == 2
assert "torch" not in sys.modules, sorted(m for m in sys.modules if m.startswith("torch"))[:5]
"""


def test_no_torch_at_run_time(package, tokenizer, tmp_path):
    save_model(random_model(SHAPE).to(torch.bfloat16), tmp_path, tokenizer)
    for folder in (package, tmp_path):
        subprocess.run(
            [sys.executable, "-c", DECODE, str(folder)], check=True, env={"OPENAFM_THREADS": "1"}, timeout=300
        )
