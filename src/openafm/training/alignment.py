"""The losses of post-training, as plain functions of rewards and log-probabilities.

AFM report (arXiv 2407.21075), section 4.2 and appendices A (reward model) and B (MDLOO). They know nothing of models
or stages: `openafm.posttraining` calls them from the one training loop.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from openafm.training.losses import IGNORED


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log pi of each token of the answer, 0 outside it: `(batch, sequence)`.

    `logits` are `(batch, sequence, vocab)`; `targets` `(batch, sequence)` holds the next token at each position, and
    `IGNORED` outside the answer.
    """
    # cross_entropy gives 0 where the target is ignored, and never holds (batch, sequence, vocab) twice.
    nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return -nats.view(targets.shape)


def sequence_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log pi(y | x), summed over the answer's tokens: `(batch,)`; the arguments are `token_log_probs`'."""
    return token_log_probs(logits, targets).sum(-1)


def preference(chosen: Tensor, rejected: Tensor, target: Tensor) -> Tensor:
    """Bradley-Terry with soft labels: -p log s(r_c - r_r) - (1-p) log s(r_r - r_c), mean over pairs.

    `chosen` and `rejected` are rewards `(pairs,)`, `target` `(pairs,)` the probability p that the chosen answer is the
    better one, by the strength of the preference (AFM, appendix A).
    """
    gap = chosen - rejected
    return -(target * F.logsigmoid(gap) + (1 - target) * F.logsigmoid(-gap)).mean()


def graded_reward(
    chosen: Tensor, rejected: Tensor, target: Tensor, grade_logits: Tensor, grades: Tensor, grade_weight: float
) -> Tensor:
    """`preference` + grade_weight * the sum of the four dimensions' cross-entropies over both responses.

    `grade_logits` `(pairs, 2, 4, 3)` and `grades` `(pairs, 2, 4)` hold the chosen response first (AFM, appendix A).
    """
    nats = F.cross_entropy(grade_logits.flatten(0, 2), grades.flatten(), reduction="sum") / len(grades)
    return preference(chosen, rejected, target) + grade_weight * nats


def _log_ratio_gap(chosen: Tensor, rejected: Tensor, chosen_ref: Tensor, rejected_ref: Tensor) -> Tensor:
    """Return h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected), `(pairs,)`."""
    return (chosen - chosen_ref) - (rejected - rejected_ref)


def dpo(chosen: Tensor, rejected: Tensor, chosen_ref: Tensor, rejected_ref: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation: -log s(beta h), mean over pairs (arXiv 2305.18290, equation 7).

    All four are summed log-probabilities `(pairs,)`, under the policy and under the frozen reference.
    """
    return -F.logsigmoid(beta * _log_ratio_gap(chosen, rejected, chosen_ref, rejected_ref)).mean()


def ipo(chosen: Tensor, rejected: Tensor, chosen_ref: Tensor, rejected_ref: Tensor, beta: float) -> Tensor:
    """Identity preference optimisation: (h - 1 / (2 beta))^2, mean over pairs (arXiv 2310.12036, equation 17).

    The four are log-probabilities `(pairs,)`: summed in the paper; averaged over tokens they make beta independent of
    the answers' length.
    """
    gap = _log_ratio_gap(chosen, rejected, chosen_ref, rejected_ref)
    return (gap - 1 / (2 * beta)).square().mean()


def kl_penalised_reward(reward: Tensor, log_probs: Tensor, reference_log_probs: Tensor, beta: float) -> Tensor:
    """R(x, y) = r(x, y) - beta * log(pi_k(y|x) / pi_ref(y|x)), elementwise, no gradient (AFM, appendix B)."""
    return (reward - beta * (log_probs - reference_log_probs)).detach()


def leave_one_out_advantage(rewards: Tensor) -> Tensor:
    """A_i = R_i - mean of the other K - 1, `(prompts, K)` (AFM, appendix B; arXiv 2402.14740)."""
    samples = rewards.shape[1]
    if samples < 2:
        raise ValueError("leave-one-out needs at least two samples a prompt: raise `samples`")
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)


def policy_divergence(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """KL(pi_theta || pi_k) from samples of pi_k: mean of rho ln rho - rho + 1, rho = pi_theta / pi_k.

    Unbiased, as the mean of rho under pi_k is 1, and never below 0 for any sample.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    return (ratio * log_ratio - ratio + 1).mean()


def mdloo(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, gamma: float) -> Tensor:
    """Mirror descent with leave-one-out: -mean(rho A) + gamma KL(pi_theta || pi_k), no clipping (AFM, appendix B).

    All are `(samples,)`; the whole response is one action. `old_log_probs` are pi_k's, which drew the samples
    (mirror descent policy optimisation: arXiv 2005.09814).
    """
    ratio = (log_probs - old_log_probs).exp()
    return -(ratio * advantages).mean() + gamma * policy_divergence(log_probs, old_log_probs)


def reinforce(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """RLOO's loss: -mean(A log pi_theta(y|x)), the whole response one action (arXiv 2402.14740, section 3).

    Both are `(samples,)`; A is `leave_one_out_advantage` of the KL-penalised reward. No ratio corrects for an older
    pi_k, so it is exact for the first step on its samples alone.
    """
    return -(log_probs * advantages).mean()


def standardised_advantage(rewards: Tensor) -> Tensor:
    """A_i = (R_i - mean) / std over each row of `(groups, samples)` (GRPO: arXiv 2402.03300, section 4.1.2).

    1e-4 beside the deviation keeps a group of equal rewards at 0, as in DeepSeek's and TRL's code.
    """
    if rewards.shape[1] < 2:
        raise ValueError("a group's deviation needs at least two samples: raise `samples`")
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


def clipped_surrogate(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A) with rho = pi_theta / pi_k, each (arXiv 1707.06347, equation 7)."""
    ratio = (log_probs - old_log_probs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def ppo_clip(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, answer: Tensor, clip: float) -> Tensor:
    """PPO's clipped surrogate without a critic, mean over the tokens of all answers (arXiv 1707.06347, equation 7).

    `log_probs` and `old_log_probs` are `(samples, sequence)`, `answer` is true at the answer's tokens, and `advantages`
    `(samples,)` count for every token of their answer: the baseline is a mean of rewards, not a learned value.
    """
    each = clipped_surrogate(log_probs, old_log_probs, advantages[:, None], clip)
    return (each * answer).sum() / answer.sum()


def grpo(
    log_probs: Tensor,
    old_log_probs: Tensor,
    reference_log_probs: Tensor,
    advantages: Tensor,
    answer: Tensor,
    *,
    clip: float,
    beta: float,
) -> Tensor:
    """GRPO's loss (arXiv 2402.03300, equation 3): the clipped surrogate + beta KL(pi_theta || pi_ref), token by token.

    Mean over each answer's tokens, then over answers. Shapes as in `ppo_clip`; the KL is estimated by
    pi_ref / pi_theta - ln(pi_ref / pi_theta) - 1 (equation 4), whose gradient reaches pi_theta.
    """
    to_reference = reference_log_probs - log_probs
    divergence = to_reference.exp() - to_reference - 1
    each = clipped_surrogate(log_probs, old_log_probs, advantages[:, None], clip) + beta * divergence
    return ((each * answer).sum(1) / answer.sum(1)).mean()
