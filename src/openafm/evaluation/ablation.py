"""All models of an ablation on the same held-out text and tasks (step `measure` of recipes/ablations).

Each model is an artifact of a training step; arm, seed, hyper-parameters and cost are read off the manifests of its
step and of those before it. What each gave goes to `ablation.json`, a line a model; `ablation_table` makes table,
figure and verdicts of it (openafm.reporting.ablation). Of an arm that varies in a hyper-parameter the models of its
best value are measured, chosen by the loss at the end of training, so that no held-out text chose.
"""

import fnmatch
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from openafm.evaluation.continuations import accuracy, questions
from openafm.evaluation.evaluate import (
    EvaluateConfig,
    long_estimates,
    open_model,
    rounded,
    text_estimates,
    text_windows,
)
from openafm.evaluation.windows import held_out, held_out_flows
from openafm.model.config import load_config
from openafm.sampling.sampler import TorchSampler
from openafm.stage import Config, Context, Metrics

Row = dict[str, Any]
RESULT = "ablation.json"
FORWARD, TRAIN = 2, 6
"""Operations a weight and token, of reading and of training (arXiv 2001.08361, section 2.1)."""


class AblationConfig(Config):
    """Which models are compared, and on what."""

    arms: dict[str, str]
    """Name of each arm -> pattern of its steps' names; one model a seed and value of `x`."""
    x: Literal["", "lr", "batch_tokens", "sequence_length"] = ""
    """The key of the training steps' config that varies within an arm; the best value of each arm is measured."""
    teacher: str = ""
    """Pattern of the steps whose cost is the teacher's."""
    measure: EvaluateConfig = EvaluateConfig(tokens_per_flow=32_768)
    """Held-out text."""
    continuations: int = 250
    """Questions of each flow: which continuation is the text's own?"""


def ablation(config: AblationConfig, context: Context, *, models: dict[str, Path], shards: Path) -> Metrics:
    """Measure the models; writes `ablation.json`. Models measured before a kill are not measured again."""
    rows = [_row(config, arm, models[step]) for step, arm in arms_of(config.arms, list(models)).items()]
    chosen = best_rows(rows) if config.x else rows
    for row in context.track(chosen, "measure"):
        kept = context.scratch / f"{row['step']}.json"
        if not kept.exists():
            kept.write_text(json.dumps(_measured(config, context, models[row["step"]], shards)))
        row["metrics"] = json.loads(kept.read_text())
        if config.x:
            same = [other for other in rows if (other["arm"], other["seed"]) == (row["arm"], row["seed"])]
            row["metrics"] |= {"sensitivity": rounded(sensitivity(same)), "optimum": rounded(optimum(same))}
    result = {"x": config.x, "arms": list(config.arms), "rows": rows}
    (context.out / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    return {"models": len(rows), "headline": f"{len(chosen)} models of {len(config.arms)} arms measured"}


def arms_of(patterns: dict[str, str], steps: list[str]) -> dict[str, str]:
    """Step -> its arm. Raises ValueError where a pattern fits no step, or two fit one."""
    found: dict[str, str] = {}
    for arm, pattern in patterns.items():
        fitting = fnmatch.filter(steps, pattern)
        if not fitting:
            raise ValueError(f"arm {arm!r}: no model's step is called like {pattern!r}; there are: {', '.join(steps)}")
        if doubled := [step for step in fitting if step in found]:
            raise ValueError(f"step {doubled[0]!r} is of the arms {found[doubled[0]]!r} and {arm!r}: name arms apart")
        found |= dict.fromkeys(fitting, arm)
    return found


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of each arm's best x: where the mean training loss at the end is lowest.

    A value of x at which a run diverged, or that not all of the arm's seeds have, is not chosen.
    """
    chosen: list[Row] = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        by_x: dict[float, list[Row]] = {}
        for row in rows:
            if row["arm"] == arm:
                by_x.setdefault(row["x"], []).append(row)
        whole = max(map(len, by_x.values()))
        ends = {
            x: sum(row["end_loss"] for row in group) / len(group)
            for x, group in by_x.items()
            if len(group) == whole and not any(row["diverged"] for row in group)
        }
        if ends:
            chosen += by_x[min(ends, key=lambda x: ends[x])]
    return chosen


def sensitivity(rows: Sequence[Row]) -> float:
    """How much the loss at the end of one seed's runs lies above their best, a mean over all x (arXiv 2309.14322, 2).

    A loss counts no higher than that of a guess among all tokens; so does a run that diverged.
    """
    ends: list[float] = [row["guess"] if row["diverged"] else min(row["end_loss"], row["guess"]) for row in rows]
    return sum(ends) / len(ends) - min(ends)


def optimum(rows: Sequence[Row]) -> float:
    """log2 of one seed's best x: the vertex of the parabola through the lowest end loss and its two neighbours.

    Where the lowest is the first or last x, that x: the true one may lie beyond.
    """
    ends = sorted((math.log2(row["x"]), row["end_loss"]) for row in rows if not row["diverged"])
    at = min(range(len(ends)), key=lambda i: ends[i][1])
    if at in (0, len(ends) - 1):
        return ends[at][0]
    (x0, y0), (x1, y1), (x2, y2) = ends[at - 1 : at + 2]
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    return (x0 + x1) / 2 - left * (x2 - x0) / 2 / (right - left) if right > left else x1


def _row(config: AblationConfig, arm: str, model: Path) -> Row:
    """One model: what it is, and what it cost."""
    manifest, shape = _manifest(model), load_config(model)
    student, teacher = cost(model, config.teacher)
    row = {
        "arm": arm, "step": model.name, "seed": manifest["seed"], "parameters": shape.parameters,
        "guess": rounded(math.log(shape.vocab_size)),
        "student_flops": student, "teacher_flops": teacher,
        "end_loss": manifest["metrics"].get("final_cross_entropy"),
        "diverged": manifest["metrics"].get("diverged", False), "metrics": {},
    }  # fmt: skip
    if config.x:
        row["x"] = manifest["config"][config.x]
    return row


def _measured(config: AblationConfig, context: Context, model: Path, shards: Path) -> dict[str, float | None]:
    sampler = open_model(model)
    windows = text_windows(config.measure, context, sampler.model, sampler.tokenizer, shards)
    estimates = text_estimates(windows)
    if config.measure.long_length:
        estimates |= long_estimates(config.measure, context, sampler.model, sampler.tokenizer, shards)
    values = {metric: rounded(estimate.value) for metric, estimate in estimates.items()}
    return values | _continuations(config, context, sampler, shards)


def _continuations(
    config: AblationConfig, context: Context, sampler: TorchSampler, shards: Path
) -> dict[str, float | None]:
    if not config.continuations:
        return {}
    found = {}
    for flow in held_out_flows(shards):
        asked = questions(held_out(shards, flow), config.continuations, context.seed)
        if len(asked):
            found[f"continuation/{flow}"] = accuracy(sampler.model, asked)
    right = sum(estimate.value * estimate.n for estimate in found.values())
    values = {metric: rounded(estimate.value) for metric, estimate in found.items()}
    return values | {"continuation/all": rounded(right / sum(estimate.n for estimate in found.values()))}


def cost(model: Path, teacher: str) -> tuple[float, float]:
    """Floating-point operations of all training behind `model`: the student's, and those of steps like `teacher`.

    6 a weight and token of training, 2 of reading; a step that several models share counts whole for each.
    """
    totals = [0.0, 0.0]
    for name in sorted(_ancestors(model, set())):
        step = model.parent / name
        manifest = _manifest(step)
        if manifest["stage"] in ("pretrain", "learn_masks"):
            tokens = manifest["metrics"].get("tokens", manifest["config"].get("tokens"))
            spent = TRAIN * load_config(step).parameters * tokens
        elif manifest["stage"] == "cache_teacher":
            read = model.parent / manifest["inputs"]["model"]["step"]
            spent = FORWARD * load_config(read).parameters * manifest["metrics"]["tokens"]
        else:
            continue
        totals[fnmatch.fnmatch(name, teacher)] += spent
    return totals[0], totals[1]


def _ancestors(model: Path, found: set[str]) -> set[str]:
    """The step of `model` and all that it came from."""
    if model.name not in found:
        found.add(model.name)
        for entry in _manifest(model)["inputs"].values():
            if entry["step"]:
                _ancestors(model.parent / entry["step"].partition("/")[0], found)
    return found


def _manifest(step: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((step / "manifest.json").read_text())
    return manifest
