"""MDLOO, mirror descent with leave-one-out estimation (AFM, section 4.2.4 and appendix B; step `mdloo`).

Each iteration k draws K answers a prompt from pi_k, rewards them less a KL penalty to the SFT model, takes the
leave-one-out advantage, and does several SGD steps on the mirror-descent objective, without clipping. `algorithm` puts
another advantage and loss in the same loop: the baselines of its ablation (`openafm.posttraining.baselines`).
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from openafm import jsonl
from openafm.model import Transformer
from openafm.model.checkpoint import load_model, save_model
from openafm.posttraining.baselines import Baseline, baseline_advantages, baseline_step, token_values
from openafm.posttraining.examples import Row, RowBatches, answer_row
from openafm.posttraining.policy import Answer, OptimizerConfig, Policy, rate, token_log_probs
from openafm.posttraining.reward import MixConfig, Scorer
from openafm.posttraining.rollouts import RolloutServer, ServerConfig
from openafm.stage import Context, Hardware, Metrics
from openafm.training.alignment import (
    kl_penalised_reward,
    leave_one_out_advantage,
    policy_divergence,
    sequence_log_probs,
)
from openafm.training.alignment import mdloo as mdloo_loss
from openafm.training.batches import Batch
from openafm.training.loop import Record, train, write_curve
from openafm.training.losses import LossOutput
from openafm.training.parallel import once
from openafm.training.schedules import constant

Pair = tuple[list[int], list[int]]
"""Prompt and answer tokens."""
STALE = 2.0
"""Nats between sampler and trainer that no rounding explains: bfloat16 stays within a few tenths."""


class MdlooConfig(OptimizerConfig):
    """Reinforcement learning from rewards, by MDLOO. AFM publishes neither beta, gamma nor K."""

    algorithm: Literal["mdloo"] | Baseline = "mdloo"
    """What learns from the rewards: MDLOO, or a baseline."""
    iterations: int = 8
    """Policies pi_k sampled from."""
    prompts: int = 32
    """Problems an iteration."""
    samples: int = Field(default=8, ge=2)
    """Answers K to each."""
    steps: int = 5
    """SGD steps an iteration."""
    answers_per_batch: int = 64
    """Answers a step."""
    beta: float = 0.05
    """Weight of the KL penalty to the SFT model, in reward a nat; with GRPO in its loss."""
    gamma: float = 1.0
    """Weight of MDLOO's mirror-descent term KL(pi_theta || pi_k)."""
    clip: float = 0.2
    """How far PPO and GRPO let a token's ratio be rewarded for leaving 1."""
    lr: float = 5e-4
    """Constant learning rate."""
    max_tokens: int = 24
    """Longest answer, in tokens; problems whose reference answer is longer are left out."""
    mix: MixConfig = MixConfig()
    """How answers are rewarded."""
    server: ServerConfig = ServerConfig()
    """Where answers are drawn, if not in this process; they are then other ones on every run."""


def mdloo(
    config: MdlooConfig, context: Context, *, model: Path, reward: Path, examples: Path, reference: Path | None = None
) -> Metrics:
    """Train `model`, held near `reference`, the SFT model (`model` itself where left out); also `iterations.jsonl`.

    A killed stage goes on: answers drawn before are read from scratch, and the loop resumes the iteration it was in.
    """
    policy, anchor = Policy.load(model), load_model(reference or model)
    scorer = Scorer.load(reward, config.mix)
    train_rows = jsonl.read(examples / "train.jsonl")
    problems = policy.problems(train_rows, len(train_rows), config.max_tokens, f"{context.seed}/mdloo")
    optimizer = config.optimizer(policy.model)
    curve: list[Record] = []
    iterations: list[Row] = []
    server = RolloutServer(config.server) if config.server.url else None
    for k in range(config.iterations):
        answered = answers(policy, problems, config, context, k, server)
        pairs = [(policy.prompt(row["problem"]), row["tokens"]) for row in answered]
        rows, facts = experience(policy, anchor, scorer, answered, pairs, config, context.hardware)
        batches = RowBatches(rows, rows_per_batch=config.answers_per_batch, steps=config.steps, seed=context.seed + k)
        records = train(
            policy.model, batches, lambda model, batch: step_loss(model, batch, config), optimizer, constant(),
            context, label=f"iteration {k + 1}", log_every=1,
        )  # fmt: skip
        curve += [{"iteration": k, **record} for record in records]
        iterations.append({"iteration": k, **facts, **moved(policy, pairs, rows, context.hardware)})
        context.log("iterations", k + 1, iterations[-1])
        if server and facts["sampler_trainer_difference"] > STALE:
            context.warn(
                f"iteration {k + 1}: {config.server.url} gave a token {facts['sampler_trainer_difference']:.1f} nats "
                "more or less than the trainer: does it answer with the weights that it was told to read?"
            )
    save_model(policy.model, context.out, tokenizer=model)
    write_curve(curve, context.out)
    jsonl.write(context.out / "iterations.jsonl", iterations)
    disagreement = max(row["sampler_trainer_difference"] for row in iterations)
    first, last = iterations[0], iterations[-1]
    return {
        "headline": f"mean reward {first['reward']:.2f} -> {last['reward']:.2f}, KL to the SFT model "
        f"{last['kl_reference']:.2f} nats an answer",
        "steps": len(curve),
        "sampler_trainer_difference": disagreement,
        "first": first,
        "last": last,
    }


def answers(
    policy: Policy,
    problems: Sequence[Row],
    config: MdlooConfig,
    context: Context,
    k: int,
    server: RolloutServer | None = None,
) -> list[Row]:
    """pi_k's K answers to each of iteration k's problems, drawn once, and read from scratch ever after.

    One process draws them for all.
    """
    path = (context.shared or context.scratch) / f"answers-{k:04d}.jsonl"

    def draw() -> None:
        """Write them, each with its problem."""
        drawn = random.Random(f"{context.seed}/prompts/{k}").sample(problems, min(config.prompts, len(problems)))
        repeated = [problem for problem in drawn for _ in range(config.samples)]
        if server:
            made = server.answer(policy, repeated, config.max_tokens, context.seed + k)
        else:
            made = policy.answer(repeated, config.max_tokens, context, f"iteration {k + 1} answers")
        _write_whole(path, [{"problem": p, **vars(a)} for p, a in zip(repeated, made, strict=True)])

    once(path, draw)
    return jsonl.read(path)


def _write_whole(path: Path, rows: list[Row]) -> None:
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    jsonl.write(partial, rows)
    partial.replace(path)


def experience(
    policy: Policy,
    reference: Transformer,
    scorer: Scorer,
    answered: Sequence[Row],
    pairs: Sequence[Pair],
    config: MdlooConfig,
    hardware: Hardware,
) -> tuple[list[Row], Row]:
    """Return pi_k's answers as rows of training data with their advantages, and what they were like.

    pi_k's log-probabilities are the trainer's own, so that rho starts at exactly 1; how far the sampler's differ from
    them is `sampler_trainer_difference`, the largest |log-probability| difference of any token, in nats.
    """
    problems = [row["problem"] for row in answered]
    answers = [Answer(row["text"], row["tokens"], row["logprobs"], row["passed"]) for row in answered]
    own = token_log_probs(policy.model, pairs, hardware)
    log_probs = torch.tensor([sum(values) for values in own], dtype=torch.float64)
    anchored = token_log_probs(reference, pairs, hardware)
    reference_log_probs = torch.tensor([sum(values) for values in anchored], dtype=torch.float64)
    rewards = torch.tensor(scorer.score(problems, answers), dtype=torch.float64)
    penalised = kl_penalised_reward(rewards, log_probs, reference_log_probs, config.beta)
    by_prompt = penalised.view(-1, config.samples)
    if config.algorithm == "mdloo":
        advantages = leave_one_out_advantage(by_prompt).flatten()
    else:
        advantages = baseline_advantages(config.algorithm, rewards.view(by_prompt.shape), by_prompt).flatten()
    rows = [
        answer_row(*pair) | {"old_log_probs": old, "advantages": advantage}
        for pair, old, advantage in zip(pairs, log_probs.tolist(), advantages.tolist(), strict=True)
    ]
    if config.algorithm in ("ppo", "grpo"):
        for row, (prompt, _), old, anchor in zip(rows, pairs, own, anchored, strict=True):
            row |= token_values(prompt, old, anchor)
    tokens = sum(len(answer.tokens) for answer in answers)
    facts = {
        "reward": round(float(rewards.mean()), 5),
        "passed": rate(sum(answer.passed for answer in answers), len(answers)),
        "tokens": round(tokens / len(answers), 3),
        "entropy": round(-float(log_probs.sum()) / tokens, 5),
        "kl_reference": round(float((log_probs - reference_log_probs).mean()), 5),
        "sampler_trainer_difference": round(
            max(abs(a - b) for x, y in zip(own, answers, strict=True) for a, b in zip(x, y.logprobs, strict=True)), 7
        ),
    }
    return rows, facts


def step_loss(model: Transformer, batch: Batch, config: MdlooConfig) -> LossOutput:
    """The loss of a batch of answers by the chosen algorithm."""
    if config.algorithm == "mdloo":
        return mdloo_step(model, batch, config.gamma)
    return baseline_step(model, batch, config.algorithm, config.clip, config.beta)


def mdloo_step(model: Transformer, batch: Batch, gamma: float) -> LossOutput:
    """MDLOO's loss of a batch of answers."""
    log_probs = sequence_log_probs(model(batch["inputs"]), batch["targets"])
    loss = mdloo_loss(log_probs, batch["old_log_probs"], batch["advantages"], gamma)
    ratio = (log_probs - batch["old_log_probs"]).detach().exp()
    return LossOutput(loss, len(ratio), {"ratio": float(ratio.mean())})


def moved(policy: Policy, pairs: Sequence[Pair], rows: Sequence[Row], hardware: Hardware) -> Row:
    """How far an iteration's steps have moved the policy: KL(pi_theta || pi_k) and the ratios on pi_k's answers."""
    new = torch.tensor([sum(values) for values in token_log_probs(policy.model, pairs, hardware)], dtype=torch.float64)
    old = torch.tensor([row["old_log_probs"] for row in rows], dtype=torch.float64)
    ratio = (new - old).exp()
    return {
        "kl_last": round(float(policy_divergence(new, old)), 6),
        "ratio_mean": round(float(ratio.mean()), 5),
        "ratio_largest": round(float(ratio.max()), 5),
    }
