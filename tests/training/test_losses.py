import math

import pytest
import torch
from torch.nn import functional as F

from openafm.training import losses
from openafm.training.losses import (
    chunked_distillation,
    chunked_next_token,
    divergence,
    next_token,
    top1,
    top1_distillation,
)

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
    output = divergence(LOGITS, reference, TARGETS)
    assert math.isclose(float(output.loss), float(expected), rel_tol=1e-5) and output.weight == int(kept.sum()) == 8
    assert float(divergence(LOGITS, LOGITS, TARGETS).loss) < 1e-6


def test_nothing_counted_is_zero():
    assert float(next_token(LOGITS, torch.full_like(TARGETS, -100)).loss) == 0.0


@pytest.mark.parametrize("chunk", [3, 1024])
@pytest.mark.parametrize("distil", [False, True])
def test_chunks_give_the_loss_and_the_gradients_of_whole_logits(chunk, distil, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    output = torch.randn(11, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    more = (TEACHER,) if distil else ()
    whole = (top1_distillation if distil else next_token)(hidden @ output.t(), TARGETS, *more, z_loss=0.1)
    parts = (chunked_distillation if distil else chunked_next_token)(hidden, output, TARGETS, *more, z_loss=0.1)
    assert parts.weight == whole.weight == 8
    assert float(parts.loss.detach()) == pytest.approx(float(whole.loss.detach()), rel=1e-6)
    assert parts.metrics == pytest.approx(whole.metrics, rel=1e-6)
    wanted = torch.autograd.grad(whole.loss * 3, (hidden, output))
    for found, expected in zip(torch.autograd.grad(parts.loss * 3, (hidden, output)), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", ["hidden", "output"])
def test_chunks_beside_a_frozen_side(frozen):
    sides = {"hidden": torch.randn(2, 5, 7), "output": torch.randn(11, 7)}
    learned = sides["output" if frozen == "hidden" else "hidden"].requires_grad_()
    chunked_next_token(**sides, targets=TARGETS).loss.backward()
    (wanted,) = torch.autograd.grad(next_token(sides["hidden"] @ sides["output"].t(), TARGETS).loss, (learned,))
    torch.testing.assert_close(learned.grad, wanted, rtol=1e-5, atol=1e-6)
    assert sides[frozen].grad is None


def test_chunks_without_gradients_and_without_targets():
    hidden, output = torch.randn(1, 4, 7), torch.randn(11, 7)
    with torch.no_grad():
        assert float(chunked_next_token(hidden, output, torch.full((1, 4), -100)).loss) == 0.0
        targets = torch.tensor([[3, -100, 10, 0]])
        wanted = next_token(hidden @ output.t(), targets, z_loss=0.1).loss
        torch.testing.assert_close(chunked_next_token(hidden, output, targets, z_loss=0.1).loss, wanted)
    assert top1(hidden, output).tolist() == (hidden @ output.t()).argmax(-1).tolist()


def test_chunks_in_bfloat16_stay_near():
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(2, 5, 16, generator=generator, requires_grad=True)
    output = (torch.randn(11, 16, generator=generator) * 0.3).requires_grad_()
    exact = next_token(hidden @ output.t(), TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        rough = chunked_next_token(hidden, output, TARGETS)
    rough.loss.backward()
    assert float(rough.loss.detach()) == pytest.approx(float(exact.loss.detach()), rel=0.02)
    assert abs(float(rough.loss.detach()) - float(exact.loss.detach())) > 1e-5  # it is bfloat16
    assert hidden.grad is not None and hidden.grad.dtype == output.grad.dtype == torch.float32


def test_logits_never_fill_memory():
    """6,000 positions over 1,000 entries: no single allocation of the size of their logits (24 MB) is made."""
    hidden = torch.randn(1, 6_000, 8, requires_grad=True)
    output = torch.randn(1_000, 8, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        chunked_next_token(hidden, output, torch.zeros(1, 6_000, dtype=torch.long)).loss.backward()
    largest = max(e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    assert largest <= 4 * losses.CHUNK * 1_000
