"""Core, continued and context-lengthening pretraining: one stage, three configurations (steps `teacher`, `distil`,
`scratch`, `continued`, `long` of a recipe).

AFM report (arXiv 2407.21075), section 3.2. Its three stages differ in data, length, schedule and RoPE base only; with
a teacher, or its tokens, the loss is the distillation loss.

Two words: a killed step **resumes** (the same command; its checkpoint has weights, optimizer, schedule and data). A new
stage **starts from** a model (`inputs: {model: STEP}`, any model folder): weights only, all else begins anew.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import load_model, save_model
from openafm.model.muparam import initialise, parameter_groups
from openafm.model.presets import Size
from openafm.pretraining.distillation import DistilBatches, open_teacher, teacher_tokens_of
from openafm.pretraining.mixture import Data, check_core
from openafm.pretraining.rope import rebase
from openafm.stage import Config, Context, Metrics
from openafm.tokenizer import load as load_tokenizer
from openafm.training.batches import Batch, Batches
from openafm.training.loop import DivergedError, Loss, Record, train, write_curve
from openafm.training.losses import LossOutput, chunked_distillation, chunked_next_token
from openafm.training.optimizers import AdamW, ClippedOptimizer, RMSPropMomentum
from openafm.training.prefetch import Prefetched
from openafm.training.schedules import Schedule, cosine


class Shape(Config):
    """The shape of a new model; its vocabulary is the tokenizer's."""

    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 32
    d_ff: int = 384
    rope_base: float = 500_000.0
    qk_norm: bool = True


class PretrainConfig(Data):
    """One pretraining stage. The defaults are AFM's core stage, except its size."""

    shape: Shape | None = None
    """Shape of a new model; left out where the step has an input `model`."""
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """RMSProp with momentum, or AdamW, the baseline of AFM's ablation (its decay was 1e-4, its floor 1% of the lr)."""
    lr: float = 0.01
    floor: float = 0.005
    """The cosine's end, as a share of `lr`."""
    warmup: float = 0.1
    """Share of the tokens over which the schedule rises."""
    weight_decay: float = 3.16e-4
    z_loss: float = 1e-6
    base_width: int = 128
    """muParam's base: the width at which `lr` was found. AFM's is 768."""
    lengthen: bool = False
    """Raise the RoPE base from the model's longest length so far to `sequence_length`."""
    may_diverge: bool = False
    """Whether training that breaks off is a result (of an ablation) and not an error: the model is kept as it is."""
    ffn: float = 1.0
    """With `size`: FFN width of a new model as a multiple of the dial's, for a teacher that is pruned to it."""

    @classmethod
    def dialled(cls, size: Size, given: dict[str, Any]) -> dict[str, Any]:
        """The dial's tokens and batch and, where the step has a `shape` (`{}` will do), a new model's."""
        full = super().dialled(size, given)
        if "shape" in given:
            shape = {
                "d_model": size.d_model, "n_layers": size.n_layers, "n_heads": size.n_heads,
                "n_kv_heads": size.n_heads // 2, "head_dim": size.head_dim,
                "d_ff": round(size.d_ff * given.get("ffn", 1.0)),
            }  # fmt: skip
            full["shape"] = shape | {name: value for name, value in given["shape"].items() if value is not None}
        return full

    @model_validator(mode="after")
    def _core_reads_no_licensed_texts(self) -> "PretrainConfig":
        if self.shape is not None:
            check_core(self)
        return self


def pretrain(
    config: PretrainConfig,
    context: Context,
    *,
    shards: Path,
    tokenizer: Path,
    model: Path | None = None,
    teacher_tokens: Path | None = None,
    teacher: Path | None = None,
    long_qa: Path | None = None,
) -> Metrics:
    """Train a new model, or start from `model`; writes a model folder with its curve.

    It distils from `teacher_tokens`, computed ahead (step `cache_teacher`), or from the model `teacher`, which then
    reads every batch on the fly. `long_qa` holds shards of synthetic long question answering, drawn from beside
    `shards`.
    """
    if teacher is not None:
        _check_teacher(config, context, teacher_tokens)
    transformer = _start(config, context, tokenizer, model)
    check_vocabulary(transformer, [shards, *([long_qa] if long_qa else [])])
    tokens = config.batches(shards, context.seed, *([long_qa] if long_qa else []))
    batches = Prefetched(tokens if teacher_tokens is None else DistilBatches(tokens, teacher_tokens, config))

    reader = open_teacher(teacher, transformer, context.hardware) if teacher else None

    def loss(network: Transformer, batch: Batch) -> LossOutput:
        """Cross-entropy, or distillation where a teacher's tokens are known, a mean over tokens in nats."""
        documents, output = batch.get("documents"), network.model.embed_tokens.weight
        hidden = network.hidden(batch["inputs"], documents=documents)
        wanted = teacher_tokens_of(reader, batch["inputs"], documents) if reader else batch.get("teacher_tokens")
        if wanted is None:
            return chunked_next_token(hidden, output, batch["targets"], config.z_loss)
        return chunked_distillation(hidden, output, batch["targets"], wanted, config.z_loss)

    total = len(tokens) * tokens.rows * config.sequence_length
    groups = parameter_groups(transformer, config.base_width)
    optimizer = {"rmsprop": RMSPropMomentum, "adamw": AdamW}[config.optimizer](groups, config.lr, config.weight_decay)
    schedule = cosine(total, round(config.warmup * total), config.floor)
    started = time.monotonic()
    curve, diverged = _trained(config, transformer, batches, loss, optimizer, schedule, context)
    context.note(share_waiting_for_batches=round(batches.waited_seconds / (time.monotonic() - started), 5))
    save_model(transformer, context.out, tokenizer)
    write_curve(curve, context.out)
    ended = tail_mean([record["cross_entropy"] for record in curve])
    return {
        "parameters": transformer.config.parameters,
        "tokens": total,
        "steps": len(tokens),
        "epochs": tokens.epochs,
        "absent": tokens.absent,
        "rope_base": transformer.config.rope_base,
        "final_cross_entropy": round(ended, 5),
        "skipped_steps": optimizer.skipped,
        **({"diverged": diverged} if config.may_diverge else {}),
        "headline": f"{transformer.config.parameters / 1e6:.2f}M parameters, {total:,} tokens, "
        f"cross-entropy {curve[0]['cross_entropy']:.2f} -> {ended:.2f} nats",
    }


def _check_teacher(config: PretrainConfig, context: Context, teacher_tokens: Path | None) -> None:
    """Raise ValueError where a model cannot be the teacher of this step."""
    if teacher_tokens is not None:
        raise ValueError("a pretraining step distils from `teacher_tokens` or from a `teacher`, not from both")
    if context.parallelism.context > 1:
        raise ValueError("a `teacher` reads whole sequences: set context: 1, or compute `teacher_tokens` ahead")
    check_core(config)  # distillation is of the core stage, whatever the model begins from


def check_vocabulary(model: Transformer, shards: Sequence[Path]) -> None:
    """Raise ValueError where tokens were made by another tokenizer than the model's: their ids mean other things."""
    for folder in shards:
        path = folder / "index.json"
        held, known = json.loads(path.read_text())["vocab_size"], model.config.vocab_size
        if held != known:
            raise ValueError(
                f"{path}: tokens of a vocabulary of {held:,}, and the model knows {known:,}: give the model's own "
                "tokenizer to the step that makes the shards, or begin with a new model (`shape`)"
            )


def _trained(
    config: PretrainConfig, model: Transformer, batches: Batches, loss: Loss, optimizer: ClippedOptimizer,
    schedule: Schedule, context: Context,
) -> tuple[list[Record], bool]:  # fmt: skip
    """The curve, and whether training broke off where that is allowed to happen."""
    try:
        return train(model, batches, loss, optimizer, schedule, context, label="pretrain"), False
    except DivergedError as end:
        if not config.may_diverge or not end.records:
            raise
        model.eval()
        return list(end.records), True


def tail_mean(values: Sequence[float]) -> float:
    """Mean of the last tenth: a record is of one batch."""
    last = values[-(len(values) // 10) - 1 :]
    return sum(last) / len(last)


def _start(config: PretrainConfig, context: Context, tokenizer: Path, model: Path | None) -> Transformer:
    if (config.shape is None) == (model is None):
        raise ValueError("a pretraining step needs either a `shape` (new model) or an input `model`, and not both")
    if model is not None:
        transformer = load_model(model)
        length = max(transformer.config.max_length, config.sequence_length)
        change: dict[str, float] = {"max_length": length}
        if config.lengthen:
            old = transformer.config.max_length
            change["rope_base"] = rebase(transformer.config.rope_base, old, config.sequence_length)
        transformer.config = transformer.config.model_copy(update=change)
        return transformer
    assert config.shape is not None
    vocabulary = load_tokenizer(tokenizer).vocab_size
    shape = ModelConfig(vocab_size=vocabulary, max_length=config.sequence_length, **config.shape.model_dump())
    return initialise(Transformer(shape), context.seed)
