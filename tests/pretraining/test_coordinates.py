import json

import numpy as np
import pytest
import torch

from openafm.pretraining.coordinates import CoordinatesConfig, coordinates, movement, slope
from openafm.stage import Context

CONFIG = CoordinatesConfig(widths=[64, 256], steps=5, lr=0.02, seeds=[1, 2], rows=4, sequence_length=33)


def test_coordinates_move_alike_at_every_width_under_muparam_alone():
    """Four times the width: the first FFN's movement stays under muParam and grows where all rates are whole."""
    tokens = torch.randint(0, 256, (4, 33), generator=torch.Generator().manual_seed(0))
    small, scaled, whole = (movement(CONFIG, tokens, 256, *at, 0) for at in ((64, 64), (256, 64), (256, 256)))
    assert scaled["mlp 0"] / small["mlp 0"] < 1.4 < whole["mlp 0"] / small["mlp 0"]
    assert small.keys() == {"attention 0", "mlp 0", "attention 1", "mlp 1", "logits"}


def test_a_power_law_has_its_exponent_as_slope():
    assert slope([64, 128, 512], [3 * width**0.7 for width in (64, 128, 512)]) == pytest.approx(0.7)


def test_the_stage_tells_means_and_slopes_over_seeds(token_shards, tmp_path):
    coordinates(CONFIG, Context(tmp_path, tmp_path), shards=token_shards)
    found = json.loads((tmp_path / "coordinates.json").read_text())
    row = found["movement"]["standard"]["logits"]
    assert len(row["mean"]) == 2 and len(row["slopes"]) == 2
    assert row["slope"] == pytest.approx(np.mean(row["slopes"]), abs=1e-4)
    assert row["slopes"][0] != row["slopes"][1]
