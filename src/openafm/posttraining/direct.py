"""Direct preference optimisation, DPO and IPO (AFM, section 4.2.3; steps `dpo` and `ipo`).

Each prompt's best answer of the committee is preferred to its worst. The reference is the model that training starts
from, whose log-probabilities are computed once.
"""

from pathlib import Path
from typing import Literal

import torch

from openafm import jsonl
from openafm.model import Transformer
from openafm.model.checkpoint import save_model
from openafm.posttraining.committee import by_prompt
from openafm.posttraining.examples import Row, RowBatches, answer_row
from openafm.posttraining.policy import OptimizerConfig, Policy, token_log_probs
from openafm.stage import Context, Hardware, Metrics
from openafm.training.alignment import dpo, ipo, sequence_log_probs
from openafm.training.batches import Batch
from openafm.training.loop import train, write_curve
from openafm.training.losses import IGNORED, LossOutput
from openafm.training.schedules import constant


class DirectConfig(OptimizerConfig):
    """DPO or IPO."""

    loss: Literal["dpo", "ipo"] = "dpo"
    """Which of the two."""
    beta: float = 0.1
    """Pull towards the reference. DPO takes summed log-probabilities, IPO their means over tokens."""
    lr: float = 3e-4
    """Constant learning rate."""
    steps: int = 40
    """Optimizer steps."""
    pairs_per_batch: int = 16
    """Pairs a step."""
    least_gap: float = 0.5
    """Smallest difference of rewards that makes a pair of answers both verified, or neither."""


def direct(config: DirectConfig, context: Context, *, model: Path, rollouts: Path) -> Metrics:
    """Train `model` on best against worst answers; a model folder."""
    policy = Policy.load(model)
    pairs = best_and_worst(jsonl.read(rollouts / "rollouts.jsonl"), config.least_gap)
    if not pairs:
        raise ValueError(f"{rollouts}: no two answers differ by {config.least_gap} in reward; lower least_gap")
    batches = RowBatches(
        with_reference(policy.model, pairs, context.hardware),
        rows_per_batch=config.pairs_per_batch,
        steps=config.steps,
        seed=context.seed,
    )
    optimizer = config.optimizer(policy.model)
    records = train(
        policy.model, batches, lambda model, batch: direct_loss(model, batch, config), optimizer, constant(), context
    )
    save_model(policy.model, context.out, tokenizer=model)
    write_curve(records, context.out)
    last = {name: records[-1][name] for name in ("loss", "accuracy", "margin")}
    return {"pairs": len(pairs), "steps": config.steps, **last}


def best_and_worst(rollouts: list[Row], least_gap: float) -> list[Row]:
    """Each prompt's best and worst answer, as `prompt`, `chosen` and `rejected` tokens.

    They must differ in being verified, or by `least_gap` in reward.
    """
    return [
        {"prompt": row["prompt_tokens"], "chosen": answers[0]["tokens"], "rejected": answers[-1]["tokens"]}
        for row, answers in by_prompt(rollouts)
        if answers[0]["passed"] > answers[-1]["passed"] or answers[0]["reward"] - answers[-1]["reward"] >= least_gap
    ]


def with_reference(model: Transformer, pairs: list[Row], hardware: Hardware) -> list[Row]:
    """Rows of training data that carry the reference's log-probabilities of both answers."""
    rows: list[Row] = [{} for _ in pairs]
    for side in ("chosen", "rejected"):
        log_probs = token_log_probs(model, [(pair["prompt"], pair[side]) for pair in pairs], hardware)
        for row, pair, values in zip(rows, pairs, log_probs, strict=True):
            row |= answer_row(pair["prompt"], pair[side], f"_{side}") | {f"reference_{side}": sum(values)}
    return rows


def direct_loss(model: Transformer, batch: Batch, config: DirectConfig) -> LossOutput:
    """DPO's or IPO's loss of a batch of pairs; `margin` is log pi/ref of the chosen less of the rejected answer."""
    targets = torch.cat((batch["targets_chosen"], batch["targets_rejected"]))
    policy = sequence_log_probs(model(torch.cat((batch["inputs_chosen"], batch["inputs_rejected"]))), targets)
    reference = torch.cat((batch["reference_chosen"], batch["reference_rejected"]))
    if config.loss == "ipo":  # it regresses to a fixed gap 1 / (2 beta), which is only sensible a token
        tokens = (targets != IGNORED).sum(-1)
        policy, reference = policy / tokens, reference / tokens
    (chosen, rejected), (chosen_ref, rejected_ref) = policy.chunk(2), reference.chunk(2)
    loss = {"dpo": dpo, "ipo": ipo}[config.loss](chosen, rejected, chosen_ref, rejected_ref, config.beta)
    margin = ((chosen - chosen_ref) - (rejected - rejected_ref)).detach()
    metrics = {"accuracy": float((margin > 0).float().mean()), "margin": float(margin.mean())}
    return LossOutput(loss, len(margin), metrics)
