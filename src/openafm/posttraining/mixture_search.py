"""Mixture weights searched as AFM does (arXiv 2407.21075, section 4.2.1): each moved up and down, small parts dropped.

Step `mixture_search` trains the current mixture and, for every part i, the mixtures with w_i + delta and w_i - delta
for the same few tokens, and counts the same validation problems that each gets right. In one round:

1. w_i moves to the better side, where that gains more answers than one standard error of the paired difference;
2. a part whose two moves both stay within one standard error has little impact: a trial without it follows, and the
   part is dropped unless that loses more than one standard error;
3. the moves and drops are trained together, and are the next mixture if at least as many answers are right as before;
   else the search ends.

When one weight moves, the others keep their ratios, and all sum to 1.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from openafm import jsonl
from openafm.posttraining.examples import write_json
from openafm.posttraining.mixture import mix
from openafm.posttraining.policy import rate
from openafm.posttraining.sft import ArmsConfig, trial
from openafm.stage import Context, Metrics

Weights = dict[str, float]
Trial = Callable[[Weights], list[bool]]
"""Trains a mixture and tells, for each validation problem, whether it is then answered rightly."""


class SearchConfig(ArmsConfig):
    """How the mixture is searched."""

    weights: dict[str, float] = Field(default_factory=dict)
    """Where it begins: part -> weight. Empty: the parts as the training examples have them."""
    delta: float = Field(default=0.1, gt=0, lt=1)
    """How far a weight moves; the weights sum to 1."""
    rounds: int = Field(default=1, ge=1)
    """Most rounds."""
    keep: tuple[str, ...] = ()
    """Parts that are never dropped: those whose worth no program can check, such as what people wrote."""


def mixture_search(config: SearchConfig, context: Context, *, model: Path, examples: Path) -> Metrics:
    """Write `train_searched.jsonl` beside the splits as they are, `chosen.json` for step `sft`, and `search.json`."""
    rows, validation = (jsonl.read(examples / f"{name}.jsonl") for name in ("train", "validation"))
    start = config.weights or dict(sorted(Counter(row["part"] for row in rows).items()))
    if sum(weight > 0 for weight in start.values()) < 2:
        raise ValueError(f"{examples}: one part alone ({', '.join(start)}) is no mixture to search")
    trials: list[dict[str, Any]] = []

    def measured(weights: Weights) -> list[bool]:
        """Train this mixture and note the trial; whether each validation problem is then answered rightly."""
        mixed = mix(rows, weights, len(rows), f"{context.seed}/search")
        passed, facts = trial(config, context, model, mixed, validation, f"{len(trials) + 1}")
        trials.append({"weights": weights, **rate(sum(passed), len(passed)), **facts})
        return passed

    found, rounds = search(normal(start), measured, config)
    for name in ("train", "validation", "heldout"):
        shutil.copy(examples / f"{name}.jsonl", context.out / f"{name}.jsonl")
    jsonl.write(context.out / "train_searched.jsonl", mix(rows, found, len(rows), f"{context.seed}/searched"))
    write_json(context.out / "chosen.json", {"arm": "searched", "weights": found})
    write_json(context.out / "search.json", {"rounds": rounds, "trials": trials})
    told = ", ".join(f"{part} {weight:.2f}" for part, weight in found.items())
    return {"headline": f"{len(trials)} trials; {told}", "weights": found, "rounds": rounds, "trials": len(trials)}


def search(weights: Weights, measured: Trial, config: SearchConfig) -> tuple[Weights, list[dict[str, Any]]]:
    """The mixture found from `weights`, and what each round saw."""
    rounds: list[dict[str, Any]] = []
    before = measured(weights)
    for _ in range(config.rounds):
        if sum(weight > 0 for weight in weights.values()) < 2:
            break
        parts = {part: judge_part(part, weights, before, measured, config) for part in weights}
        wanted = {part: seen["to"] for part, seen in parts.items()}
        if wanted == weights or not any(wanted.values()):
            rounds.append({"parts": parts, "taken": False})
            break
        after = normal(wanted)
        passed = measured(after)
        taken = sum(passed) >= sum(before)
        rounds.append({"parts": parts, "weights": after, "change": gain(before, passed), "taken": taken})
        if not taken:
            break
        weights, before = after, passed
    return weights, rounds


def judge_part(
    part: str, weights: Weights, before: Sequence[bool], measured: Trial, config: SearchConfig
) -> dict[str, Any]:
    """What one weight should come to (`to`), and why: it `moved`, `stays`, is `dropped`, or small but `needed`."""
    weight = weights[part]
    targets = [to for to in (weight + config.delta, max(0.0, weight - config.delta)) if to < 1 and to != weight]
    gains = {to: gain(before, measured(moved(weights, part, to))) for to in targets}
    best = max(gains, key=lambda to: gains[to][0])
    seen = {"from": weight, "moves": [[to, *found] for to, found in gains.items()]}
    if gains[best][0] > gains[best][1]:
        return {**seen, "to": best, "verdict": "moved"}
    small = all(abs(change) <= error for change, error in gains.values())
    if not small or part in config.keep or weight == 0:
        return {**seen, "to": weight, "verdict": "stays"}
    change, error = gains.get(0.0) or gain(before, measured(moved(weights, part, 0.0)))
    needed = change < -error
    return {**seen, "without": [change, error], "to": weight if needed else 0.0,
            "verdict": "needed" if needed else "dropped"}  # fmt: skip


def gain(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    """How many more of the problems are right, as a share, and the standard error of this paired difference."""
    changes = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    return round(float(changes.mean()), 5), round(float(changes.std() / len(changes) ** 0.5), 5)


def moved(weights: Weights, part: str, to: float) -> Weights:
    """The mixture with one weight set; the others keep their ratios."""
    rest = (1 - to) / (1 - weights[part])
    return {name: to if name == part else weight * rest for name, weight in weights.items()}


def normal(weights: Weights) -> Weights:
    """The weights with a sum of 1. Raises ValueError where one is negative, or none above 0."""
    if min(weights.values()) < 0 or sum(weights.values()) <= 0:
        raise ValueError(f"weights {weights}: none may be negative, and one must be above 0")
    return {part: weight / sum(weights.values()) for part, weight in weights.items()}
