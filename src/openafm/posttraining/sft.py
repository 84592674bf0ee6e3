"""Supervised fine-tuning: chat examples with masked prompts, constant learning rate, dropout (AFM, section 4.2.1).

Steps `sft_arms` (a short trial of each mixture arm), `sft`, `sft_best` (the checkpoint by best-of-N under the reward
model) and `sft_control` (`sft` continued for as many optimizer steps as the committee's members take).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openafm import jsonl
from openafm.model import Transformer
from openafm.model.checkpoint import save_model
from openafm.posttraining.examples import Row, write_json
from openafm.posttraining.policy import OptimizerConfig, Policy, rate, token_log_probs
from openafm.posttraining.reward import MixConfig, Scorer
from openafm.stage import Config, Context, Hardware, Metrics
from openafm.training.batches import Batch, ExampleBatches, tokenize_examples
from openafm.training.loop import Record, train, write_curve
from openafm.training.losses import LossOutput, next_token
from openafm.training.schedules import constant


class FinetuneConfig(OptimizerConfig):
    """How a model is fine-tuned on examples."""

    tokens: int = 400_000
    """Training tokens, prompts and padding included."""
    batch_tokens: int = 2048
    """Tokens a step."""
    sequence_length: int = 256
    """Length of the rows into which examples are packed; longer examples are left out and counted."""
    dropout: float = 0.1
    """Dropout on both residual branches."""
    separate: bool = False
    """Whether examples packed into one row are hidden from each other."""


class SftConfig(FinetuneConfig):
    """Supervised fine-tuning."""

    arm: str = ""
    """Mixture arm to train on; empty follows the step `sft_arms`, or takes `train.jsonl` where that is no input."""
    snapshots: int = 4
    """Checkpoints kept, evenly spaced, the last one included."""


class ArmsConfig(FinetuneConfig):
    """The trial of mixture arms."""

    tokens: int = 50_000
    """Training tokens of each arm."""
    problems: int = 160
    """Validation problems that each arm answers."""
    max_tokens: int = 24
    """Longest answer, in tokens; problems whose reference answer is longer are left out."""


def token_loss(model: Transformer, batch: Batch) -> LossOutput:
    """Next-token loss on the answers."""
    return next_token(model(batch["inputs"], documents=batch.get("documents")), batch["targets"])


def finetune(
    policy: Policy,
    examples: Sequence[Row],
    config: FinetuneConfig,
    context: Context,
    *,
    label: str = "train",
    snapshots: int = 0,
    snapshot: Callable[[int], None] | None = None,
) -> tuple[list[Record], dict[str, Any]]:
    """Train the policy's model in place on examples; the curve, and what there was to train on."""
    length, longest = config.sequence_length, policy.model.config.max_length
    if length > longest:
        raise ValueError(f"sequence_length {length} is more than the {longest} tokens that the model reads: lower it")
    pairs, too_long = tokenize_examples(examples, policy.tokenizer, length + 1)
    batches = ExampleBatches(
        pairs,
        sequence_length=length,
        batch_tokens=config.batch_tokens,
        tokens=config.tokens,
        seed=context.seed,
        pad_id=policy.tokenizer.pad_id,
        separate=config.separate,
    )
    marks = sorted({len(batches) * (i + 1) // snapshots for i in range(snapshots)} - {0})
    optimizer = config.optimizer(policy.model)
    records = train(
        policy.model, batches, token_loss, optimizer, constant(), context,
        label=label, snapshot=snapshot, snapshots=marks,
    )  # fmt: skip
    facts = {"examples": len(pairs), "too_long": too_long, "steps": len(batches), "loss": records[-1]["loss"]}
    return records, facts


def sft(config: SftConfig, context: Context, *, model: Path, examples: Path, arm: Path | None = None) -> Metrics:
    """Fine-tune `model` on an arm of the mixture; a model folder, with checkpoints in `snapshots/STEP`."""
    chosen = config.arm
    if not chosen and arm is not None:
        chosen = json.loads((arm / "chosen.json").read_text())["arm"]
    rows = jsonl.read(examples / (f"train_{chosen}.jsonl" if chosen else "train.jsonl"))
    policy = Policy.load(model, config.dropout)
    kept = context.scratch / "snapshots"  # in scratch, as a killed stage loses what is in `out`

    def snapshot(step: int) -> None:
        """Save the model as it is after `step` steps, in scratch."""
        save_model(policy.model, kept / f"{step:06d}", tokenizer=model)

    records, facts = finetune(policy, rows, config, context, snapshots=config.snapshots, snapshot=snapshot)
    save_model(policy.model, context.out, tokenizer=model)
    if kept.exists():
        shutil.copytree(kept, context.out / "snapshots")
    write_curve(records, context.out)
    return {**facts, "arm": chosen or "all", "answer_loss": held_out_loss(policy, examples, config, context.hardware)}


def held_out_loss(policy: Policy, examples: Path, config: FinetuneConfig, hardware: Hardware) -> float | None:
    """Mean nats a token of the held-out examples' reference answers (the first 256 of them that fit)."""
    rows = jsonl.read(examples / "heldout.jsonl")[:256]
    pairs, _ = tokenize_examples(rows, policy.tokenizer, config.sequence_length + 1)
    nats = [-value for answer in token_log_probs(policy.model, pairs, hardware) for value in answer]
    return round(sum(nats) / len(nats), 5) if nats else None


def sft_arms(config: ArmsConfig, context: Context, *, model: Path, examples: Path) -> Metrics:
    """Train every arm for the same few tokens; `chosen.json` names the one with the most validation answers right.

    Arms are the files `train_NAME.jsonl`. Ties go to the first name.
    """
    table: dict[str, Any] = {}
    validation = jsonl.read(examples / "validation.jsonl")
    for path in sorted(examples.glob("train_*.jsonl")):
        name = path.stem.removeprefix("train_")
        passed, facts = trial(config, context, model, jsonl.read(path), validation, name)
        table[name] = {**rate(sum(passed), len(passed)), **facts}
    if not table:
        raise ValueError(f"{examples} holds no train_ARM.jsonl: give sft_mixture at least one arm")
    best = max(sorted(table), key=lambda name: table[name]["passed"])
    write_json(context.out / "chosen.json", {"arm": best, "arms": table})
    right = ", ".join(f"{name} {row['passed']}/{row['n']}" for name, row in table.items())
    return {"headline": f"validation answers right: {right}; chosen {best}", "arm": best, "arms": table}


def trial(
    config: ArmsConfig, context: Context, model: Path, rows: Sequence[Row], validation: Sequence[Row], name: str
) -> tuple[list[bool], dict[str, Any]]:
    """Train `model` on an arm's examples for a short while: which validation problems it then gets right, and facts."""
    policy = Policy.load(model, config.dropout)
    _, facts = finetune(policy, rows, config, context, label=f"arm {name}")
    problems = policy.problems(validation, config.problems, config.max_tokens, f"{context.seed}/validation")
    answers = policy.answer(problems, config.max_tokens, context, "arms", temperature=0.0)
    return [answer.passed for answer in answers], facts


class BestConfig(Config):
    """The choice of an SFT checkpoint."""

    problems: int = 128
    """Validation problems."""
    answers: int = 4
    """Answers to each: N of best-of-N."""
    max_tokens: int = 24
    """Longest answer, in tokens; problems whose reference answer is longer are left out."""


def sft_best(config: BestConfig, context: Context, *, snapshots: Path, reward: Path, examples: Path) -> Metrics:
    """Copy the checkpoint of the SFT run `snapshots` that is best by best-of-N under the reward model.

    The reward model picks one of N answers to each problem. The checkpoint with the most picks that are verified wins,
    then the one with the higher reward, then the earlier one: AFM has rewards alone, but a mean of best rewards also
    rises with a model's entropy, and favours the least trained checkpoint.
    """
    scorer = Scorer.load(reward, MixConfig(verified_weight=0.0))  # the picks are the reward model's alone
    validation = jsonl.read(examples / "validation.jsonl")
    table: dict[str, Any] = {}
    folders = sorted((snapshots / "snapshots").glob("*"))
    if not folders:
        raise ValueError(f"{snapshots} holds no checkpoints: set `snapshots` of its step to at least 1")
    for folder in folders:
        policy = Policy.load(folder)
        problems = policy.problems(validation, config.problems, config.max_tokens, f"{context.seed}/validation")
        repeated = [problem for problem in problems for _ in range(config.answers)]
        answers = policy.answer(repeated, config.max_tokens, context, "best of n")
        rewards = scorer.score(repeated, answers)
        picks = [
            max(range(i, i + config.answers), key=rewards.__getitem__) for i in range(0, len(rewards), config.answers)
        ]
        table[folder.name] = {
            "reward": round(sum(rewards[i] for i in picks) / len(picks), 5),
            "best_of_n": rate(sum(answers[i].passed for i in picks), len(picks)),
            "single": rate(sum(answer.passed for answer in answers), len(answers)),
        }
    best = max(sorted(table), key=lambda name: (table[name]["best_of_n"]["passed"], table[name]["reward"]))
    save_model(Policy.load(snapshots / "snapshots" / best).model, context.out, tokenizer=snapshots)
    write_json(context.out / "chosen.json", {"checkpoint": best, "checkpoints": table})
    return {"checkpoint": best, "checkpoints": table}
