import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


@pytest.mark.parametrize("size", [3.0, 1e-15])  # at the second the 1e-30 beside g^2 counts as much as g^2
def test_steps_equal_the_formulas(size):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(12, 5, generator=generator, dtype=torch.float64) * size
    drawn[1::3] /= 20  # some are not clipped
    grads = drawn.tolist()
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


@pytest.mark.parametrize(("norm", "skipped"), [(99.9, 0), (100.0, 1), (math.inf, 1)])
def test_a_wild_step_is_one_of_norm_100(norm, skipped):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([{"params": [parameter]}], lr=0.1)
    parameter.grad = torch.tensor([0.6 * norm, 0.8 * norm])
    optimizer.step()
    assert (optimizer.skipped, optimizer.updates) == (skipped, 1 - skipped)
    assert torch.equal(parameter.detach(), torch.ones(2)) == bool(skipped)
    assert bool(optimizer.state) != bool(skipped)


def test_what_has_no_gradient_stays_and_has_no_state():
    still, moved = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = AdamW([{"params": [still]}, {"params": [moved]}], lr=0.1)
    optimizer.step()
    assert optimizer.grad_norm == 0.0 and not optimizer.state
    moved.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(still.detach(), torch.ones(3)) and list(optimizer.state) == [moved]


def test_sums_of_squares_are_over_all_shards(monkeypatch):
    """Two meshes: on the one a tensor lies in shards of equal content, on the other each place has all of it."""

    class Sharded:
        def __init__(self, mesh, placements, values):
            self.device_mesh, self.placements, self.values = mesh, placements, torch.tensor(values)

        def to_local(self):
            return self.values

    class Mesh(tuple):
        def get_group(self, dim):
            return self[dim]

    def all_reduce(sums, group):
        sums *= group  # as many processes as this hold the same

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    shard, replicate = torch.distributed.tensor.Shard(0), torch.distributed.tensor.Replicate()
    mesh, other = Mesh((2, 3)), Mesh((5,))
    tensors = [
        Sharded(mesh, (shard, replicate), [1.0, 2.0]),
        torch.tensor([3.0]),
        Sharded(mesh, (replicate, shard), [2.0, 0.0]),
        Sharded(mesh, (shard, shard), [1.0, 1.0]),
        Sharded(other, (shard,), [1.0, 0.0]),
        Sharded(mesh, (shard, replicate), [0.0, 3.0]),
    ]
    assert optimizers.square_sums(tensors) == pytest.approx([2 * 5, 9, 3 * 4, 6 * 2, 5 * 1, 2 * 9])


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


class Made(TorchDispatchMode):
    """The most bytes of new tensors that any one operation made."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        there, new = ({t.untyped_storage().data_ptr(): t.nbytes for t in tensors(tree)} for tree in (args, made))
        self.most = max(self.most, sum(size for place, size in new.items() if place not in there))
        return made


def tensors(tree):
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


@pytest.mark.parametrize("kind", [RMSPropMomentum, AdamW])
def test_nothing_is_made_but_moments_and_tensors_of_a_block(kind, monkeypatch):
    monkeypatch.setitem(optimizers.BLOCK, "cpu", 1_000)
    parameter = torch.nn.Parameter(torch.ones(10_500))
    optimizer = kind([{"params": [parameter]}], lr=0.1)
    for most in (parameter.nbytes, 4 * 1_000):  # the first step makes the moments
        parameter.grad = torch.full_like(parameter, 1e-3)
        with Made() as made:
            optimizer.step()
        assert made.most == most
    assert optimizer.updates == 2


@pytest.mark.parametrize("size", [1e-8, 0.1, 3.0])  # as small as the 1e-8 in the divisor, and clipped
def test_adamw_is_torchs(size):
    """Step by step with the schedule's and the group's factor in torch's lr, to which it couples the decay."""
    generator = torch.Generator().manual_seed(1)
    start, grads = (torch.randn(*shape, generator=generator).double() for shape in [(6,), (8, 6)])
    grads[2::3] /= 20  # not clipped
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    first = AdamW([{"params": [ours], "mult": 0.5}], lr=0.01, weight_decay=0.001)
    second = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.001 / (0.01 * 0.5))
    for number, grad in enumerate(grads * size):
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        first.scale = 1 - number / 10
        second.param_groups[0]["lr"] = 0.01 * 0.5 * first.scale
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_adamws_decay_is_1e_4():
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    parameter.grad = torch.zeros(2, dtype=torch.float64)
    AdamW([{"params": [parameter]}], lr=0.1).step()
    assert parameter.tolist() == [1 - 1e-4] * 2


def test_a_groups_factor_is_1_unless_it_is_told():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([0.3, -0.3])
    AdamW([{"params": [parameter]}], lr=0.1, weight_decay=0.0).step()  # the first step is the gradient's sign
    assert parameter.tolist() == pytest.approx([0.9, 1.1])
