import math

import pytest

from openafm.training.schedules import constant, cosine


def test_cosine_has_the_reports_shape():
    scale = cosine(1000, 100, 0.005)
    assert scale(50) == 0.5 and scale(100) == 1.0
    assert scale(550) == pytest.approx((1 + 0.005) / 2)
    assert scale(1000) == pytest.approx(0.005) and scale(5000) == pytest.approx(0.005)
    assert scale(325) == pytest.approx(0.005 + 0.995 * (1 + math.cos(math.pi / 4)) / 2)


def test_constant():
    assert constant()(0) == 1.0 and constant(10)(5) == 0.5 and constant(10)(100) == 1.0
