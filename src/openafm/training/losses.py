"""Losses of pretraining and fine-tuning: plain functions of logits, or of hidden states and the output matrix.

Targets of -100 do not count. Logits of all positions at once are the largest tensor of training (32,768 tokens over
49,152 entries: 6 GB, and as much for their gradient), so `chunked_next_token` and `chunked_distillation` make them a
thousand positions at a time. Post-training's losses are in `alignment`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
CHUNK = 1024
"""Positions whose logits are held at once."""


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


def chunked_next_token(hidden: Tensor, output: Tensor, targets: Tensor, z_loss: float = 0.0) -> LossOutput:
    """`next_token` of the logits `hidden @ output.T`, which are never held at once.

    `hidden` `(batch, sequence, d_model)`, `output` `(vocab, d_model)`, `targets` `(batch, sequence)`.
    """
    loss, nats, count = _chunked(hidden, output, targets, None, 0.0, z_loss)
    return LossOutput(loss, count, {"cross_entropy": nats[0]})


def chunked_distillation(
    hidden: Tensor,
    output: Tensor,
    targets: Tensor,
    teacher_tokens: Tensor,
    z_loss: float = 0.0,
    teacher_share: float = 0.9,
) -> LossOutput:
    """`top1_distillation` of the logits `hidden @ output.T`, which are never held at once."""
    loss, nats, count = _chunked(hidden, output, targets, teacher_tokens, teacher_share, z_loss)
    return LossOutput(loss, count, {"cross_entropy": nats[0], "teacher_cross_entropy": nats[1]})


def _chunked(
    hidden: Tensor, output: Tensor, targets: Tensor, teacher: Tensor | None, teacher_share: float, z_loss: float
) -> tuple[Tensor, list[float], float]:
    """The loss, mean -log p of the true and of the teacher's tokens, and the number of positions that count."""
    rows, true = hidden.flatten(0, -2), targets.flatten()
    wanted, shares = true.unsqueeze(1), [1.0]
    if teacher is not None:
        wanted, shares = torch.stack((true, teacher.flatten()), 1), [1 - teacher_share, teacher_share]
    kept = (true != IGNORED).nonzero().squeeze(1)
    if len(kept) < len(true):
        rows, wanted = rows[kept], wanted[kept]
    loss, nats = _ChunkedCrossEntropy.apply(rows, output, wanted, shares, z_loss)  # type: ignore[no-untyped-call]
    return loss, nats.tolist(), float(len(kept))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean over rows of sum_k share_k * -log p(target_k) + z_loss * (log Z)^2, with gradients made on the way.

    A chunk's logits give its part of both gradients before the next chunk's are made (as in Liger Kernel, arXiv
    2410.10989, section 3.2): d logits = (1 + 2 z_loss log Z) p - sum_k share_k onehot_k, over the number of rows.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, output: Tensor, targets: Tensor, shares: list[float], z_loss: float
    ) -> tuple[Tensor, Tensor]:
        """`rows` `(n, d_model)`, `output` `(vocab, d_model)`, `targets` `(n, k)`; the loss and k mean nats."""
        device, count = rows.device.type, max(1, len(rows))
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
        weight, share = output.to(dtype), torch.tensor(shares, device=rows.device)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_rows = torch.empty_like(rows) if wanted else None
        grad_output = torch.zeros_like(output) if wanted else None
        nats, squares = torch.zeros(len(shares), device=rows.device), torch.zeros((), device=rows.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(rows), CHUNK):
                part, target = rows[start : start + CHUNK].to(dtype), targets[start : start + CHUNK]
                logits = part @ weight.t()
                log_p = torch.log_softmax(logits, -1, dtype=torch.float32)
                chosen = log_p.gather(1, target)
                log_normaliser = logits.gather(1, target[:, :1]).float() - chosen[:, :1]
                nats -= chosen.sum(0)
                squares += log_normaliser.square().sum()
                if grad_rows is None or grad_output is None:
                    continue
                grad = log_p.exp_().mul_((1 + 2 * z_loss * log_normaliser) / count)
                grad.scatter_add_(1, target, (-share / count).expand(len(target), -1))
                grad = grad.to(dtype)
                grad_rows[start : start + CHUNK] = grad @ weight
                grad_output += grad.t() @ part
        ctx.save_for_backward(grad_rows, grad_output)
        nats /= count
        ctx.mark_non_differentiable(nats)
        return (share * nats).sum() + z_loss * squares / count, nats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Scale what `forward` left."""
        grad_rows, grad_output = ctx.saved_tensors
        return grad_rows.mul_(grad), grad_output.mul_(grad), None, None, None


@torch.no_grad()
def top1(hidden: Tensor, output: Tensor) -> Tensor:
    """The likeliest next token at each position, `(batch, sequence)` of `hidden` `(batch, sequence, d_model)`."""
    best = [F.linear(part, output).argmax(-1) for part in hidden.flatten(0, -2).split(CHUNK)]
    return torch.cat(best).view(hidden.shape[:-1])
