"""The reward model: a Transformer with a linear reward and four graded heads (AFM, section 4.2.2 and appendix A).

Step `reward` trains it from the SFT model on preference pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openafm import jsonl
from openafm.model import Transformer
from openafm.model.checkpoint import load_model, save_model
from openafm.model.muparam import parameter_groups, trainable_groups
from openafm.posttraining.examples import Row, RowBatches, write_json
from openafm.posttraining.policy import Answer, OptimizerConfig, rate
from openafm.scoring import checks
from openafm.stage import Config, Context, Metrics
from openafm.tokenizer import Tokenizer
from openafm.tokenizer import load as load_tokenizer
from openafm.training.alignment import graded_reward
from openafm.training.batches import Batch
from openafm.training.loop import Record, train, write_curve
from openafm.training.losses import LossOutput
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import constant

TARGETS = (0.65, 0.75, 0.85, 0.95)
"""Probability that the chosen answer is the better one, by strength 0 (negligible) to 3 (significant)."""


class RewardConfig(OptimizerConfig):
    """How the reward model is trained."""

    lr: float = 3e-3
    """Constant learning rate: the heads start from nothing."""
    epochs: float = 2.0
    """Passes over the training pairs."""
    pairs_per_batch: int = 8
    """Pairs a step."""
    grade_weight: float = 0.1
    """Weight lambda of the grades' cross-entropies."""
    targets: tuple[float, float, float, float] = TARGETS
    """Soft labels by strength; four ones make them hard."""
    dropout: float = 0.1
    """Dropout on both residual branches."""
    ensemble: int = Field(default=1, ge=1)
    """Reward models that differ in their heads' first weights, the order of pairs and dropout; rewards are averaged."""


class RewardModel(nn.Module):
    """Reads a conversation with its answer; a reward, and logits of three grades in four dimensions."""

    def __init__(self, body: Transformer, seed: int = 0):
        super().__init__()
        width = body.config.d_model
        self.body = body
        self.heads = nn.ModuleDict({"reward": nn.Linear(width, 1, bias=False)})
        for number in range(len(checks.DIMENSIONS)):
            self.heads[f"grade{number}"] = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.heads.parameters():
                scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.0
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)

    def forward(self, tokens: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards `(batch,)` and grade logits `(batch, 4, 3)` of tokens `(batch, sequence)`, padded on the right.

        The heads read the last layer at the last token that is not padding, number `last` `(batch,)`.
        """
        hidden = self.body.hidden(tokens)[torch.arange(len(tokens), device=tokens.device), last]
        grades = [self.heads[f"grade{number}"](hidden) for number in range(len(checks.DIMENSIONS))]
        return self.heads["reward"](hidden).squeeze(-1).float(), torch.stack(grades, 1).float()

    @property
    def longest(self) -> int:
        """Tokens that it can read."""
        return self.body.config.max_length

    @torch.no_grad()
    def judge(self, sequences: Sequence[list[int]], batch: int = 64) -> tuple[Tensor, Tensor]:
        """Return rewards `(n,)` and grade logits `(n, 4, 3)` of token lists, dropout off."""
        self.eval()
        device = next(self.parameters()).device
        order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
        rewards, grades = torch.zeros(len(order)), torch.zeros(len(order), len(checks.DIMENSIONS), 3)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            last = torch.tensor([len(sequences[i]) - 1 for i in rows])
            tokens = torch.zeros(len(rows), int(last.max()) + 1, dtype=torch.int64)
            for row, i in enumerate(rows):
                tokens[row, : len(sequences[i])] = torch.tensor(sequences[i])
            values, logits = self(tokens.to(device), last.to(device))
            rewards[rows], grades[rows] = values.cpu(), logits.cpu()
        return rewards, grades

    def rewards(self, sequences: Sequence[list[int]]) -> list[float]:
        """Rewards of token lists, as `conversation` makes them."""
        return self.judge(sequences)[0].tolist()

    def save(self, folder: Path, tokenizer: Path) -> None:
        """Write a model folder with the heads beside it, in `heads.safetensors`."""
        save_model(self.body, folder, tokenizer=tokenizer)
        heads = {name: tensor.contiguous().cpu() for name, tensor in self.heads.state_dict().items()}
        save_file(heads, folder / "heads.safetensors")

    @classmethod
    def load(cls, folder: Path, dropout: float = 0.0) -> "RewardModel":
        """Read a reward model's folder. Raises ValueError where the heads are missing or damaged."""
        model = cls(load_model(folder, dropout))
        path = folder / "heads.safetensors"
        try:
            model.heads.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"{path} is missing or damaged: run the step `reward` again ({error})") from error
        return model.eval()


@dataclass(frozen=True)
class Ensemble:
    """Reward models that were fitted apart: what they agree on is less a fault of one of them (arXiv 2310.02743)."""

    members: list[RewardModel]

    @property
    def longest(self) -> int:
        """Tokens that it can read."""
        return self.members[0].longest

    def judge(self, sequences: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Return the members' mean rewards `(n,)` and mean grade logits `(n, 4, 3)`."""
        rewards, grades = zip(*(member.judge(sequences) for member in self.members), strict=True)
        return torch.stack(rewards).mean(0), torch.stack(grades).mean(0)

    def rewards(self, sequences: Sequence[list[int]]) -> list[float]:
        """Mean rewards of token lists."""
        return self.judge(sequences)[0].tolist()


Judge = RewardModel | Ensemble


def load_judge(folder: Path) -> Judge:
    """Read what step `reward` made: a reward model's folder, with the others of an ensemble in `ensemble/`."""
    others = sorted((folder / "ensemble").glob("*"))
    first = RewardModel.load(folder)
    return Ensemble([first, *map(RewardModel.load, others)]) if others else first


def conversation(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], answer: str, longest: int) -> list[int]:
    """Tokens of a conversation closed by `answer`; of a longer one the last `longest`."""
    full = [*messages, {"role": "assistant", "content": answer}]
    return tokenizer.render_chat(full, add_generation_prompt=False)[-longest:]


def pair_loss(model: RewardModel, batch: Batch, grade_weight: float) -> LossOutput:
    """`graded_reward` of a batch of pairs; both answers go through the model together."""
    rewards, grade_logits = model(
        torch.cat((batch["inputs_chosen"], batch["inputs_rejected"])),
        torch.cat((batch["last_chosen"], batch["last_rejected"])),
    )
    chosen, rejected = rewards.chunk(2)
    graded = torch.stack(grade_logits.chunk(2), 1)
    loss = graded_reward(chosen, rejected, batch["target"], graded, batch["grades"], grade_weight)
    return LossOutput(loss, len(chosen), {"accuracy": float((chosen > rejected).float().mean())})


def pair_row(pair: Row, tokenizer: Tokenizer, targets: Sequence[float], longest: int) -> Row:
    """Return one preference pair as a row of training data."""
    row: Row = {"target": targets[pair["strength"]], "grades": [pair["grades_chosen"], pair["grades_rejected"]]}
    for side in ("chosen", "rejected"):
        tokens = conversation(tokenizer, pair["messages"], pair[side], longest)
        row |= {f"inputs_{side}": tokens, f"last_{side}": len(tokens) - 1}
    return row


def reward(config: RewardConfig, context: Context, *, model: Path, preferences: dict[str, Path]) -> Metrics:
    """Train the reward model from `model` on every round's pairs; a reward model's folder with `heldout.json`.

    It is judged on the newest round's held-out pairs, those of the policy that it will reward.
    """
    tokenizer = load_tokenizer(model)
    pairs = [pair for folder in preferences.values() for pair in jsonl.read(folder / "train.jsonl")]
    for number in range(1, config.ensemble + 1):
        member, records, steps = fit(config, context, model, pairs, number)
        folder = context.out if number == 1 else context.out / "ensemble" / f"{number}"
        folder.mkdir(parents=True, exist_ok=True)
        member.save(folder, tokenizer=model)
        write_curve(records, folder)
    held_out = jsonl.read(list(preferences.values())[-1] / "heldout.jsonl")
    measured = measure(load_judge(context.out), tokenizer, held_out)
    write_json(context.out / "heldout.json", measured)
    right, n = (measured["accuracy"][name] for name in ("passed", "n"))
    headline = f"{len(pairs)} pairs; the better answer found in {right} of {n} held-out pairs"
    return {"headline": headline, "pairs": len(pairs), "steps": steps, "heldout": measured}


def fit(
    config: RewardConfig, context: Context, model: Path, pairs: Sequence[Row], number: int
) -> tuple[RewardModel, list[Record], int]:
    """Train one reward model, the `number`-th of an ensemble; with its curve and its number of steps."""
    tokenizer, seed = load_tokenizer(model), context.seed + 1000 * (number - 1)
    judge = RewardModel(load_model(model, config.dropout), seed)
    rows = [pair_row(pair, tokenizer, config.targets, judge.longest) for pair in pairs]
    steps = max(1, int(config.epochs * len(rows) / config.pairs_per_batch))
    batches = RowBatches(rows, rows_per_batch=config.pairs_per_batch, steps=steps, seed=seed)
    groups = parameter_groups(judge.body, config.base_width) + trainable_groups(judge.heads)
    records = train(
        judge,
        batches,
        lambda model, batch: pair_loss(model, batch, config.grade_weight),
        RMSPropMomentum(groups, config.lr, config.weight_decay),
        constant(),
        context,
        label="train" if number == 1 else f"member {number}",
    )
    return judge, records, steps


def measure(judge: Judge, tokenizer: Tokenizer, pairs: Sequence[Row]) -> dict[str, Any]:
    """Accuracy by strength and where truth alone decides, calibration, grades and length bias on held-out pairs."""
    sides = {}
    for side in ("chosen", "rejected"):
        texts = [conversation(tokenizer, p["messages"], p[side], judge.longest) for p in pairs]
        rewards, logits = judge.judge(texts)
        sides[side] = rewards, logits.argmax(-1)
    gap = (sides["chosen"][0] - sides["rejected"][0]).tolist()
    by_strength = {}
    for level, name in enumerate(checks.STRENGTHS):
        gaps = [g for g, pair in zip(gap, pairs, strict=True) if pair["strength"] == level]
        expected = sum(1 / (1 + math.exp(-g)) for g in gaps) / max(1, len(gaps))
        by_strength[name] = {
            **rate(sum(g > 0 for g in gaps), len(gaps)), "target": TARGETS[level], "expected": round(expected, 4)
        }  # fmt: skip
    honest = [g > 0 for g, pair in zip(gap, pairs, strict=True) if differ_in_truth_alone(pair)]
    grades = [(sides[side][1], torch.tensor([p[f"grades_{side}"] for p in pairs])) for side in sides]
    hits = torch.cat([found == given for found, given in grades]).sum(0).tolist()
    return {
        "accuracy": rate(sum(g > 0 for g in gap), len(gap)),
        "by_strength": by_strength,
        "calibration": calibration(gap),
        "truth_alone": rate(sum(honest), len(honest)),
        "grades": {name: rate(hits[i], 2 * len(pairs)) for i, name in enumerate(checks.DIMENSIONS)},
        "commonest_grade": {name: commonest(grades, i) for i, name in enumerate(checks.DIMENSIONS)},
        "length_bias": length_bias(sides["chosen"][0], sides["rejected"][0], pairs),
    }


def calibration(gaps: Sequence[float], bins: int = 5) -> dict[str, Any]:
    """How far the probability of a preference can be believed, of gaps of rewards r_chosen - r_rejected.

    The side it prefers has the probability s(|gap|), from 0.5 to 1. `curve` holds, for each of `bins` equal parts of
    this range that is not empty, the mean probability and how often that side is the preferred one; `error` is the
    expected calibration error, the mean of their distances by number of pairs (arXiv 1706.04599, equation 5).
    """
    sure = 1 / (1 + np.exp(-np.abs(np.asarray(gaps, dtype=float))))
    right = np.asarray(gaps, dtype=float) > 0
    place = np.minimum(((sure - 0.5) * 2 * bins).astype(int), bins - 1)
    curve, error = [], 0.0
    for number in np.unique(place):
        inside = place == number
        curve.append(
            {"probability": round(float(sure[inside].mean()), 4), **rate(int(right[inside].sum()), int(inside.sum()))}
        )
        error += abs(float(sure[inside].mean() - right[inside].mean())) * inside.mean()
    return {"error": round(float(error), 4), "curve": curve}


def differ_in_truth_alone(pair: Row) -> bool:
    """Whether nothing but truthfulness tells the answers apart: what no judge of manners gets right."""
    truth = checks.DIMENSIONS.index("truthfulness")
    both = enumerate(zip(pair["grades_chosen"], pair["grades_rejected"], strict=True))
    return [dimension for dimension, (one, other) in both if one != other] == [truth]


def commonest(grades: Sequence[tuple[Tensor, Tensor]], dimension: int) -> float:
    """Return the share of the commonest grade in a dimension: the accuracy of guessing it always."""
    given = torch.cat([right[:, dimension] for _, right in grades])
    return round(float(torch.bincount(given, minlength=3).max()) / len(given), 4)


def length_bias(chosen: Tensor, rejected: Tensor, pairs: Sequence[Row]) -> dict[str, float | None]:
    """Correlation of reward and answer length in characters, and the labels' own: a judge should not exceed them.

    `reward` correlates the gap of rewards with the gap of lengths over pairs; `label` has the gap of points instead.
    """
    longer = np.array([len(pair["chosen"]) - len(pair["rejected"]) for pair in pairs], dtype=float)
    gaps = {"reward": (chosen - rejected).double().numpy(), "label": np.array([float(p["margin"]) for p in pairs])}
    # A pair's direction is the labels' choice: counting it both ways round leaves the length alone to explain a gap.
    return {
        name: _correlation(np.concatenate((gap, -gap)), np.concatenate((longer, -longer))) for name, gap in gaps.items()
    }


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    if len(one) == 0 or one.std() == 0 or other.std() == 0:
        return None
    return round(float(np.corrcoef(one, other)[0, 1]), 4)


class MixConfig(Config):
    """How an answer's reward is mixed of the model's and the verified one."""

    reward_weight: float = 1.0
    """Weight of the reward model."""
    verified_weight: float = 2.0
    """Added where the problem's own check accepts the answer."""


@dataclass(frozen=True)
class Scorer:
    """Rewards answers by the reward model and the verified check, each with its weight."""

    judge: Judge
    tokenizer: Tokenizer
    mix: MixConfig

    @classmethod
    def load(cls, folder: Path, mix: MixConfig) -> "Scorer":
        """Open a reward model's folder."""
        return cls(load_judge(folder), load_tokenizer(folder), mix)

    def score(self, problems: Sequence[Row], answers: Sequence[Answer]) -> list[float]:
        """Rewards of one answer to each problem."""
        longest = self.judge.longest
        texts = [
            conversation(self.tokenizer, p["messages"], a.text, longest) for p, a in zip(problems, answers, strict=True)
        ]
        return [
            self.mix.reward_weight * value + self.mix.verified_weight * answer.passed
            for value, answer in zip(self.judge.rewards(texts), answers, strict=True)
        ]
