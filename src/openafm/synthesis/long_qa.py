"""Synthetic long question answering (step `long_qa`): facts hidden in real documents, asked for at the end.

AFM lengthens the context on the continued mixture plus synthetic long-context QA (arXiv 2407.21075, section 3.2.3). A
sample is text of the training shards with short facts spread over it, each asked for at the end, in another order: all
of them are distractors to one another. Written as JSONL to read and as token shards that pretraining mixes in.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openafm import jsonl
from openafm.stage import Config, Context, Metrics
from openafm.synthesis.tasks import words
from openafm.tokenizer import Tokenizer, load

SOURCE = "long_qa"


class LongQAConfig(Config):
    """How many long samples, and how long."""

    length: int = 1024
    """Tokens of a sample, its end mark included."""
    train: int = 300
    """Training samples."""
    heldout: int = 16
    """Held-out samples, over held-out text."""
    facts: int = 8
    """Facts hidden in a sample and asked for."""


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
    """One long text with its questions: tokens as they are trained on, and the text for reading."""

    tokens: list[int]
    text: str
    asked: list[tuple[Fact, float]]
    """The facts in the order of the questions, each with its depth: 0 at the start of the text and 1 at the end."""


def place(
    filler: list[int], facts: list[tuple[Fact, float]], asked: list[int], length: int, tokenizer: Tokenizer
) -> Sample:
    """Hide `facts` in `filler` tokens, each at its depth, so that the whole has exactly `length` tokens.

    `asked` numbers the facts that the questions at the end want, in that order. Raises ValueError when `length` holds
    no filler.
    """
    encoded = [tokenizer.encode(fact.sentence) for fact, _ in facts]
    ending: list[int] = []
    for number in asked:
        ending += tokenizer.encode(facts[number][0].question) + tokenizer.encode(f" {facts[number][0].code}.")
    ending.append(tokenizer.eos_id)
    room = length - len(ending) - sum(map(len, encoded))
    if room < len(facts):
        raise ValueError(f"long_qa: {length} tokens leave no room for text between the facts; raise `length`")
    if len(filler) < room:
        raise ValueError(f"long_qa: {len(filler)} tokens of documents cannot fill a text of {room}; add documents")
    tokens, start = [], 0
    for where, number in sorted((int(depth * room), number) for number, (_, depth) in enumerate(facts)):
        tokens += filler[start:where] + encoded[number]
        start = where
    tokens += filler[start:room]
    return Sample(tokens + ending, tokenizer.decode(tokens), [facts[number] for number in asked])


def _samples(config: LongQAConfig, split: str, filler: np.ndarray, tokenizer: Tokenizer, seed: int) -> list[Sample]:
    """The samples of a split: filler from anywhere in the text, facts spread evenly, asked for in any order."""
    rng = random.Random(f"{seed}/long_qa/{split}")
    found = []
    for _ in range(getattr(config, split)):
        start = rng.randrange(max(1, len(filler) - config.length))
        facts = [(fact, (i + rng.random()) / config.facts) for i, fact in enumerate(draw_facts(config.facts, rng))]
        asked = rng.sample(range(config.facts), config.facts)
        text = filler[start : start + config.length].tolist()
        found.append(place(text, facts, asked, config.length, tokenizer))
    return found


def _prose(shards: Path, split: str) -> np.ndarray:
    """All tokens of a split's flows, code left out. Training samples so hold nothing of what is held out."""
    index = json.loads((shards / "index.json").read_text())
    flows = [flow for flow in sorted(index["splits"][split]) if flow != "code"]
    return np.concatenate([np.fromfile(shards / split / f"{flow}.bin", dtype=index["dtype"]) for flow in flows])


def long_qa(config: LongQAConfig, context: Context, *, shards: Path, tokenizer: Path) -> Metrics:
    """Make `long_qa.jsonl`, `heldout.jsonl` and token shards `<split>/long_qa.bin` with offsets and `index.json`."""
    reader = load(tokenizer)
    dtype = "uint16" if reader.vocab_size <= 65_536 else "uint32"
    index: dict[str, dict[str, dict[str, int]]] = {}
    for split in context.track(("train", "heldout"), "long questions"):
        samples = _samples(config, split, _prose(shards, split), reader, context.seed)
        jsonl.write(context.out / ("long_qa.jsonl" if split == "train" else "heldout.jsonl"), _rows(samples, split))
        index[split] = {SOURCE: _write_shard(samples, context.out / split, dtype)}
    whole = {"vocab_size": reader.vocab_size, "dtype": dtype, "splits": index}
    (context.out / "index.json").write_text(json.dumps(whole, indent=1) + "\n")
    return {split: entry[SOURCE] for split, entry in index.items()} | {"length": config.length}


def _rows(samples: list[Sample], split: str) -> list[dict[str, object]]:
    return [
        {
            "id": f"long_qa-{split}-{number}",
            "text": sample.text,
            "questions": [
                {"question": fact.question.strip(), "answer": fact.code, "depth": round(depth, 4)}
                for fact, depth in sample.asked
            ],
        }
        for number, sample in enumerate(samples)
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
    size = sum(len((s.text + "".join(f"{f.question} {f.code}." for f, _ in s.asked)).encode()) for s in samples)
    return {"tokens": len(tokens), "documents": len(samples), "bytes": size}
