"""Token shards: what pretraining reads (step `shards`).

The kept documents of each flow are encoded one after the other, each ended by the end-of-text token, and split by
document into training and held-out tokens. Copies of whole documents are gone by then, but not pages that stand within
a longer page as well, or texts out of one template: a held-out document that is largely in training ones is left out.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from openafm.data.documents import FLOWS
from openafm.data.frames import daft, kept
from openafm.data.ngrams import ngram_hashes
from openafm.stage import Config, Context, Metrics
from openafm.tokenizer import load

NGRAM = 24
"""Tokens in a row, about 13 words, that hardly stand in two texts by chance."""
MOST_SEEN = 0.2
"""Share of a held-out document's n-grams in training documents from which on it is not unseen."""


class ShardsConfig(Config):
    """What is held out."""

    heldout_share: float = 0.03
    """Share of each flow's documents that is never trained on, chosen by a hash of their ids; before those are left out
    that largely stand in training documents. 1 holds out all."""
    flows: tuple[str, ...] = ()
    """Flows to encode; empty takes all that there are."""


def held_out(ids: list[str], share: float, seed: int) -> set[str]:
    """The ids whose hash is in the lowest `share` of all hashes, at least one of two or more.

    A document's place does not depend on the other documents, so a larger crawl holds out a superset. The id is hashed
    anew: it is a digest itself, and what came before may have chosen by it.
    """
    hashed = {i: xxhash.xxh3_64_intdigest(f"heldout/{seed}/{i}".encode()) for i in ids}
    chosen = {i for i in ids if hashed[i] < share * 2**64}
    return chosen or ({min(ids, key=lambda i: hashed[i])} if len(ids) > 1 and share > 0 else set())


def seen(held: Sequence[np.ndarray], train: Iterable[np.ndarray]) -> list[float]:
    """Share of each held-out document's `NGRAM`s that stand in a training document, too; 0 for shorter documents."""
    grams = [np.unique(ngram_hashes(tokens.astype(np.uint64), NGRAM)) for tokens in held]
    known = np.unique(np.concatenate([np.zeros(1, np.uint64), *grams]))
    found = np.zeros(len(known), bool)
    for tokens in train:
        others = ngram_hashes(tokens.astype(np.uint64), NGRAM)
        places = np.minimum(np.searchsorted(known, others), len(known) - 1)
        found[places[known[places] == others]] = True
    return [float(found[np.searchsorted(known, part)].mean()) if len(part) else 0.0 for part in grams]


def _unseen(encoded: list[tuple[str, np.ndarray, int]], apart: set[str]) -> set[str]:
    """Those of `apart` that do not largely stand in training documents; the least seen one where all do."""
    held = [(identity, tokens) for identity, tokens, _ in encoded if identity in apart]
    train = (tokens for identity, tokens, _ in encoded if identity not in apart)
    shares = dict(zip((i for i, _ in held), seen([tokens for _, tokens in held], train), strict=True))
    fresh = {i for i, share in shares.items() if share < MOST_SEEN}
    return fresh or ({min(shares, key=lambda i: (shares[i], i))} if shares else set())


def token_type(vocab_size: int) -> np.dtype:
    """Little-endian uint16 where the vocabulary fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


def write_shard(folder: Path, source: str, documents: Iterable[tuple[np.ndarray, int]], dtype: np.dtype) -> Metrics:
    """Write `<source>.bin` and `<source>.offsets.npy` (int64: start of each document, and the end).

    `documents` are (tokens, bytes of text); returns {"tokens", "documents", "bytes"}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    offsets, size = [0], 0
    with (folder / f"{source}.bin").open("wb") as file:
        for tokens, text_bytes in documents:
            file.write(tokens.astype(dtype).tobytes())
            offsets.append(offsets[-1] + len(tokens))
            size += text_bytes
    np.save(folder / f"{source}.offsets.npy", np.array(offsets, np.int64), allow_pickle=False)
    return {"tokens": offsets[-1], "documents": len(offsets) - 1, "bytes": size}


def _encoded(documents: Path, flow: str, tokenizer: Path) -> list[tuple[str, np.ndarray, int]]:
    """(id, tokens with the end of text, bytes) of a flow's kept documents, sorted by id."""
    model = load(tokenizer)

    @daft.func.batch(return_dtype=daft.DataType.list(daft.DataType.uint32()))
    def encode(texts: daft.Series) -> pa.Array:
        tokens = [np.array([*model.encode(text), model.eos_id], np.uint32) for text in texts.to_pylist()]
        ends = np.cumsum([0, *map(len, tokens)])
        return pa.LargeListArray.from_arrays(ends, np.concatenate(tokens) if tokens else pa.array([], pa.uint32()))

    frame = kept(documents, "id", "flow", "text", "bytes").where(daft.col("flow") == daft.lit(flow))
    frame = frame.with_column("tokens", encode(daft.col("text"))).select("id", "tokens", "bytes")
    table = frame.sort("id").to_arrow()
    tokens = [np.asarray(row.values) for row in table["tokens"]]
    return list(zip(table["id"].to_pylist(), tokens, table["bytes"].to_pylist(), strict=True))


def _split(encoded: list[tuple[str, np.ndarray, int]], ids: set[str]) -> Iterator[tuple[np.ndarray, int]]:
    return ((tokens, size) for identity, tokens, size in encoded if identity in ids)


def shards(config: ShardsConfig, context: Context, *, documents: Path, tokenizer: Path) -> Metrics:
    """Encode the kept documents of each flow into training and held-out shards.

    Writes `train/` and `heldout/` with a shard a flow, `index.json`, and the documents' last `funnel.json`. Flows
    without a document, as on a machine without npm and apt, are listed as `absent`: mixtures go on without them.
    """
    vocab_size = load(tokenizer).vocab_size
    dtype = token_type(vocab_size)
    found = sorted(set(kept(documents, "flow").to_pydict()["flow"]))
    flows = [flow for flow in found if flow in (config.flows or found)]
    if missing := sorted(set(config.flows) - set(found)):
        raise ValueError(f"{documents} keeps no document of {', '.join(missing)}; it has {', '.join(found) or 'none'}")
    splits: dict[str, dict[str, Metrics]] = {"train": {}, "heldout": {}}
    left_out: dict[str, int] = {}
    for flow in context.track(flows, "flows encoded"):
        encoded = _encoded(documents, flow, tokenizer)
        ids = {identity for identity, _, _ in encoded}
        apart = held_out(sorted(ids), config.heldout_share, context.seed)
        unseen = _unseen(encoded, apart)
        left_out[flow] = len(apart) - len(unseen)
        for split, chosen in (("train", ids - apart), ("heldout", unseen)):
            splits[split][flow] = write_shard(context.out / split, flow, _split(encoded, chosen), dtype)
    absent = sorted(set(config.flows or FLOWS) - set(flows))
    index = {"vocab_size": vocab_size, "dtype": dtype.name, "splits": splits, "absent": absent}
    (context.out / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    shutil.copyfile(documents / "funnel.json", context.out / "funnel.json")
    tokens = {split: _total(part) for split, part in splits.items()}
    headline = ", ".join(f"{n:,} tokens {split}" for split, n in tokens.items())
    if absent:
        headline += f"; no text of {', '.join(absent)}: in mixtures the others take its share"
    return {"headline": headline, "splits": splits, "tokens": tokens, "left_out_as_seen": left_out, "absent": absent}


def _total(part: dict[str, Metrics]) -> int:
    return sum(shard["tokens"] for shard in part.values())
