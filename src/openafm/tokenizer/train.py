"""Train the tokenizer on the cleaned mixture (step `tokenizer`).

SentencePiece BPE with byte fallback and every digit its own token (arXiv 2407.21075, section 2.2: "AFM tokenizer").
Text is taken as it is: no normalisation, no dropped spaces, so that what is decoded is what was encoded.
"""

import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import sentencepiece

from openafm.stage import Config, Context, Metrics
from openafm.tokenizer.chat import ROLES, TEMPLATE
from openafm.tokenizer.tokenizer import CONFIG, load

PAD, UNKNOWN, BOS, EOS, END = "<pad>", "<unk>", "<bos>", "<eos>", "<|end|>"
CHUNK_CHARACTERS = 4096  # what SentencePiece sees as one sentence


class TokenizerConfig(Config):
    """Size of the vocabulary and of the sample it is learned from."""

    vocab_size: int = 2048
    """Tokens in all: special tokens, 256 bytes, characters and merges."""
    characters_per_flow: int = 1_000_000
    """Most text taken from each flow (web, code, math, licensed, public)."""
    character_coverage: float = 0.9995
    """Share of the sample's characters that are tokens of their own; the rest are spelled in bytes."""


def _kept(documents: Path, *columns: str) -> Iterator[dict[str, Any]]:
    """These columns of the kept documents, in the order of their ids, read in bounded batches."""
    for part in sorted((documents / "documents").glob("*.parquet")):
        with pyarrow.parquet.ParquetFile(part) as file:
            for batch in file.iter_batches(1024, columns=["id", "verdict", *columns]):
                yield from (row for row in batch.to_pylist() if row["verdict"] == "keep")


def _sample(documents: Path, characters: int, seed: int) -> dict[str, list[str]]:
    """Texts of kept documents by flow, in seeded order, up to `characters` each."""
    sizes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for row in _kept(documents, "flow", "text"):
        sizes[row["flow"]].append((row["id"], len(row["text"])))
    taken: dict[str, int] = {}
    for flow in sorted(sizes):
        random.Random(f"{seed}/tokenizer/{flow}").shuffle(sizes[flow])
        room = characters
        for identity, size in sizes[flow]:
            if room <= 0:
                break
            taken[identity] = min(size, room)
            room -= size
    texts = {row["id"]: row["text"][: taken[row["id"]]] for row in _kept(documents, "text") if row["id"] in taken}
    return {flow: [texts[i] for i, _ in sizes[flow] if i in texts] for flow in sorted(sizes)}


def _sentences(texts: list[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), CHUNK_CHARACTERS):
            yield text[start : start + CHUNK_CHARACTERS]


def train_sentencepiece(texts: list[str], vocab_size: int, character_coverage: float = 0.9995) -> bytes:
    """Learn a SentencePiece BPE model from `texts`; returns the model file's bytes, equal for equal texts.

    Special tokens are control symbols, which SentencePiece never produces from text. Raises ValueError when the texts
    are too small for so many tokens.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            split_digits=True,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,  # indentation of code
            max_sentence_length=4 * CHUNK_CHARACTERS,
            num_threads=1,
            shuffle_input_sentence=False,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=PAD,
            unk_piece=UNKNOWN,
            bos_piece=BOS,
            eos_piece=EOS,
            control_symbols=[f"<|{role}|>" for role in ROLES] + [END],
            minloglevel=2,
        )
    except RuntimeError as error:
        size = sum(map(len, texts))
        raise ValueError(
            f"{size:,} characters do not yield a vocabulary of {vocab_size}: lower vocab_size or add text ({error})"
        ) from error
    return model.getvalue()


def write_tokenizer(folder: Path, model: bytes) -> None:
    """Make `folder` a tokenizer folder around a SentencePiece model."""
    config = {
        "kind": "sentencepiece",
        "chat_template": TEMPLATE,
        "bos": BOS,
        "eos": EOS,
        "end_of_turn": END,
        "pad": PAD,
    }
    (folder / "tokenizer.model").write_bytes(model)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def train_tokenizer(config: TokenizerConfig, context: Context, *, documents: Path) -> Metrics:
    """Learn the vocabulary from a seeded sample of every flow's kept documents."""
    sample = _sample(documents, config.characters_per_flow, context.seed)
    texts = [text for flow in sample.values() for text in flow]
    context.report("tokenizer", 0, None)
    write_tokenizer(context.out, train_sentencepiece(texts, config.vocab_size, config.character_coverage))
    tokenizer = load(context.out)
    flows = {}
    for flow, taken in sample.items():
        part = "\n".join(taken)[:200_000]
        flows[flow] = {
            "documents": len(taken),
            "characters": sum(map(len, taken)),
            "bytes_per_token": round(len(part.encode()) / max(1, len(tokenizer.encode(part))), 4),
        }
    return {"vocab_size": tokenizer.vocab_size, "flows": flows}
