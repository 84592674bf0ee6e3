import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.optimize import minimize

from openafm.model import Transformer
from openafm.model.checkpoint import load_model, save_model
from openafm.pretraining.pruning import (
    CutConfig,
    MaskedTransformer,
    MasksConfig,
    anneal,
    cut,
    hard_top_k,
    learn_masks,
    prune,
    soft_top_k,
)
from openafm.stage import Context
from openafm.training.batches import TokenBatches


def objective(mask: np.ndarray, scores: np.ndarray, eps: float) -> float:
    mask = np.clip(mask, 1e-12, 1)
    return float(mask @ scores - eps * (mask * np.log(mask)).sum())


@pytest.mark.parametrize(("k", "eps"), [(2, 1.0), (3, 0.5), (5, 2.0)])
def test_soft_top_k_solves_its_problem(k, eps):
    """Against a general constrained optimiser: max s.lambda + eps H(lambda), sum = k, 0 <= lambda <= 1."""
    scores = np.random.default_rng(k).normal(size=7)
    ours = soft_top_k(torch.tensor(scores), k, eps, rounds=200).numpy()
    best = minimize(
        lambda m: -objective(m, scores, eps), np.full(7, k / 7), bounds=[(1e-9, 1)] * 7,
        constraints={"type": "eq", "fun": lambda m: m.sum() - k}, method="SLSQP", options={"ftol": 1e-12},
    )  # fmt: skip
    np.testing.assert_allclose(ours, best.x, atol=2e-3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-3, 3), min_size=4, max_size=30, unique=True), st.floats(0.1, 4.0), st.data())
def test_masks_are_feasible_and_keep_the_order(scores, eps, data):
    k = data.draw(st.integers(1, len(scores) - 1))
    mask = soft_top_k(torch.tensor(scores, dtype=torch.float64), k, eps, rounds=300)
    assert float(mask.min()) >= 0 and float(mask.max()) <= 1 + 1e-6
    assert float(mask.sum()) == pytest.approx(k, rel=0.02)
    order = torch.argsort(torch.tensor(scores, dtype=torch.float64))
    assert bool((mask[order].diff() >= -1e-9).all())


def test_small_eps_is_hard_and_large_is_even():
    scores = torch.tensor([3.0, 1.0, 2.0, 0.0])
    torch.testing.assert_close(soft_top_k(scores, 2, 0.05, 3000), torch.tensor([1.0, 0.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(soft_top_k(scores, 2, 1e3, 100), torch.full((4,), 0.5), atol=2e-3, rtol=0)
    assert hard_top_k(scores, 2).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_eps_goes_down_by_its_factor():
    values = [anneal(MasksConfig(), step, 110) for step in range(110)]
    assert values[0] == 4.0 and values[-1] == pytest.approx(0.1, abs=0.02)
    assert sorted(values, reverse=True) == values and len(set(values)) == 12


def test_the_cut_keeps_the_logits(tiny_model):
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([hard_top_k(torch.rand(24, generator=generator), 9) for _ in range(2)])
    masks = masks * torch.rand(2, 24, generator=generator).clamp(min=0.1)
    narrow = cut(tiny_model, masks)
    for layer, mask in zip(tiny_model.model.layers, masks, strict=True):
        layer.mlp.mask = mask
    tokens = torch.randint(0, 64, (2, 16), generator=generator)
    assert narrow.config.d_ff == 9
    torch.testing.assert_close(narrow(tokens), tiny_model(tokens), atol=1e-5, rtol=1e-5)


def test_masks_then_cut(tiny_config, tiny_model, token_shards, tmp_path):
    save_model(tiny_model, tmp_path / "teacher")
    folders = [tmp_path / name for name in ("masks", "pruned")]
    for folder in folders:
        folder.mkdir()
    context = [Context(folder, tmp_path / f"{folder.name}.scratch", seed=1) for folder in folders]
    data = {"mixture": {"web": 1.0, "code": 1.0}, "sequence_length": 16}
    config = MasksConfig(keep=8, batch_tokens=64, tokens=1280, base_width=16, **data)
    learn_masks(config, context[0], model=tmp_path / "teacher", shards=token_shards)
    masks = load_file(folders[0] / "masks.safetensors")["masks"]
    assert (masks > 0).sum(1).tolist() == [8, 8]
    metrics = prune(
        CutConfig(held_out_tokens=320, **data),
        context[1],
        model=folders[0],
        teacher=tmp_path / "teacher",
        shards=token_shards,
    )
    assert metrics["logit_difference"] <= 1e-5 and load_model(folders[1]).config.d_ff == 8
    losses = metrics["held_out_loss"]
    assert set(losses) >= {"learned units", "magnitude units", "random units"}
    for units in ("magnitude", "random"):  # the model that is kept is the one that was measured
        (tmp_path / units).mkdir()
        chosen = CutConfig(held_out_tokens=320, units=units, **data)
        inputs = {"model": folders[0], "teacher": tmp_path / "teacher", "shards": token_shards}
        prune(chosen, Context(tmp_path / units, tmp_path / "s", seed=1), **inputs)
        batches = TokenBatches(
            token_shards, data["mixture"], sequence_length=16, batch_tokens=4096, tokens=320, seed=1, split="heldout"
        )
        batch, kept = batches[0], load_model(tmp_path / units)
        loss = torch.nn.functional.cross_entropy(kept(batch["inputs"]).flatten(0, 1), batch["targets"].flatten())
        assert len(batches) == 1 and float(loss) == pytest.approx(losses[f"{units} units"], rel=1e-5)


def test_gradients_reach_the_scores(tiny_config):
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: soft_top_k(s, 5, 1.0, 20), scores, atol=1e-6)
    masked = MaskedTransformer(Transformer(tiny_config), torch.randn(2, 24), 8)
    masked.hidden(torch.arange(8)[None]).square().sum().backward()
    assert masked.scores.grad.any(1).all()
