"""Losses of pretraining and fine-tuning: plain functions of logits.

Targets of -100 do not count. Post-training's losses are in `alignment`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


@dataclass
class LossOutput:
    """A mean loss, the number of items it is the mean of, and figures to log (means over the same items)."""

    loss: Tensor
    weight: float
    metrics: dict[str, float] = field(default_factory=dict)


def next_token(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> LossOutput:
    """Mean of -log p(target) plus z_loss * (log Z)^2 (PaLM, arXiv 2204.02311, section 5).

    `logits` `(batch, sequence, vocab)`, `targets` `(batch, sequence)`.
    """
    log_normaliser = torch.logsumexp(logits.float(), -1)
    count = (targets != IGNORED).sum()
    cross_entropy = _mean_at(log_normaliser, logits, targets, count)
    loss = cross_entropy
    if z_loss:
        loss = loss + z_loss * (log_normaliser.square() * (targets != IGNORED)).sum() / count.clamp(min=1)
    return LossOutput(loss, float(count), {"cross_entropy": float(cross_entropy.detach())})


def top1_distillation(
    logits: Tensor, targets: Tensor, teacher_tokens: Tensor, z_loss: float = 0.0, teacher_share: float = 0.9
) -> LossOutput:
    """AFM's distillation: -0.9 log p(teacher's likeliest token) - 0.1 log p(true token), plus the z-loss.

    arXiv 2407.21075, section 3.2 ("Core pre-training", knowledge distillation); all tensors as in `next_token`.
    """
    log_normaliser = torch.logsumexp(logits.float(), -1)
    count = (targets != IGNORED).sum()
    true = _mean_at(log_normaliser, logits, targets, count)
    teacher = _mean_at(log_normaliser, logits, teacher_tokens.masked_fill(targets == IGNORED, IGNORED), count)
    loss = teacher_share * teacher + (1 - teacher_share) * true
    if z_loss:
        loss = loss + z_loss * (log_normaliser.square() * (targets != IGNORED)).sum() / count.clamp(min=1)
    metrics = {"cross_entropy": float(true.detach()), "teacher_cross_entropy": float(teacher.detach())}
    return LossOutput(loss, float(count), metrics)


def _mean_at(log_normaliser: Tensor, logits: Tensor, targets: Tensor, count: Tensor) -> Tensor:
    chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1).float()
    return ((log_normaliser - chosen) * (targets != IGNORED)).sum() / count.clamp(min=1)


def divergence(logits: Tensor, reference: Tensor, targets: Tensor) -> LossOutput:
    """Mean KL(reference || model) a position in nats, where `targets` counts; logits `(batch, sequence, vocab)`."""
    kept = targets != IGNORED
    log_p, log_q = F.log_softmax(reference[kept].float(), -1), F.log_softmax(logits[kept].float(), -1)
    loss = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    return LossOutput(loss, float(kept.sum()), {"kl": float(loss.detach())})
