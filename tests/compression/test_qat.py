"""The 2-bit grid by its formula, and a tiny model trained on it and packed."""

import numpy as np
import pytest
import torch

from openafm.compression.calibration import read_windows
from openafm.compression.compress import CompressConfig, compress
from openafm.compression.qat import ClippedLinear, QATConfig, best_step, largest, on_grid, put_on_grid, qat, settle
from openafm.engine import open_package
from openafm.model.checkpoint import load_model
from openafm.stage import Hardware

CONFIG = QATConfig(
    tokens=8192, sequence_length=32, batch_tokens=256, lr=2e-3, clip_lr=1e-2, calibration_tokens=512, heldout_tokens=512
)


def test_values_are_the_nearest_of_four():
    weight, step = torch.randn(16, 40), torch.tensor(0.4)
    levels = np.array([-1.5, -0.5, 0.5, 1.5]) * 0.4
    nearest = levels[np.abs(weight.numpy()[..., None] - levels).argmin(-1)]
    np.testing.assert_allclose(on_grid(weight, step).numpy(), nearest, rtol=1e-6)


def test_gradients_of_weight_and_clip():
    """Straight through inside the grid, none outside; f's is the change of W~ with the rounding held."""
    weight = torch.tensor([[-9.0, -1.1, 0.2, 0.9, 7.0]])
    layer = ClippedLinear(weight.clone(), torch.tensor([0.1]), 16)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    (layer.quantized() * upstream).sum().backward()
    assert layer.weight.grad.tolist() == [[0.0, 2.0, 3.0, 4.0, 0.0]]
    step = 0.1 * 9.0
    held = np.array([-1.5, -1.5, 0.5, 0.5, 1.5])  # W~ / s
    inside = np.array([0, 1, 1, 1, 0])
    slope = (held - inside * weight.numpy()[0] / step) * 9.0
    assert float(layer.clip.grad) == pytest.approx(float(slope @ upstream.numpy()[0]), rel=1e-4)


def test_the_best_step_is_no_worse_than_any_other():
    weight, importance = torch.randn(40, 30), torch.rand(30)
    chosen = best_step(weight, importance, 16)
    for number, rows in enumerate(weight.split(16)):
        errors = [
            float(((on_grid(rows, torch.tensor(step)) - rows).square() @ importance).sum())
            for step in np.linspace(0.01, 1, 500) * float(rows.abs().max())
        ]
        mine = float(((on_grid(rows, chosen[number]) - rows).square() @ importance).sum())
        assert mine <= min(errors) * 1.01
    assert largest(weight, 16).tolist() == [float(rows.abs().max()) for rows in weight.split(16)]


def test_qat_starts_from_error_feedback(world):
    """Before any training the grid's model is nearer to the base than rounding each weight by itself."""
    base, fed, rounded = (load_model(world / "model").requires_grad_(False) for _ in range(3))
    windows = read_windows(world / "shards", "train", 32, 2048)
    settle(fed, put_on_grid(base, fed, windows, dict.fromkeys(fed.linears(), 16), Hardware()))
    for layer in rounded.linears().values():
        step = best_step(layer.weight, torch.ones(layer.in_features), 16)
        layer.weight.data = on_grid(layer.weight, step.repeat_interleave(16)[: layer.out_features, None])
    tokens = windows.tokens[:8, :-1]
    lost = [float((model(tokens) - base(tokens)).square().mean()) for model in (fed, rounded)]
    assert lost[0] < lost[1]


def test_qat_regains_and_is_packed_without_loss(world, make_context):
    context = make_context("qat")
    metrics = qat(CONFIG, context, model=world / "model", shards=world / "shards")
    assert metrics["kl"]["trained"] < metrics["kl"]["start"]
    trained = load_model(context.out)
    for layer in trained.linears().values():
        assert all(rows.unique().numel() <= 4 for rows in layer.weight.split(16))
    packing = make_context("pack")
    config = CompressConfig(target_bits=2.15, length=32, calibration_tokens=512, heldout_tokens=512)
    packed = compress(config, packing, model=context.out, shards=world / "shards")
    assert {layer["bits"] for layer in packed["layers"].values()} == {2}
    for name, layer in open_package(packing.out).model().linears().items():
        assert torch.equal(layer.weight, trained.linears()[name].weight)
