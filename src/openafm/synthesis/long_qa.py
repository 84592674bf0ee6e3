"""Synthetic long question answering (step `long_qa`): facts hidden in real documents, asked for at the end.

AFM lengthens the context on the continued mixture plus synthetic long-context QA (arXiv 2407.21075, section 3.2.3). A
sample is filler from kept documents with a few short facts at known depths; the question wants one of them, the others
are distractors of the same form. Written as JSONL to read and as token shards that pretraining mixes in.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openafm import jsonl
from openafm.data import documents as table
from openafm.stage import Config, Context, Metrics
from openafm.synthesis.tasks import words
from openafm.tokenizer import Tokenizer, load

SOURCE = "long_qa"


class LongQAConfig(Config):
    """How many long samples, and how long."""

    length: int = 1024
    """Tokens of a sample, its end mark included."""
    train: int = 60
    """Training samples."""
    heldout: int = 16
    """Held-out samples, over other documents."""
    facts: int = 3
    """Facts hidden in a sample; one is asked for."""


@dataclass(frozen=True)
class Fact:
    """A fact that no other text can tell: the code of a thing of a colour."""

    thing: str
    code: str

    @property
    def sentence(self) -> str:
        """How it stands in the text."""
        return f"\nThe code of the {self.thing} is {self.code}.\n"

    @property
    def question(self) -> str:
        """How it is asked for, up to the answer."""
        return f"\nQuestion: What is the code of the {self.thing}?\nAnswer: The code of the {self.thing} is"


def draw_facts(count: int, rng: random.Random) -> list[Fact]:
    """Facts about different things, with different codes."""
    things = [f"{colour} {thing}" for colour in words()["colors"] for thing in words()["objects"]]
    codes = rng.sample(range(1000, 10000), count)
    return [Fact(thing, str(code)) for thing, code in zip(rng.sample(things, count), codes, strict=True)]


@dataclass(frozen=True)
class Sample:
    """One long text with its question: tokens as they are trained on, and the same for reading."""

    tokens: list[int]
    text: str
    question: str
    answer: str
    depth: float
    """Where in the text the fact stands that is asked for, 0 at the start and 1 at the end."""


def place(filler: list[int], facts: list[Fact], depth: float, length: int, tokenizer: Tokenizer) -> Sample:
    """Hide `facts` in `filler` tokens so that the whole has exactly `length` tokens; the first fact is asked for.

    The first fact goes to `depth`, the others are spread evenly. Raises ValueError when `length` holds no filler.
    """
    encoded = [tokenizer.encode(fact.sentence) for fact in facts]
    ending = tokenizer.encode(facts[0].question) + tokenizer.encode(f" {facts[0].code}.") + [tokenizer.eos_id]
    room = length - len(ending) - sum(map(len, encoded))
    if room < len(facts):
        raise ValueError(f"long_qa: {length} tokens leave no room for text between the facts; raise `length`")
    if len(filler) < room:
        raise ValueError(f"long_qa: {len(filler)} tokens of documents cannot fill a text of {room}; add documents")
    others = [(i + 0.5) / max(1, len(facts) - 1) for i in range(len(facts) - 1)]
    places = sorted((int(where * room), number) for number, where in enumerate([depth, *others]))
    tokens, start = [], 0
    for where, number in places:
        tokens += filler[start:where] + encoded[number]
        start = where
    tokens += filler[start:room]
    return Sample(tokens + ending, tokenizer.decode(tokens), facts[0].question.strip(), facts[0].code, depth)


def _samples(config: LongQAConfig, split: str, filler: list[int], tokenizer: Tokenizer, seed: int) -> list[Sample]:
    """The samples of a split: depths evenly over the text, filler from successive places of the documents."""
    rng, count = random.Random(f"{seed}/long_qa/{split}"), getattr(config, split)
    found = []
    for number in range(count):
        start = number * config.length % max(1, len(filler) - config.length)
        depth = (number + 0.5) / count
        facts = draw_facts(config.facts, rng)
        found.append(place(filler[start : start + config.length], facts, depth, config.length, tokenizer))
    return found


def _filler(documents: Path, tokenizer: Tokenizer, split: str, tokens: int, seed: int) -> list[int]:
    """Tokens of kept prose documents in seeded order; one document in ten is the held-out samples'."""
    rows = [row for row in table.rows(documents) if row["flow"] != "code"]
    chosen = [row for i, row in enumerate(rows) if (i % 10 == 0) == (split == "heldout")]
    random.Random(f"{seed}/long_qa/filler").shuffle(chosen)
    found: list[int] = []
    for row in chosen:
        found += tokenizer.encode(row["text"] + "\n\n")
        if len(found) >= tokens:
            break
    return found


def long_qa(config: LongQAConfig, context: Context, *, documents: Path, tokenizer: Path) -> Metrics:
    """Make `long_qa.jsonl`, `heldout.jsonl` and token shards `<split>/long_qa.bin` with offsets and `index.json`."""
    reader = load(tokenizer)
    dtype = "uint16" if reader.vocab_size <= 65_536 else "uint32"
    index: dict[str, dict[str, dict[str, int]]] = {}
    for split in context.track(("train", "heldout"), "long questions"):
        wanted = (getattr(config, split) + 1) * config.length
        filler = _filler(documents, reader, split, wanted, context.seed)
        samples = _samples(config, split, filler, reader, context.seed)
        jsonl.write(context.out / ("long_qa.jsonl" if split == "train" else "heldout.jsonl"), _rows(samples, split))
        index[split] = {SOURCE: _write_shard(samples, context.out / split, dtype)}
    whole = {"vocab_size": reader.vocab_size, "dtype": dtype, "splits": index}
    (context.out / "index.json").write_text(json.dumps(whole, indent=1) + "\n")
    return {split: entry[SOURCE] for split, entry in index.items()} | {"length": config.length}


def _rows(samples: list[Sample], split: str) -> list[dict[str, object]]:
    return [
        {"id": f"long_qa-{split}-{i}", "text": s.text, "question": s.question, "answer": s.answer, "depth": s.depth}
        for i, s in enumerate(samples)
    ]


def _write_shard(samples: list[Sample], folder: Path, dtype: str) -> dict[str, int]:
    """Write one split in the shards' format; every sample is one document that ends with the end mark."""
    folder.mkdir()
    tokens = np.array(
        [token for sample in samples for token in sample.tokens], dtype=f"<{dtype[0]}{int(dtype[4:]) // 8}"
    )
    tokens.tofile(folder / f"{SOURCE}.bin")
    offsets = np.cumsum([0] + [len(sample.tokens) for sample in samples]).astype("<i8")
    np.save(folder / f"{SOURCE}.offsets.npy", offsets, allow_pickle=False)
    size = sum(len((s.text + s.question + s.answer).encode()) for s in samples)
    return {"tokens": len(tokens), "documents": len(samples), "bytes": size}
