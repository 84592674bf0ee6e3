"""Rejection sampling (AFM, section 4.2.3; step `rejection`): fine-tune on the best of the committee's answers.

The committee's answers to each prompt are ranked by reward, and the best one becomes the example to learn: this distils
what every member does best into one model.
"""

from pathlib import Path

from openafm import jsonl
from openafm.model.checkpoint import save_model
from openafm.posttraining.committee import by_prompt
from openafm.posttraining.policy import Policy
from openafm.posttraining.sft import FinetuneConfig, finetune
from openafm.stage import Context, Metrics
from openafm.training.loop import write_curve


class RejectionConfig(FinetuneConfig):
    """Fine-tuning on the best answers."""

    tokens: int = 81_920
    """Training tokens, prompts and padding included."""
    lr: float = 3e-4
    """Constant learning rate: the model has learned the tasks' form already."""
    verified_only: bool = True
    """Leave out prompts whose best answer is not verified."""


def rejection(config: RejectionConfig, context: Context, *, model: Path, rollouts: Path) -> Metrics:
    """Fine-tune `model` on each prompt's best answer; a model folder, with the answers in `best.jsonl`."""
    prompts = by_prompt(jsonl.read(rollouts / "rollouts.jsonl"))
    best = [
        {"id": row["id"], "task": row["task"], "messages": row["messages"], "answer": answers[0]["text"]}
        for row, answers in prompts
        if answers[0]["passed"] or not config.verified_only
    ]
    if not best:
        raise ValueError(f"{rollouts}: no prompt has a verified answer; train the SFT model for longer")
    jsonl.write(context.out / "best.jsonl", best)
    policy = Policy.load(model, config.dropout)
    records, facts = finetune(policy, best, config, context)
    save_model(policy.model, context.out, tokenizer=model)
    write_curve(records, context.out)
    return {"prompts": len(prompts), **facts}
