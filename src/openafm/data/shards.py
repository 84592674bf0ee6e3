"""Token shards: what pretraining reads (step `shards`).

The kept documents of each flow are encoded one after the other, each ended by the end-of-text token, and split by
document into training and held-out tokens. Copies of whole documents are gone by then, but not pages that stand within
a longer page as well, or texts out of one template: a held-out document that is largely in training ones is left out.

A flow is encoded in parts of so many bytes of text, by ranges of ids, so that memory is bounded whatever its size; its
tokens go to files of at most `MOST_TOKENS`, and a killed step goes on behind the last whole flow.
"""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from openafm.data.documents import FLOWS, part_names
from openafm.data.frames import daft, kept
from openafm.data.ngrams import ngram_hashes
from openafm.stage import Config, Context, Metrics
from openafm.tokenizer import Tokenizer, load

Encoded = tuple[str, np.ndarray, int]
"""Id, tokens with the end of text, and bytes of a document."""

NGRAM = 24
"""Tokens in a row, about 13 words, that hardly stand in two texts by chance."""
PART_BYTES = 256_000_000
"""Text that is encoded and sorted at once."""
MOST_TOKENS = 2**30
"""Tokens of a file, the first of which is FLOW.bin and the next FLOW.1.bin."""
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


def _unseen(held: list[Encoded], train: Iterable[np.ndarray]) -> set[str]:
    """Held-out documents that do not largely stand in training documents; the least seen one where all do."""
    shares = dict(zip((one[0] for one in held), seen([tokens for _, tokens, _ in held], train), strict=True))
    fresh = {i for i, share in shares.items() if share < MOST_SEEN}
    return fresh or ({min(shares, key=lambda i: (shares[i], i))} if shares else set())


def token_type(vocab_size: int) -> np.dtype:
    """Little-endian uint16 where the vocabulary fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


def write_shard(folder: Path, source: str, documents: Iterable[tuple[np.ndarray, int]], dtype: np.dtype) -> Metrics:
    """Write `<source>.bin` and `<source>.offsets.npy` (int64: start of each document, and the end).

    `documents` are (tokens, bytes of text); returns {"tokens", "documents", "bytes"}, and "files" where they take more
    than one: `<source>.1.bin` and so on, each with whole documents and offsets of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: Metrics = {"tokens": 0, "documents": 0, "bytes": 0}
    waiting, files, more = iter(documents), 0, True
    while more or not files:
        name = source if not files else f"{source}.{files}"
        offsets, more = [0], False
        with (folder / f"{name}.bin").open("wb") as file:
            for tokens, text_bytes in waiting:
                file.write(tokens.astype(dtype).tobytes())
                offsets.append(offsets[-1] + len(tokens))
                found["bytes"] += text_bytes
                if offsets[-1] >= MOST_TOKENS:
                    more = True
                    break
        if files and len(offsets) == 1:  # the last file was full to the brim
            (folder / f"{name}.bin").unlink()
            break
        np.save(folder / f"{name}.offsets.npy", np.array(offsets, np.int64), allow_pickle=False)
        found["tokens"] += offsets[-1]
        found["documents"] += len(offsets) - 1
        files += 1
    return found | ({"files": files} if files > 1 else {})


def read_shard(folder: Path, source: str, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The documents of a split's source, in order, mapped rather than read."""
    paths = [folder / f"{source}.bin", *(folder / f"{source}.{n}.bin" for n in range(1, 10_000))]
    for path in itertools.takewhile(Path.exists, paths):
        offsets = np.load(path.with_suffix("").with_name(f"{path.stem}.offsets.npy"))
        tokens = np.memmap(path, dtype, "r") if offsets[-1] else np.zeros(0, dtype)
        yield from (tokens[start:end] for start, end in itertools.pairwise(offsets))


def _ranges(text_bytes: int) -> list[tuple[str, str]]:
    """Ranges of ids that hold about `PART_BYTES` of text or less each: ids are digests, so they spread evenly."""
    digits = 0
    while text_bytes > PART_BYTES * 16**digits:
        digits += 1
    edges = part_names(digits) if digits else [""]
    return list(zip(edges, [*edges[1:], "g"], strict=True))


def _encoded(documents: Path, flow: str, model: Tokenizer, text_bytes: int) -> Iterator[Encoded]:
    """A flow's kept documents, sorted by id."""

    @daft.func.batch(return_dtype=daft.DataType.list(daft.DataType.uint32()))
    def encode(texts: daft.Series) -> pa.Array:
        """Each text's token ids with the end token behind them, lists of uint32."""
        tokens = [np.array([*model.encode(text), model.eos_id], np.uint32) for text in texts.to_pylist()]
        ends = np.cumsum([0, *map(len, tokens)])
        return pa.LargeListArray.from_arrays(ends, np.concatenate(tokens) if tokens else pa.array([], pa.uint32()))

    for first, end in _ranges(text_bytes):
        frame = kept(documents, "id", "flow", "text", "bytes").where(daft.col("flow") == daft.lit(flow))
        frame = frame.where((daft.col("id") >= daft.lit(first)) & (daft.col("id") < daft.lit(end)))
        frame = frame.with_column("tokens", encode(daft.col("text"))).select("id", "tokens", "bytes")
        table = frame.sort("id").to_arrow()
        tokens = (np.asarray(row.values) for row in table["tokens"])
        yield from zip(table["id"].to_pylist(), tokens, table["bytes"].to_pylist(), strict=True)


def _write_flow(folder: Path, flow: str, encoded: Iterable[Encoded], apart: set[str], dtype: np.dtype) -> Metrics:
    """Both splits of a flow; {"train", "heldout", "left_out"}, also in FLOW.json, whose presence says it is whole."""
    done = folder / f"{flow}.json"
    if done.is_file():
        told: Metrics = json.loads(done.read_text())
        return told
    held: list[Encoded] = []

    def training() -> Iterator[tuple[np.ndarray, int]]:
        """The tokens and bytes of what is trained on; what belongs `apart` is put aside meanwhile."""
        for one in encoded:
            if one[0] in apart:
                held.append(one)
            else:
                yield one[1], one[2]

    train = write_shard(folder / "train", flow, training(), dtype)
    unseen = _unseen(held, read_shard(folder / "train", flow, dtype))
    kept_apart = ((tokens, size) for identity, tokens, size in held if identity in unseen)
    heldout = write_shard(folder / "heldout", flow, kept_apart, dtype)
    found = {"train": train, "heldout": heldout, "left_out": len(held) - len(unseen)}
    done.write_text(json.dumps(found))
    return found


def _move(scratch: Path, out: Path, flows: Iterable[str]) -> None:
    """Bring whole flows into the artifact. What says that they are whole goes first: a kill here encodes them anew."""
    for flow in flows:
        (scratch / f"{flow}.json").unlink()
        for split in ("train", "heldout"):
            (out / split).mkdir(exist_ok=True)
            for path in sorted((scratch / split).glob(f"{flow}.*")):
                path.replace(out / split / path.name)


def shards(config: ShardsConfig, context: Context, *, documents: Path, tokenizer: Path) -> Metrics:
    """Encode the kept documents of each flow into training and held-out shards.

    Writes `train/` and `heldout/` with a shard a flow, `index.json`, and the documents' last `funnel.json`. Flows
    without a document, as on a machine without npm and apt, are listed as `absent`: mixtures go on without them.
    """
    model = load(tokenizer)
    dtype = token_type(model.vocab_size)
    sizes = kept(documents, "flow", "bytes").groupby("flow").agg(daft.col("bytes").sum()).to_pydict()
    text_bytes = dict(sorted(zip(sizes["flow"], sizes["bytes"], strict=True)))
    flows = [flow for flow in text_bytes if flow in (config.flows or text_bytes)]
    if missing := sorted(set(config.flows) - set(text_bytes)):
        there = ", ".join(text_bytes) or "none"
        raise ValueError(f"{documents} keeps no document of {', '.join(missing)}; it has {there}")
    if not flows:
        raise ValueError(
            f"{documents} keeps no document at all: {documents / 'funnel.json'} says which filter dropped them, "
            "`openafm why URL` why"
        )
    splits: dict[str, dict[str, Metrics]] = {"train": {}, "heldout": {}}
    left_out: dict[str, int] = {}
    for flow in context.track(flows, "flows encoded"):
        ids = kept(documents, "id", "flow").where(daft.col("flow") == daft.lit(flow)).to_pydict()["id"]
        apart = held_out(sorted(ids), config.heldout_share, context.seed)
        encoded = _encoded(documents, flow, model, text_bytes[flow])
        found = _write_flow(context.scratch / "shards", flow, encoded, apart, dtype)
        left_out[flow] = found["left_out"]
        for split, written in splits.items():
            written[flow] = found[split]
    _move(context.scratch / "shards", context.out, flows)
    absent = sorted(set(config.flows or FLOWS) - set(flows))
    index = {"vocab_size": model.vocab_size, "dtype": dtype.name, "splits": splits, "absent": absent}
    (context.out / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    shutil.copyfile(documents / "funnel.json", context.out / "funnel.json")
    tokens = {split: _total(part) for split, part in splits.items()}
    headline = ", ".join(f"{n:,} tokens {split}" for split, n in tokens.items())
    if absent:
        headline += f"; no text of {', '.join(absent)}: in mixtures the others take its share"
    return {"headline": headline, "splits": splits, "tokens": tokens, "left_out_as_seen": left_out, "absent": absent}


def _total(part: dict[str, Metrics]) -> int:
    return sum(shard["tokens"] for shard in part.values())
