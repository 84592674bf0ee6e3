"""Step `recovery`: the accuracy-recovery adapter, 16-bit LoRA on every linear layer of the frozen quantized model.

AFM (arXiv 2407.21075, section 5.1) trains it through the pretraining and post-training recipe. The control is the same
adapter on the unquantized model: what it gains there is more training, not recovery. One run serves several ranks: each
step trains the first so many components, the number drawn anew (nested dropout, Rippel et al., arXiv 1402.0915).
"""

import random
from collections.abc import Callable, Mapping
from copy import deepcopy
from math import log
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from openafm import jsonl
from openafm.adapters.lora import adapter_state, attach, load_adapter, truncated, use_rank
from openafm.adapters.store import Adapter, AdapterStore
from openafm.compression.calibration import Windows, compare, nats, read_windows, readings
from openafm.compression.feedback import corrected, damped
from openafm.compression.objective import TextConfig, output_loss, text_batches
from openafm.compression.package import add_adapter, sizes
from openafm.engine.package import open_package
from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.model.muparam import trainable_groups
from openafm.scoring import intervals
from openafm.stage import Context, Hardware, Metrics
from openafm.tokenizer import load as load_tokenizer
from openafm.training.batches import Batches, ExampleBatches, TokenBatches, tokenize_examples
from openafm.training.loop import train
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import cosine

NAME, CONTROL = "recovery", "control"


class RecoveryConfig(TextConfig):
    """The adapter, and the text that trains it."""

    rank: int = 16
    alpha: float = 16.0
    nested: tuple[int, ...] = ()
    """Smaller ranks that the adapter's first components serve alone; the package carries each as `recovery-RANK`."""
    start: Literal["residual", "zero"] = "residual"
    """From the best rank-`rank` fit of what quantization lost, or from B = 0."""
    example_tokens: int = 20_000
    """Tokens of post-training examples after them, where the step has that input."""
    arm: str = ""
    """Mixture arm of the examples (`train_ARM.jsonl`); empty takes `train.jsonl`, or the first arm without it."""


def recovery(
    config: RecoveryConfig, context: Context, *, package: Path, model: Path, shards: Path, examples: Path | None = None
) -> Metrics:
    """Train the adapter on the package's model, and its control.

    Writes the package with the adapter in it, and the control as an adapter store, `control/`.
    """
    torch.set_num_threads(context.hardware.threads)
    _check_ranks(config)
    source = open_package(package)
    base, quantized = load_model(model).requires_grad_(False), source.model().requires_grad_(False)
    data, too_long = _batches(config, context, shards, examples, source.folder)
    windows = read_windows(shards, "heldout", config.sequence_length, config.heldout_tokens)
    before = compare(quantized, base, windows)
    start_adapter(config, context, base, quantized, shards)
    started = nats(quantized, windows)
    state = fit_adapter(quantized, base, data, config, context, "recovery")
    after = compare(quantized, base, windows)
    described = ", ".join(f"{size} {label} tokens" for label, _, size in data)
    control = before.base
    if config.loss != "kl":  # with KL alone the untouched model is already the optimum
        adapted = load_model(model)
        attach(adapted, config.rank, config.alpha, seed=context.seed)
        store, fitted = AdapterStore(context.out / CONTROL), fit_adapter(adapted, base, data, config, context, CONTROL)
        store.save(CONTROL, Adapter(fitted, config.rank, config.alpha, None, described))
        _save_nested(store, CONTROL, fitted, config)
        control = nats(adapted, windows)
    losses = {
        "base": before.base,
        "base_and_adapter": control,
        "quantized": before.model,
        "quantized_and_start": started,
        "quantized_and_adapter": after.model,
    }
    to_bits = windows.predicted / log(2) / windows.bytes
    metrics = {
        "rank": config.rank,
        "heldout_tokens": windows.predicted,
        "heldout_windows": len(before.kl),
        "training_tokens": {label: size for label, _, size in data},
        "examples_too_long": too_long,
        "bits_per_byte": {name: round(float(np.mean(values)) * to_bits, 5) for name, values in losses.items()},
        "kl_quantized": round(float(np.mean(before.kl)), 6),
        "kl_adapted": round(float(np.mean(after.kl)), 6),
        **regained(before.model, after.model, control, context.seed),
    }
    result = add_adapter(source, context.out, NAME, Adapter(state, config.rank, config.alpha, None, described, metrics))
    _save_nested(result.adapters, NAME, state, config)
    kl = f"KL {metrics['kl_quantized']:.4f} -> {metrics['kl_adapted']:.4f}"
    share = metrics["regained"]
    told = "no loss of log-loss to be seen" if share is None else f"{share:.0%} of the lost log-loss regained"
    return {"headline": f"{kl}; {told}", **metrics, **sizes(result)}


def _check_ranks(config: RecoveryConfig) -> None:
    if not all(0 < rank < config.rank for rank in config.nested):
        raise ValueError(f"nested ranks {config.nested} must lie between 0 and the rank {config.rank}")


def _save_nested(store: AdapterStore, name: str, state: Mapping[str, Tensor], config: RecoveryConfig) -> None:
    """Save the first components of the adapter `name` as adapters of their own."""
    for rank in config.nested:
        cut, alpha = truncated(state, config.alpha, rank)
        store.save(f"{name}-{rank}", Adapter(cut, rank, alpha, None, f"the first {rank} components of {name}"))


def start_adapter(
    config: RecoveryConfig, context: Context, base: Transformer, quantized: Transformer, shards: Path
) -> None:
    """Put the adapter's first values on the quantized model."""
    if config.start == "zero":
        attach(quantized, config.rank, config.alpha, seed=context.seed)
        return
    windows = read_windows(shards, "train", config.sequence_length, config.calibration_tokens)
    load_adapter(
        quantized, residual_adapter(base, quantized, windows, config.rank, config.alpha, context.hardware), config.alpha
    )


@torch.no_grad()
def residual_adapter(
    base: Transformer, quantized: Transformer, windows: Windows, rank: int, alpha: float, hardware: Hardware
) -> dict[str, Tensor]:
    """Return the adapter that brings each projection's outputs closest to what the base's would be there.

    With R = W' - W_q, W' the weight that also makes up for the layers before (`corrected`), and the inputs' Gram matrix
    G = L L^T, the mean squared error is |(R - scale B A) L|^2, so A and B come from the truncated SVD of R L (Eckart
    and Young, 1936); components stand in the order of what they restore. Each layer's adapter is in place when the
    next one's inputs are read.
    """
    state, weights = {}, base.linears()
    model = deepcopy(quantized)
    linears = model.linears()
    for reading in readings(base, model, windows, hardware):
        root = torch.linalg.cholesky(damped(reading.gram))
        for name in reading.names:
            layer = linears[name]
            residual = corrected(weights[name].weight, reading).double() - layer.weight.double()
            u, s = leading(residual @ root, rank)
            share = (rank / alpha / s).sqrt()
            b = u * (share * s)
            a = share[:, None] * (u.T @ residual)  # S V^T L^-1 is U^T R
            layer.weight.data = layer.weight + (alpha / rank * b @ a).float()
            missing = rank - len(s)  # a layer narrower than the rank, or a residual of a lower one
            state[f"{name}.lora_a"] = torch.nn.functional.pad(a, (0, 0, 0, missing)).float()
            state[f"{name}.lora_b"] = torch.nn.functional.pad(b, (0, missing)).float()
    return state


def leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the first `count` left singular vectors (rows, count) and values of a float64 matrix, or all it has.

    From the eigenvectors of M M^T or M^T M, whichever is smaller, in a third of the time of a whole SVD or less. Values
    below 1e-7 of the largest, the square root of float64's precision, are taken for zero.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    s = squares.flip(0)[:count].clamp(min=0).sqrt()
    kept = int((s > 1e-7 * s[0]).sum())
    s, vectors = s[:kept], vectors.flip(1)[:, :kept]
    return (matrix @ vectors / s if tall else vectors), s


def regained(quantized: list[float], adapted: list[float], control: list[float], seed: int) -> Metrics:
    """Return (q - (q + adapter)) / (q - (base + adapter)) in log-loss, with its 95% bootstrap interval over windows."""
    rows = np.stack([quantized, adapted, control], axis=1)

    def share(sample: np.ndarray) -> float:
        """The regained share of some windows, `(windows, 3)` nats: quantized, adapted, control."""
        q, a, c = sample.mean(0)
        return float((q - a) / (q - c))

    lost = (rows[:, 0] - rows[:, 2]).tolist()
    shown = intervals.mean(lost)[0] if len(lost) > 1 else lost[0]
    if shown <= 0:  # quantization lost nothing that shows: a share of it would be a share of chance
        return {"regained": None, "regained_interval": None}
    interval = intervals.bootstrap(rows, share, seed=seed)
    return {"regained": round(share(rows), 5), "regained_interval": [round(x, 5) for x in interval]}


Data = list[tuple[str, Batches, int]]
"""Label, batches, tokens of each phase."""


def _batches(
    config: RecoveryConfig, context: Context, shards: Path, examples: Path | None, folder: Path
) -> tuple[Data, int]:
    phases, left_out = text_phase(config, context, shards), 0
    if examples is not None and config.example_tokens:
        tokenizer = load_tokenizer(folder)
        pairs, left_out = tokenize_examples(
            read_examples(_training_file(examples, config.arm)), tokenizer, config.sequence_length + 1
        )
        batches = ExampleBatches(
            pairs,
            tokens=config.example_tokens,
            pad_id=tokenizer.pad_id,
            sequence_length=config.sequence_length,
            batch_tokens=config.batch_tokens,
            seed=context.seed,
        )
        phases.append(_phase("post-training", batches, config))
    return phases, left_out


def text_phase(config: RecoveryConfig, context: Context, shards: Path) -> Data:
    """The phase of pretraining text alone."""
    return [_phase("pretraining", text_batches(config, context, shards), config)]


def _phase(label: str, batches: TokenBatches | ExampleBatches, config: RecoveryConfig) -> tuple[str, Batches, int]:
    return label, batches, len(batches) * batches.rows * config.sequence_length


def _training_file(examples: Path, arm: str) -> Path:
    if arm:
        return examples / f"train_{arm}.jsonl"
    arms = sorted(examples.glob("train_*.jsonl"))
    whole = examples / "train.jsonl"
    return arms[0] if arms and not whole.exists() else whole


def read_examples(path: Path) -> list[dict[str, Any]]:
    """Read chat examples. Raises ValueError naming the file and the line that is none."""
    rows = jsonl.read(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("messages"), list) or not isinstance(row.get("answer"), str):
            raise ValueError(f"{path}:{number} is no example with messages and answer: correct it")
    return rows


def fit_adapter(
    model: Transformer, base: Transformer, data: Data, config: RecoveryConfig, context: Context, label: str
) -> dict[str, Tensor]:
    """Train the adapter on `model` phase by phase, each with a cosine over its own tokens; returns it.

    It is left on the model as rounded to the float16 it is stored in: what is measured is what is shipped.
    """
    loss = output_loss(config.loss, base)
    for phase, batches, tokens in data:
        name = f"{label}-{phase}"
        optimizer = RMSPropMomentum(trainable_groups(model), config.lr)
        schedule = cosine(tokens, round(config.warmup * tokens), config.floor)
        draw = _rank_drawer(config, context.seed, name)
        train(model, batches, loss, optimizer, schedule, context, label=name, before_step=draw)
    state = adapter_state(model)
    load_adapter(model, state, config.alpha)
    return state


def _rank_drawer(config: RecoveryConfig, seed: int, label: str) -> Callable[[Transformer, int], None] | None:
    """What sets the rank that a step trains, drawn from all that are served; a pure function of the step."""
    if not config.nested:
        return None
    ranks = sorted({*config.nested, config.rank})
    return lambda model, step: use_rank(model, random.Random(f"{seed}/{label}/rank/{step}").choice(ranks))
