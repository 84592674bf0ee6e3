"""Measure a model after a stage of the recipe (steps `evaluate_*`; `openafm evaluate` is `openafm.evaluation.suite`).

Bits per byte and next-token top-1 accuracy on held-out text of every flow, accuracy on held-out verified problems,
loss by position and needle retrieval for long contexts, a few samples: each value with its n and 95% interval, in
`evaluation.json`. Windows and problems are the same for every model of a recipe; what each gave is kept beside the
table (`windows.jsonl`, `answers.jsonl`), so that two models can be compared pair by pair.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openafm import jsonl
from openafm.engine import TorchEngine
from openafm.evaluation.intervals import Estimate, rate, ratio
from openafm.evaluation.needle import retrieval
from openafm.evaluation.windows import (
    Window,
    held_out,
    held_out_flows,
    loss_by_position,
    measure,
    windows,
    write_windows,
)
from openafm.model import Transformer
from openafm.sampling.sampler import TorchSampler
from openafm.scoring.checks import passes
from openafm.stage import Config, Context, Metrics
from openafm.tokenizer import Tokenizer

TOLD = (("bits_per_byte/all", "bits per byte", ".3f"), ("top1/all", "top-1", ".1%"), ("task/all", "tasks", ".1%"))
"""What the terminal says of a model: metric, name, format."""


class EvaluateConfig(Config):
    """What is measured, and on how much."""

    name: str = ""
    """The stage's name in tables and reports; the model folder's name where empty."""
    adapter: str = ""
    """The package's adapter to switch on, or none."""
    sequence_length: int = 256
    """Tokens of a window of held-out text."""
    tokens_per_flow: int = 4096
    """Most held-out tokens read of each flow."""
    problems_per_task: int = 32
    """Most held-out problems of each task, the first of the file; 0 leaves the tasks out."""
    answer_tokens: int = 32
    """Longest greedy answer to a problem, in tokens."""
    long_length: int = 0
    """Context, in tokens, of loss by position and needle retrieval; 0 leaves both out."""
    long_windows: int = 8
    """Windows for loss by position, from the flow with the most held-out text."""
    needle_questions: int = 12
    """Needle questions at each depth."""
    needle_depths: tuple[float, ...] = (0.1, 0.5, 0.9)
    """Where the needle lies: 0 the start of the context, 1 its end."""
    needle_lengths: tuple[int, ...] = ()
    """Shorter contexts, in tokens, to hide needles in too: retrieval over depth and length."""
    sample_prompts: tuple[str, ...] = ("The function returns",)
    """Texts the model continues, for reading."""
    sample_tokens: int = 48
    """Length of each sample, in tokens."""
    batch: int = 64
    """Problems answered together."""


def evaluate(
    config: EvaluateConfig, context: Context, *, model: Path, shards: Path, examples: Path | None = None
) -> Metrics:
    """Measure the model folder or `.afm` package `model`; `examples` holds `heldout.jsonl` of verified problems."""
    sampler = open_model(model, config.adapter, config.batch)
    measured = text_windows(config, context, sampler.model, sampler.tokenizer, shards)
    write_windows(measured, context.out / "windows.jsonl")
    estimates = text_estimates(measured)
    if examples is not None and config.problems_per_task:
        estimates |= task_estimates(config, context, sampler, examples)
    if config.long_length:
        estimates |= long_estimates(config, context, sampler.model, sampler.tokenizer, shards)
    result = {
        "model": config.name or model.name,
        "parameters": sampler.model.config.parameters,
        "rows": [row(metric, estimate) for metric, estimate in estimates.items()],
        "samples": samples(config, sampler),
    }
    (context.out / "evaluation.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    told = [f"{name} {estimates[metric].value:{form}}" for metric, name, form in TOLD if metric in estimates]
    values = {metric: rounded(estimate.value) for metric, estimate in estimates.items()}
    return {"headline": ", ".join(told), **values}


def open_model(path: Path, adapter: str = "", batch: int = 64) -> TorchSampler:
    """The model in a model folder or an `.afm` package, one of its adapters on or none, to score and to sample."""
    engine = TorchEngine.load(path)
    return TorchSampler(engine.use(adapter or None), engine.tokenizer, batch)


def text_windows(
    config: EvaluateConfig, context: Context, model: Transformer, tokenizer: Tokenizer, shards: Path
) -> list[Window]:
    """Run the held-out windows of every flow through the model."""
    check_vocabulary(model, shards)
    found: list[Window] = []
    for flow in context.track(held_out_flows(shards), "held-out text"):
        tokens = held_out(shards, flow)
        count = max(1, config.tokens_per_flow // config.sequence_length)
        found += measure(model, tokenizer, flow, windows(tokens, config.sequence_length, count))
    return found


def check_vocabulary(model: Transformer, shards: Path) -> None:
    """Raise ValueError when `shards` were cut with another vocabulary than the model's."""
    size = json.loads((shards / "index.json").read_text())["vocab_size"]
    if size != model.config.vocab_size:
        raise ValueError(
            f"{shards} holds tokens of a vocabulary of {size}, the model has {model.config.vocab_size}: "
            "evaluate it on shards made with its own tokenizer"
        )


def text_estimates(found: list[Window]) -> dict[str, Estimate]:
    """Bits per byte and top-1 accuracy, by flow and over all windows."""
    estimates = {}
    flows = sorted({window.flow for window in found})
    for flow in [*flows, "all"]:
        part = [window for window in found if flow in (window.flow, "all")]
        bits = [window.nats / math.log(2) for window in part]
        estimates[f"bits_per_byte/{flow}"] = ratio(bits, [window.bytes for window in part])
        estimates[f"top1/{flow}"] = ratio([window.correct for window in part], [window.tokens for window in part])
    return estimates


def task_estimates(
    config: EvaluateConfig, context: Context, sampler: TorchSampler, examples: Path
) -> dict[str, Estimate]:
    """Share of held-out problems answered rightly by greedy decoding, by task and over all; answers are kept."""
    problems = held_out_problems(examples, config.problems_per_task)
    answers: list[dict[str, Any]] = []
    for task in context.track(sorted(problems), "tasks"):
        prompts = [problem["messages"] for problem in problems[task]]
        made = sampler.sample(prompts, max_tokens=config.answer_tokens, temperature=0.0)
        for problem, (answer,) in zip(problems[task], made, strict=True):
            # An answer cut off is not an answer, whatever a checker finds in it: as in post-training.
            passed = answer.finished and passes(problem, answer.text)
            verdict = {
                "id": problem["id"], "task": task, "question": problem["messages"][-1]["content"],
                "reference": problem["answer"], "answer": answer.text, "passed": passed,
            }  # fmt: skip
            answers.append(verdict)
    jsonl.write(context.out / "answers.jsonl", answers)
    estimates = {}
    for task in [*sorted(problems), "all"]:
        verdicts = [answer["passed"] for answer in answers if task in (answer["task"], "all")]
        estimates[f"task/{task}"] = rate(sum(verdicts), len(verdicts))
    return estimates


def held_out_problems(examples: Path, count: int) -> dict[str, list[dict[str, Any]]]:
    """The first `count` checkable problems of each task in `heldout.jsonl`."""
    path = examples / "heldout.jsonl"
    if not path.exists():
        raise ValueError(
            f"{path} is missing: give an Examples artifact with held-out problems, as step sft_mixture makes"
        )
    problems: dict[str, list[dict[str, Any]]] = {}
    for problem in jsonl.read(path):
        if problem["check"] is not None:
            problems.setdefault(problem["task"], []).append(problem)
    if not problems:
        raise ValueError(f"{path} holds no problem with a check: nothing to measure tasks on")
    return {task: listed[:count] for task, listed in problems.items()}


def long_estimates(
    config: EvaluateConfig, context: Context, model: Transformer, tokenizer: Tokenizer, shards: Path
) -> dict[str, Estimate]:
    """Loss by position and needle retrieval by depth, in the flow with the most held-out text."""
    context.report("long context", 0, 2)
    tokens = max((held_out(shards, flow) for flow in held_out_flows(shards)), key=len)
    rows = windows(tokens, config.long_length, config.long_windows)
    estimates = {
        f"loss_at/{bucket}": ratio(nats, [1.0] * len(nats)) for bucket, nats in loss_by_position(model, rows).items()
    }
    context.report("long context", 1, 2)
    for length in (config.long_length, *config.needle_lengths):
        prefix = "needle" if length == config.long_length else f"needle_at/{length}"
        needles = retrieval(
            model, tokenizer, tokens, length=length, depths=config.needle_depths,
            questions=config.needle_questions, seed=context.seed,
        )  # fmt: skip
        estimates |= {f"{prefix}/{depth:g}": estimate for depth, estimate in needles.items()}
    return estimates


def samples(config: EvaluateConfig, sampler: TorchSampler) -> list[dict[str, str]]:
    """Greedy continuations of the configured prompts."""
    if not config.sample_prompts:
        return []
    made = sampler.sample(config.sample_prompts, max_tokens=config.sample_tokens, temperature=0.0)
    return [
        {"prompt": prompt, "text": answer.text} for prompt, (answer,) in zip(config.sample_prompts, made, strict=True)
    ]


def row(metric: str, estimate: Estimate) -> dict[str, Any]:
    """One line of `evaluation.json`."""
    figures = {name: rounded(value) for name, value in asdict(estimate).items()}
    return {"metric": metric, **figures}


def rounded(value: float | None) -> float | None:
    """Six digits: what is beyond is not measured."""
    return value if value is None or isinstance(value, int) else round(value, 6)
