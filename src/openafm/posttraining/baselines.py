"""RLOO, GRPO and PPO-clip: what MDLOO is compared with (`algorithm` of step `mdloo`).

They see the same answers, rewards and optimizer; each has an advantage and a loss of its own. PPO here has no critic:
its baseline is the mean reward of the iteration, so that no second network is trained that MDLOO does not have.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from openafm.model import Transformer
from openafm.posttraining.examples import Row
from openafm.training.alignment import (
    grpo,
    leave_one_out_advantage,
    ppo_clip,
    reinforce,
    standardised_advantage,
    token_log_probs,
)
from openafm.training.batches import Batch
from openafm.training.losses import IGNORED, LossOutput

Baseline = Literal["rloo", "grpo", "ppo"]


def baseline_advantages(algorithm: Baseline, rewards: Tensor, penalised: Tensor) -> Tensor:
    """Advantages `(prompts, K)` of rewards, and of rewards less the KL penalty, both `(prompts, K)`.

    RLOO: leave-one-out of the penalised ones. PPO: the penalised ones less their mean over all prompts, by their
    deviation. GRPO: the plain ones, standardised in each prompt's group; its penalty is in the loss.
    """
    if algorithm == "rloo":
        return leave_one_out_advantage(penalised)
    if algorithm == "grpo":
        return standardised_advantage(rewards)
    return standardised_advantage(penalised.view(1, -1)).view(penalised.shape)


def token_values(prompt: Sequence[int], own: Sequence[float], reference: Sequence[float]) -> Row:
    """What PPO and GRPO compare with, token by token: log pi_k and log pi_ref at the positions of the targets."""
    before = [0.0] * (len(prompt) - 1)
    return {"values_old": [*before, *own], "values_reference": [*before, *reference]}


def baseline_step(model: Transformer, batch: Batch, algorithm: Baseline, clip: float, beta: float) -> LossOutput:
    """A baseline's loss of a batch of answers. PPO's is a mean over tokens, and weighs as many; the others answers."""
    log_probs = token_log_probs(model(batch["inputs"]), batch["targets"])
    answer, advantages = batch["targets"] != IGNORED, batch["advantages"]
    ratio = (log_probs.detach().sum(-1) - batch["old_log_probs"]).exp()
    metrics = {"ratio": float(ratio.mean())}
    if algorithm == "rloo":
        return LossOutput(reinforce(log_probs.sum(-1), advantages), len(advantages), metrics)
    old = batch["values_old"]
    if algorithm == "ppo":
        return LossOutput(ppo_clip(log_probs, old, advantages, answer, clip), int(answer.sum()), metrics)
    loss = grpo(log_probs, old, batch["values_reference"], advantages, answer, clip=clip, beta=beta)
    return LossOutput(loss, len(advantages), metrics)
