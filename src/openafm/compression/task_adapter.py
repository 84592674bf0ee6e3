"""Step `task_adapter`: a task's adapter on the compressed model, started from the recovery adapter, base frozen.

AFM (arXiv 2407.21075, section 5.2; worked example: summaries). The adapter kept is the one with the least loss on
validation examples, and training may stop early when that rises; ROUGE-L, and the task's own score where it has one,
are measured on test examples. No source (package, list) is in two of the three parts.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from openafm.adapters.lora import adapted, adapter_state, load_adapter, truncated
from openafm.adapters.store import NAME as ADAPTER_NAME
from openafm.adapters.store import Adapter, AdapterStore
from openafm.compression.package import add_adapter, sizes
from openafm.compression.recovery import NAME as RECOVERY
from openafm.compression.recovery import read_examples
from openafm.engine.package import open_package
from openafm.files import digest
from openafm.model import Transformer
from openafm.model.generate import generate
from openafm.model.muparam import trainable_groups
from openafm.scoring import intervals
from openafm.scoring.rouge import rouge_l
from openafm.scoring.written import SCORES
from openafm.stage import Config, Context, Metrics
from openafm.tokenizer import Tokenizer
from openafm.tokenizer import load as load_tokenizer
from openafm.training.batches import Batch, ExampleBatches, tokenize_examples
from openafm.training.loop import train
from openafm.training.losses import LossOutput, next_token
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import cosine

Example = dict[str, Any]
Pairs = list[tuple[list[int], list[int]]]
"""Prompt and answer tokens of examples."""


class TaskAdapterConfig(Config):
    """The adapter, its data and its judgement."""

    name: str = "summaries"
    """Name under which the package carries the adapter."""
    parent: str = RECOVERY
    """Adapter to start from."""
    rank: int | None = None
    """Rank of the adapter, at most the parent's: the package's `PARENT-RANK` where it carries one, else the parent's
    first components; None takes the parent as it is."""
    tokens: int = 50_000
    """Tokens to train on, prompts counted."""
    sequence_length: int = 256
    batch_tokens: int = 512
    lr: float = 6e-3
    floor: float = 0.05
    warmup: float = 0.1
    checks: int = 5
    """How often the validation loss is taken; the best adapter is kept."""
    patience: int | None = None
    """Checks in a row without a better validation loss that end the training; None trains to the end."""
    validation_share: float = 0.1
    """Share of the sources kept for choosing the adapter; as much again for the test, without `heldout.jsonl`."""
    test_examples: int = 64
    """Most test examples that are answered and scored."""
    max_tokens: int = 32
    """Longest answer, in tokens."""


def task_adapter(config: TaskAdapterConfig, context: Context, *, package: Path, examples: Path) -> Metrics:
    """Train the adapter on `examples.jsonl` of the folder `examples`; writes the package with it, and its answers.

    The test is `heldout.jsonl` where the folder has one (sources of its own), else it is split off.
    """
    torch.set_num_threads(context.hardware.threads)
    if not ADAPTER_NAME.fullmatch(config.name):
        raise ValueError(f"adapter name {config.name!r}: use letters, digits, '.', '_' and '-'")
    source = open_package(package)
    tokenizer, model = load_tokenizer(source.folder), source.model()
    origin, parent = start(source.adapters, config.parent, config.rank)
    parts = split(read_examples(examples / "examples.jsonl"), config.validation_share, context.seed)
    if (examples / "heldout.jsonl").exists():
        parts["train"] += parts["test"]
        parts["test"] = read_examples(examples / "heldout.jsonl")
    load_adapter(model, parent.state, parent.alpha)
    test = parts["test"][: config.test_examples]
    before = _answers(model, tokenizer, test, config.max_tokens)
    tokens, too_long = _tokenized(tokenizer, parts, config.sequence_length)
    losses, best = _fit(model, tokens, tokenizer.pad_id, config, context)
    state = load_file(_snapshot(context, best))
    load_adapter(model, state, parent.alpha)
    after = _answers(model, tokenizer, test, config.max_tokens)
    metrics = {
        "examples": {part: len(rows) for part, rows in parts.items()},
        "too_long": too_long,
        "validation_loss": {str(step): round(loss, 5) for step, loss in sorted(losses.items())},
        "kept_step": best,
        **judge(test, before, after),
        **own_score(test, {"adapter": after, "parent": before}),
    }
    with (context.out / "answers.jsonl").open("w", encoding="utf-8") as file:
        for example, old, new in zip(test, before, after, strict=True):
            row = {"id": example.get("id"), "reference": example["answer"], "parent": old, "adapter": new}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    made = Adapter(state, parent.rank, parent.alpha, origin, _described(examples, parts["train"], config), metrics)
    headline = "ROUGE-L " + ", ".join(f"{who} {metrics[f'rouge_{who}']:.3f}" for who in ("adapter", "parent", "lead_1"))
    if "score" in metrics:
        headline = f"{metrics['score']} adapter {metrics['score_adapter']:.3f}, parent {metrics['score_parent']:.3f}"
    return {"headline": headline, **metrics, **sizes(add_adapter(source, context.out, config.name, made))}


def start(store: AdapterStore, parent: str, rank: int | None) -> tuple[str, Adapter]:
    """The adapter to start from, of the rank asked for, and the name it has in the package.

    Raises ValueError where the parent's rank is smaller.
    """
    whole = store.load(parent)
    if rank is None or rank == whole.rank:
        return parent, whole
    if rank > whole.rank or rank < 1:
        raise ValueError(
            f"rank {rank}: adapter {parent!r} that training starts from has rank {whole.rank}; choose a rank of 1 to "
            f"{whole.rank}, or train a larger one first (recovery.rank)"
        )
    nested = f"{parent}-{rank}"
    if nested in store.names():
        return nested, store.load(nested)
    state, alpha = truncated(whole.state, whole.alpha, rank)
    return parent, Adapter(state, rank, alpha)


def _described(folder: Path, train: Sequence[Example], config: TaskAdapterConfig) -> str:
    """What the card says of the data: how many examples of which task and origin, the file's digest, the tokens."""
    tasks = sorted({str(example["task"]) for example in train if example.get("task")})
    origins = Counter(str(example["origin"]) for example in train if example.get("origin"))
    told = f" of {', '.join(tasks)}" if tasks else ""
    told += f" ({', '.join(f'{count} {origin}' for origin, count in sorted(origins.items()))})" if origins else ""
    sha256 = digest(folder / "examples.jsonl")[:12]
    return f"{len(train)} examples{told}, sha256 {sha256}, {config.tokens} tokens at most"


def split(examples: Sequence[Example], share: float, seed: int) -> dict[str, list[Example]]:
    """Part examples into train, validation and test by their source: all of one source go to the same part.

    The source is `source`, else the last part of `lineage`, else the id. Raises ValueError for fewer than 3 sources.
    """
    sources = sorted({_source(example) for example in examples})
    order = sorted(sources, key=lambda name: hashlib.sha256(f"{seed}/split/{name}".encode()).digest())
    held = max(1, round(share * len(order)))
    if len(order) < 3:
        raise ValueError(f"{len(order)} sources are too few for train, validation and test: give examples of 3 or more")
    part = {name: "validation" if i < held else "test" if i < 2 * held else "train" for i, name in enumerate(order)}
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in examples:
        parts[part[_source(example)]].append(example)
    return parts


def _source(example: Example) -> str:
    return str(example.get("source") or str(example.get("lineage", "")).rpartition("/")[2] or example.get("id"))


def _tokenized(
    tokenizer: Tokenizer, parts: Mapping[str, list[Example]], longest: int
) -> tuple[dict[str, Pairs], dict[str, int]]:
    """Tokenize what is trained and chosen on, and count what does not fit."""
    tokens: dict[str, Pairs] = {}
    left_out = {}
    for part in ("train", "validation"):
        tokens[part], left_out[part] = tokenize_examples(parts[part], tokenizer, longest + 1)
        if not tokens[part]:
            raise ValueError(f"no {part} example fits in {longest} tokens: raise sequence_length")
    return tokens, left_out


def _snapshot(context: Context, step: int) -> Path:
    return context.scratch / f"adapter-{step}.safetensors"


def _fit(
    model: Transformer,
    tokens: Mapping[str, Pairs],
    pad_id: int,
    config: TaskAdapterConfig,
    context: Context,
) -> tuple[dict[int, float], int]:
    """Train, keep snapshots in scratch; validation losses by step (0 is the parent), and the best step."""
    shape: dict[str, Any] = {
        "sequence_length": config.sequence_length,
        "batch_tokens": config.batch_tokens,
        "pad_id": pad_id,
    }
    batches = _Stoppable(ExampleBatches(tokens["train"], tokens=config.tokens, seed=context.seed, **shape))
    steps = sorted({len(batches) * (i + 1) // config.checks for i in range(config.checks)} | {len(batches)})
    kept = context.scratch / "validation.json"
    losses = {int(step): loss for step, loss in json.loads(kept.read_text()).items()} if kept.exists() else {}

    def loss(network: Transformer, batch: Batch) -> LossOutput:
        """Cross-entropy of the targets that count, a mean over tokens in nats."""
        return next_token(network(batch["inputs"]), batch["targets"])

    def check(step: int) -> None:
        """Keep the adapter and its validation loss; end the training where that has not fallen for long enough."""
        save_file(adapter_state(model), _snapshot(context, step))
        losses[step] = _stored_loss(model, tokens["validation"])
        kept.with_suffix(".part").write_text(json.dumps(losses))
        kept.with_suffix(".part").replace(kept)
        batches.end = _end(losses, config.patience, batches.end)

    context.scratch.mkdir(parents=True, exist_ok=True)
    if 0 in losses:
        batches.end = _end(losses, config.patience, batches.end)
    else:
        check(0)
    optimizer = RMSPropMomentum(trainable_groups(model), config.lr)
    total = len(batches.batches) * batches.batches.rows * config.sequence_length
    schedule = cosine(total, round(config.warmup * total), config.floor)
    train(model, batches, loss, optimizer, schedule, context, label="task", snapshot=check, snapshots=steps)
    return losses, min(losses, key=lambda step: (losses[step], step))


class _Stoppable:
    """Batches that may end before they are all read: the loop asks for their number at each step."""

    def __init__(self, batches: ExampleBatches):
        self.batches, self.end = batches, len(batches)

    def __len__(self) -> int:
        return self.end

    def __getitem__(self, step: int) -> Batch:
        return self.batches[step]


def _end(losses: Mapping[int, float], patience: int | None, last: int) -> int:
    """The step at which training ends: where the best loss is `patience` checks old, else the last."""
    if patience is None:
        return last
    known = sorted(losses)
    best = known.index(min(known, key=lambda step: (losses[step], step)))
    return known[best + patience] if best + patience < len(known) else last


@torch.no_grad()
def _stored_loss(model: Transformer, pairs: Pairs) -> float:
    """The validation loss of the adapter as it is stored, in float16; the trained values come back after."""
    layers = adapted(model).values()
    exact = [(layer.lora_a.detach().clone(), layer.lora_b.detach().clone()) for layer in layers]
    for layer in layers:
        layer.lora_a.copy_(layer.lora_a.half())
        layer.lora_b.copy_(layer.lora_b.half())
    found = mean_loss(model.eval(), pairs)
    for layer, (a, b) in zip(layers, exact, strict=True):
        layer.lora_a.copy_(a)
        layer.lora_b.copy_(b)
    model.train()
    return found


@torch.no_grad()
def mean_loss(model: Transformer, pairs: Pairs) -> float:
    """Return the mean loss, in nats a token, of the answers of (prompt, answer) token pairs."""
    nats = [
        F.cross_entropy(
            model(torch.tensor([prompt + answer[:-1]]))[0, -len(answer) :], torch.tensor(answer), reduction="sum"
        )
        for prompt, answer in pairs
    ]
    return float(sum(nats)) / sum(len(answer) for _, answer in pairs)


def _answers(model: Transformer, tokenizer: Tokenizer, test: Sequence[Example], max_tokens: int) -> list[str]:
    """Answer the test's prompts greedily."""
    prompts = [tokenizer.render_chat(example["messages"]) for example in test]
    stop = {tokenizer.eos_id, tokenizer.end_of_turn_id}
    made = generate(model, prompts, max_tokens=max_tokens, stop_ids=stop, temperature=0.0)
    return [tokenizer.decode(generation.tokens).strip() for generation in made]


def judge(test: Sequence[Example], before: Sequence[str], after: Sequence[str]) -> Metrics:
    """ROUGE-L of the adapter, of the parent adapter with the same prompt, and of the text's first sentence."""
    answers = {"adapter": after, "parent": before, "lead_1": [lead_1(example) for example in test]}
    scores = {
        name: [rouge_l(text, example["answer"]) for text, example in zip(texts, test, strict=True)]
        for name, texts in answers.items()
    }
    metrics: Metrics = {"rouge_n": len(test)}
    for name, values in scores.items():
        metrics[f"rouge_{name}"] = round(sum(values) / len(values), 5)
        metrics[f"rouge_{name}_interval"] = [round(x, 5) for x in intervals.bootstrap(values)]
        if name != "adapter":
            gained = [ours - theirs for ours, theirs in zip(scores["adapter"], values, strict=True)]
            metrics[f"gain_over_{name}_interval"] = [round(x, 5) for x in intervals.bootstrap(gained)]
    return metrics


def own_score(test: Sequence[Example], answers: Mapping[str, Sequence[str]]) -> Metrics:
    """The task's own score of each one's answers, where all test examples have a check with one; with 95% intervals."""
    kinds = {(example.get("check") or {}).get("kind") for example in test}
    if len(kinds) != 1 or (kind := str(kinds.pop())) not in SCORES:
        return {}
    name, score = SCORES[kind]
    metrics: Metrics = {"score": name}
    for who, texts in answers.items():
        values = [score(example, text) for example, text in zip(test, texts, strict=True)]
        metrics[f"score_{who}"] = round(sum(values) / len(values), 5)
        metrics[f"score_{who}_interval"] = [round(x, 5) for x in intervals.bootstrap(values)]
    return metrics


def lead_1(example: Example) -> str:
    """Return the first sentence of the text to summarise: the baseline that is hard to beat on news.

    The text is the `source` of the example's check, else its last turn without the instruction before the first colon.
    """
    turn = example["messages"][-1]["content"]
    text = ((example.get("check") or {}).get("source") or turn.partition(":")[2] or turn).strip()
    return re.split(r"(?<=[.!?])\s|\n", text, maxsplit=1)[0]
