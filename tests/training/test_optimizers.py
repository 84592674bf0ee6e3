import math

import pytest
import torch

from openafm.training import optimizers
from openafm.training.optimizers import AdamW, RMSPropMomentum


def reference(theta: list[float], grads: list[list[float]], scales: list[float], lr: float, mult: float, wd: float):
    """The recipe's formulas for one parameter, in plain Python."""
    n, v, m, t = len(theta), [0.0] * len(theta), [0.0] * len(theta), 0
    for raw, s in zip(grads, scales, strict=True):
        norm = math.sqrt(sum(g * g for g in raw))
        if not norm < 100:
            continue
        t += 1
        g = [x * min(1, 1 / (norm + 1e-8)) for x in raw]
        v = [0.95 * a + 0.05 * (b * b + 1e-30) for a, b in zip(v, g, strict=True)]
        u = [b / math.sqrt(a / (1 - 0.95**t)) for a, b in zip(v, g, strict=True)]
        rms = math.sqrt(sum(x * x for x in u) / n)
        u = [x / max(1, rms) for x in u]
        m = [0.95 * a + 0.05 * b for a, b in zip(m, u, strict=True)]
        theta = [a - s * (lr * mult * b + wd * a) for a, b in zip(theta, m, strict=True)]
    return theta


def test_steps_equal_the_formulas():
    generator = torch.Generator().manual_seed(0)
    grads = (torch.randn(12, 5, generator=generator, dtype=torch.float64) * 3).tolist()
    grads[4] = [float("nan")] * 5
    grads[7] = [80.0] * 5  # norm above 100: skipped, state frozen
    scales = [0.1 * (i + 1) for i in range(12)]
    start = [0.5, -1.0, 2.0, 0.0, 3.0]
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = RMSPropMomentum([{"params": [parameter], "mult": 0.5}], lr=0.02, weight_decay=0.01)
    for grad, scale in zip(grads, scales, strict=True):
        parameter.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.scale = scale
        optimizer.step()
    expected = reference(start, grads, scales, 0.02, 0.5, 0.01)
    torch.testing.assert_close(parameter.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert (optimizer.updates, optimizer.skipped) == (10, 2)


@pytest.mark.parametrize("kind", [AdamW, RMSPropMomentum])
def test_a_transposed_parameter_steps_as_its_copy_does(kind):
    torch.manual_seed(0)
    drawn, gradient = torch.randn(5, 3), torch.randn(3, 5)
    stepped = []
    for start in (drawn.t(), drawn.t().contiguous()):
        parameter = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))
        optimizer = kind([{"params": [parameter]}], lr=0.1)
        parameter.grad = gradient.t().contiguous().t()
        optimizer.step()
        stepped.append(parameter.detach())
    assert torch.equal(*stepped) and not torch.equal(stepped[0], drawn.t())


def test_norm_is_over_all_parameters():
    first, second = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = RMSPropMomentum([{"params": [first]}, {"params": [second]}], lr=0.1)
    first.grad, second.grad = torch.full((3,), 3.0), torch.full((3,), 4.0)
    optimizer.step()
    assert math.isclose(optimizer.grad_norm, math.sqrt(3 * 9 + 3 * 16), rel_tol=1e-6)


def test_zero_gradients_move_nothing():
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = RMSPropMomentum([{"params": [parameter]}], lr=0.1)
    parameter.grad = torch.zeros(4)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(4))


@pytest.mark.parametrize("kind", [RMSPropMomentum, AdamW])
def test_blocks_change_nothing(kind, monkeypatch):
    """Tensors cut into pieces, and several in one block, against each in one piece."""
    found = []
    for block in (7, 2**18):
        monkeypatch.setitem(optimizers.BLOCK, "cpu", block)
        generator = torch.Generator().manual_seed(3)
        parameters = [
            torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(3, 2), (5, 9), (1,), (14,)]
        ]
        optimizer = kind([{"params": parameters[:3], "mult": 0.3}, {"params": parameters[3:]}], lr=0.1)
        for _ in range(3):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        found.append(parameters)
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


def test_nothing_is_held_but_gradients_moments_and_one_block():
    """Peak of the step over what is there before it, by torch's own count of allocations."""
    parameter = torch.nn.Parameter(torch.ones(2**20))
    optimizer = RMSPropMomentum([{"params": [parameter]}], lr=0.1)
    for _ in range(2):
        parameter.grad = torch.ones(2**20)
        with torch.profiler.profile(profile_memory=True) as profile:
            optimizer.step()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak <= 2 * 4 * optimizers.BLOCK["cpu"]


def test_adamw_is_torchs():
    """With a constant schedule, and decay written as lr * weight_decay, which is how torch couples it."""
    generator = torch.Generator().manual_seed(1)
    start, grads = torch.randn(6, generator=generator), torch.randn(8, 6, generator=generator) * 0.1
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    first = AdamW([{"params": [ours]}], lr=0.01, weight_decay=0.01 * 0.1)
    second = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for grad in grads:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
