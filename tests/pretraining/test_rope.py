import pytest

from openafm.pretraining.rope import rebase


def test_the_rule_gives_afms_constant():
    assert rebase(500_000, 8192, 32_768) == pytest.approx(6_315_089, rel=1e-6)


def test_only_longer():
    with pytest.raises(ValueError, match="goes up"):
        rebase(500, 1024, 1024)
