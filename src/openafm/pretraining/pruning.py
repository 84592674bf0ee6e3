"""Structured pruning of the FFN: Soft-Top-K masks learned while training (step `masks`), then a real cut (`prune`).

AFM report (arXiv 2407.21075), section 3.2, with the relaxation of CoDA (arXiv 2304.04947, appendix on soft top-k).
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openafm.model import Transformer
from openafm.model.checkpoint import load_model, save_model
from openafm.model.muparam import parameter_groups
from openafm.model.presets import Size
from openafm.pretraining.mixture import CoreData, core_mixture
from openafm.stage import Config, Context, Metrics
from openafm.training.batches import Batch, TokenBatches
from openafm.training.loop import train, write_curve
from openafm.training.losses import LossOutput, chunked_next_token
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import cosine


def soft_top_k(scores: Tensor, k: int, eps: float, rounds: int = 20) -> Tensor:
    """The lambda in [0, 1]^n with sum k that maximises scores . lambda + eps * H(lambda), `(..., n)`.

    CoDA (arXiv 2304.04947): coordinate descent on the dual from a = 0, b = -scores; the small eps the harder.
    """
    a, b = torch.zeros_like(scores[..., :1]), -scores
    for _ in range(rounds):
        a = eps * math.log(k) - eps * torch.logsumexp((scores + b) / eps, -1, keepdim=True)
        b = torch.clamp(-scores - a, max=0)
    return torch.exp((scores + a + b) / eps)


def hard_top_k(mask: Tensor, k: int) -> Tensor:
    """1 at the k largest entries of `(n,)`, 0 elsewhere; ties go to the earlier."""
    order = torch.argsort(mask, descending=True, stable=True)
    return torch.zeros_like(mask).index_fill(0, order[:k], 1.0)


class MasksConfig(CoreData):
    """Learning of the masks, on the core mixture."""

    keep: int = 384
    """Width of the FFN that stays: k."""
    lr: float = 0.003
    score_lr: float = 0.05
    floor: float = 0.1
    weight_decay: float = 3.16e-4
    base_width: int = 128
    eps_start: float = 4.0
    eps_end: float = 0.1
    eps_factor: float = 0.7

    @classmethod
    def dialled(cls, size: Size, given: dict[str, Any]) -> dict[str, Any]:
        """The dial's tokens and batch, and its FFN width as what stays."""
        return {"keep": size.d_ff} | super().dialled(size, given)


class MaskedTransformer(nn.Module):
    """A transformer whose FFN activations are multiplied by lambda times lambda's hard top k."""

    def __init__(self, transformer: Transformer, scores: Tensor, keep: int):
        super().__init__()
        self.transformer, self.keep, self.eps = transformer, keep, 1.0
        self.scores = nn.Parameter(scores)

    def masks(self) -> Tensor:
        """lambda * hard top k of every layer, `(layers, d_ff)`."""
        soft = soft_top_k(self.scores, self.keep, self.eps)
        hard = torch.stack([hard_top_k(row, self.keep) for row in soft.detach()])
        return soft * hard

    def hidden(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Last hidden states `(batch, sequence, d_model)` of the masked model."""
        for layer, mask in zip(self.transformer.blocks, self.masks(), strict=True):
            layer.mlp.mask = mask
        return self.transformer.hidden(tokens, documents=documents)


@torch.no_grad()
def importance(model: Transformer, batches: TokenBatches, count: int = 8) -> Tensor:
    """Where scores start: mean |inner activation| times the norm of its down column, `(layers, d_ff)`.

    Equal scores would tie. Scaled to unit deviation a layer, so that eps means the same in each.
    """
    sums = torch.zeros(model.config.n_layers, model.config.d_ff)
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, inputs, i=i: sums[i].add_(inputs[0].abs().mean((0, 1)).cpu())
        )
        for i, layer in enumerate(model.blocks)
    ]
    for step in range(min(count, len(batches))):
        batch = {name: part.to(model.model.embed_tokens.weight.device) for name, part in batches[step].items()}
        model.hidden(batch["inputs"], documents=batch.get("documents"))
    for hook in hooks:
        hook.remove()
    norms = torch.stack([layer.mlp.down_proj.weight.norm(dim=0).cpu() for layer in model.blocks])
    scores = sums * norms
    return scores / scores.std(1, keepdim=True)


def anneal(config: MasksConfig, step: int, steps: int) -> float:
    """eps of this step: from start to end by the factor, each value for an equal share of the steps."""
    values = math.ceil(math.log(config.eps_end / config.eps_start) / math.log(config.eps_factor)) + 1
    return max(config.eps_end, config.eps_start * config.eps_factor ** (step * values // steps))


def learn_masks(config: MasksConfig, context: Context, *, model: Path, shards: Path) -> Metrics:
    """Train scores and weights together; writes a model folder and `masks.safetensors` (scores, lambda, importance)."""
    transformer = load_model(model)
    batches = config.batches(shards, context.seed)
    start = importance(transformer, batches)
    masked = MaskedTransformer(transformer, start.clone(), config.keep)
    groups = parameter_groups(transformer, config.base_width)
    groups.append({"params": [masked.scores], "mult": config.score_lr / config.lr, "weight_decay": 0.0})
    optimizer = RMSPropMomentum(groups, config.lr, config.weight_decay)
    total = len(batches) * batches.rows * config.sequence_length

    def set_eps(network: MaskedTransformer, step: int) -> None:
        """Make the masks as sharp as the annealing has them at this step."""
        network.eps = anneal(config, step, len(batches))

    def loss(network: MaskedTransformer, batch: Batch) -> LossOutput:
        """Cross-entropy of the masked model, a mean over tokens in nats."""
        output = network.transformer.model.embed_tokens.weight
        return chunked_next_token(network.hidden(batch["inputs"], batch.get("documents")), output, batch["targets"])

    schedule = cosine(total, round(0.1 * total), config.floor)
    curve = train(masked, batches, loss, optimizer, schedule, context, label="masks", before_step=set_eps)
    masked.eps = config.eps_end
    masks = masked.masks().detach()
    save_model(transformer, context.out, model)
    tensors = {"scores": masked.scores.detach().cpu(), "masks": masks.cpu(), "importance": start}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, context.out / "masks.safetensors")
    write_curve(curve, context.out)
    moved = _moved(start, masks.cpu(), config.keep)
    return {
        "kept": config.keep,
        "of": transformer.config.d_ff,
        "mean_mask": round(float(masks.sum(1).mean()) / config.keep, 4),
        "moved_from_start": moved,
        "headline": f"{config.keep} of {transformer.config.d_ff} a layer; {moved:.1%} of them not in the starting set",
    }


def _moved(start: Tensor, masks: Tensor, keep: int) -> float:
    """Share of the kept units that the starting scores would not have kept."""
    first = torch.stack([hard_top_k(row, keep) for row in start])
    return round(1 - float((first * (masks > 0)).sum() / (masks > 0).sum()), 5)


def cut(transformer: Transformer, masks: Tensor) -> Transformer:
    """A narrower model with the same logits as `transformer` under `masks` `(layers, d_ff)`.

    The mask is folded into the down columns; then gate and up rows and down columns of masked units are left out.
    Every layer must keep the same number of units.
    """
    kept = [row.nonzero().squeeze(1) for row in masks]
    widths = {len(units) for units in kept}
    if len(widths) != 1:
        raise ValueError(f"layers keep different numbers of units: {sorted(widths)}")
    narrow = Transformer(transformer.config.model_copy(update={"d_ff": widths.pop()}))
    state = dict(transformer.state_dict())
    for i, units in enumerate(kept):
        name = f"model.layers.{i}.mlp"
        for half in ("gate_proj", "up_proj"):
            state[f"{name}.{half}.weight"] = state[f"{name}.{half}.weight"][units]
        state[f"{name}.down_proj.weight"] = (state[f"{name}.down_proj.weight"] * masks[i])[:, units]
    narrow.load_state_dict(state)
    return narrow.eval()


class CutConfig(Config):
    """The cut, and what it is compared with on held-out text."""

    units: Literal["learned", "magnitude", "random"] = "learned"
    """What stays: the masked model with its mask, as AFM has it, or, to compare, the teacher's own units of the highest
    importance, or any."""
    sequence_length: int = 256
    held_out_tokens: int = 16_384
    mixture: Annotated[dict[str, float], AfterValidator(core_mixture)] = {"web": 0.7, "code": 0.2, "math": 0.1}


@torch.inference_mode()
def prune(config: CutConfig, context: Context, *, model: Path, teacher: Path, shards: Path) -> Metrics:
    """Cut the masked model; writes a model folder and compares learned, magnitude and random cuts.

    Raises ValueError when the logits before and after the cut differ by more than 1e-5 (relative to the largest).
    """
    transformer, masks = load_model(model), load_file(model / "masks.safetensors")
    batches = TokenBatches(
        shards, config.mixture, sequence_length=config.sequence_length, batch_tokens=4096,
        tokens=config.held_out_tokens, seed=context.seed, split="heldout",
    )  # fmt: skip
    narrow = cut(transformer, masks["masks"])
    for layer, mask in zip(transformer.blocks, masks["masks"], strict=True):
        layer.mlp.mask = mask
    tokens = batches[0]["inputs"]
    before, after = transformer(tokens), narrow(tokens)
    difference = float((before - after).abs().max() / before.abs().max())
    if difference > 1e-5:
        raise ValueError(f"the cut changed the logits by {difference:.1e}, more than 1e-5: {model} may be damaged")
    arms = _arms(load_model(teacher), masks, context.seed)
    save_model(narrow if config.units == "learned" else arms[f"{config.units} units"], context.out, model)
    losses = {"uncut teacher": _loss(load_model(teacher), batches), "learned masks and weights": _loss(narrow, batches)}
    losses |= {name: _loss(arm, batches) for name, arm in arms.items()}
    return {
        "parameters": narrow.config.parameters,
        "logit_difference": difference,
        "held_out_tokens": len(batches) * batches.rows * config.sequence_length,
        "held_out_loss": losses,
        "headline": "held-out loss right after the cut: "
        + ", ".join(f"{name} {value:.2f}" for name, value in losses.items()),
    }


def _arms(teacher: Transformer, masks: dict[str, Tensor], seed: int) -> dict[str, Transformer]:
    """The teacher's own weights cut to three choices of units, none of them trained further."""
    keep = int((masks["masks"][0] > 0).sum())
    random = torch.rand(masks["masks"].shape, generator=torch.Generator().manual_seed(seed))
    choices = {"learned units": masks["masks"], "magnitude units": masks["importance"], "random units": random}
    return {
        name: cut(teacher, torch.stack([hard_top_k(row, keep) for row in scores])) for name, scores in choices.items()
    }


def _loss(model: Transformer, batches: TokenBatches) -> float:
    output = model.model.embed_tokens.weight
    losses = [
        float(chunked_next_token(model.hidden(b["inputs"]), output, b["targets"]).loss)
        for b in (batches[i] for i in range(len(batches)))
    ]
    return round(sum(losses) / len(losses), 5)
