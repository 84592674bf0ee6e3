import math

import torch
from torch.nn import functional as F

from openafm.training.losses import divergence, next_token, top1_distillation

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 5, 11, generator=GENERATOR)
TARGETS = torch.tensor([[1, 2, -100, 4, 5], [0, -100, 10, 9, 8]])
TEACHER = torch.tensor([[3, 3, 3, 3, 3], [1, 1, 1, 1, 1]])


def by_hand(targets) -> tuple[list[float], list[float]]:
    """-log p(target) and log Z of each counted position, in plain Python."""
    losses, normalisers = [], []
    for logits, row, true in zip(LOGITS.tolist(), targets.tolist(), TARGETS.tolist(), strict=True):
        for values, target, counted in zip(logits, row, true, strict=True):
            if counted >= 0:
                z = math.log(sum(math.exp(v) for v in values))
                losses.append(z - values[target])
                normalisers.append(z)
    return losses, normalisers


def test_next_token_with_z_loss():
    losses, normalisers = by_hand(TARGETS)
    output = next_token(LOGITS, TARGETS, z_loss=0.1)
    expected = sum(losses) / 8 + 0.1 * sum(z * z for z in normalisers) / 8
    assert math.isclose(float(output.loss), expected, rel_tol=1e-5) and output.weight == 8
    plain = F.cross_entropy(LOGITS.flatten(0, 1), TARGETS.flatten(), ignore_index=-100)
    assert math.isclose(output.metrics["cross_entropy"], float(plain), rel_tol=1e-5)


def test_distillation_is_nine_parts_teacher():
    true, teacher = by_hand(TARGETS)[0], by_hand(TEACHER)[0]
    output = top1_distillation(LOGITS, TARGETS, TEACHER)
    assert math.isclose(float(output.loss), 0.9 * sum(teacher) / 8 + 0.1 * sum(true) / 8, rel_tol=1e-5)


def test_divergence():
    reference = torch.randn(2, 5, 11, generator=GENERATOR)
    p, q = torch.softmax(reference, -1), torch.softmax(LOGITS, -1)
    kept = TARGETS >= 0
    expected = (p * (p / q).log()).sum(-1)[kept].mean()
    assert math.isclose(float(divergence(LOGITS, reference, TARGETS).loss), float(expected), rel_tol=1e-5)
    assert float(divergence(LOGITS, LOGITS, TARGETS).loss) < 1e-6


def test_nothing_counted_is_zero():
    assert float(next_token(LOGITS, torch.full_like(TARGETS, -100)).loss) == 0.0
