"""What dedup keeps of documents on disk: facts, addresses, shingles and keys, a folder a part; read piece by piece.

    signed/3f/facts.npy       a row a kept document: id, hash of its text, what the choice among copies goes by
    signed/3f/urls.bin        addresses, one after the other; urls.npy: where each begins
    signed/3f/shingles.bin    uint32, sorted within each document; shingles.npy: where each document's begin
    signed/3f/keys.bin        uint64, sorted: 21 bands a document; keys_of.bin: uint32, whose each is
    signed/3f/texts.bin       the same for the hashes of whole texts; texts_of.bin

A document's number is its place among all parts in their order. Since ids are hashes, any range of keys is in every
part, and since they are sorted, it is one slice of each: that is the shuffle.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import xxhash

from openafm.data.documents import FLOWS, Row, batches
from openafm.data.minhash import BANDS, band_keys, signatures
from openafm.data.ngrams import shingles

NGRAM = 5
PLANTED = ("", "exact_copy", "near_copy")
FACTS = np.dtype(
    [("id", "S16"), ("text", "<u8", 2), ("size", "<u4"), ("licensed", "?"), ("flow", "u1"), ("planted", "u1")]
)
"""`text`: xxHash of the text but for case and white space; `planted`: place in PLANTED, 255 for other dirt."""
COLUMNS = ("id", "url", "flow", "licence", "planted", "verdict", "text")


def text_hash(text: str) -> tuple[int, int]:
    """The two halves of the hash of a text; case and white space make no difference."""
    digest = xxhash.xxh3_128_intdigest(" ".join(text.casefold().split()).encode("utf-8", "surrogatepass"))
    return digest >> 64, digest & (2**64 - 1)


def _facts(row: Row) -> tuple[Any, ...]:
    planted = row["planted"] or ""
    mark = PLANTED.index(planted) if planted in PLANTED else 255
    licensed, flow = bool(row["licence"]), FLOWS.index(row["flow"])
    return row["id"].encode(), text_hash(row["text"]), len(row["text"]), licensed, flow, mark


class Sign:
    """Writes the signed folder of a part; a part is whole or absent."""

    def __init__(self, out: str) -> None:
        self.out = Path(out)

    def __call__(self, part: str) -> dict[str, Any]:
        """Sign a part; its name, how many documents it keeps, the planted copies among them, and a hash of it all."""
        folder = self.out / Path(part).stem
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial, (batch for batch in batches(Path(part), COLUMNS)))
            partial.replace(folder)
        facts = np.load(folder / "facts.npy")
        planted = np.bincount(facts["planted"], minlength=len(PLANTED))
        check = xxhash.xxh3_64_hexdigest((folder / "keys.bin").read_bytes() + facts.tobytes())
        return {
            "part": folder.name,
            "documents": len(facts),
            "planted": planted[: len(PLANTED)].tolist(),
            "hash": check,
        }


def write(folder: Path, tables: Iterator[Any]) -> None:
    """Sign the kept documents of these tables into a folder."""
    facts, keys = [np.zeros(0, FACTS)], [np.zeros((0, BANDS), np.uint64)]
    url_sizes, shingle_sizes = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    with (folder / "urls.bin").open("wb") as urls, (folder / "shingles.bin").open("wb") as grams:
        for table in tables:
            rows = table.filter(pc.equal(table["verdict"], "keep")).to_pylist()
            found, offsets = shingles([row["text"] for row in rows], NGRAM)
            found.tofile(grams)
            keys.append(band_keys(signatures(found, offsets)))
            facts.append(np.array([_facts(row) for row in rows], FACTS))
            addresses = [row["url"].encode("utf-8", "surrogatepass") for row in rows]
            urls.write(b"".join(addresses))
            url_sizes.append(np.array(list(map(len, addresses)), np.int64))
            shingle_sizes.append(np.diff(offsets))
    all_facts, counts = np.concatenate(facts), np.concatenate(shingle_sizes)
    np.save(folder / "facts.npy", all_facts)
    np.save(folder / "urls.npy", np.cumsum(np.concatenate(url_sizes)))
    np.save(folder / "shingles.npy", np.cumsum(counts))
    owners = np.repeat(np.arange(len(all_facts), dtype=np.uint32), BANDS)
    some = np.repeat(counts[1:] > 0, BANDS)  # what has no word resembles nothing
    write_sorted(folder / "keys", np.concatenate(keys).ravel()[some], owners[some])
    write_sorted(folder / "texts", all_facts["text"][:, 0], np.arange(len(all_facts), dtype=np.uint32))


def write_sorted(path: Path, keys: np.ndarray, owners: np.ndarray) -> None:
    """Write `<path>.bin`, the keys in order, and `<path>_of.bin`, whose each is."""
    order = np.argsort(keys, kind="stable")
    keys[order].tofile(path.with_name(f"{path.name}.bin"))
    owners[order].tofile(path.with_name(f"{path.name}_of.bin"))


class Signed:
    """The signed documents of some folders, older ones first; `old` says how many documents are of earlier runs."""

    def __init__(self, folders: Sequence[str], old: int = 0) -> None:
        self.folders, self.old = [Path(folder) for folder in folders], old
        counts = [len(np.load(folder / "facts.npy", mmap_mode="r")) for folder in self.folders]
        self.starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def slices(self, name: str, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """(entries,) uint64 keys from `low` to below `high` of all folders, and (entries,) int64 document numbers."""
        keys, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for folder, start in zip(self.folders, self.starts, strict=False):
            path = folder / f"{name}.bin"
            with path.open("rb") as file:
                count = path.stat().st_size // 8
                first, last = (bisect(file, count, bound) for bound in (low, high))
            keys.append(np.fromfile(path, np.uint64, last - first, offset=first * 8))
            owners = np.fromfile(folder / f"{name}_of.bin", np.uint32, last - first, offset=first * 4)
            numbers.append(owners.astype(np.int64) + start)
        return np.concatenate(keys), np.concatenate(numbers)

    def facts(self, numbers: np.ndarray) -> np.ndarray:
        """(numbers,) FACTS of documents whose numbers ascend."""
        bounds = np.searchsorted(numbers, self.starts)
        found = [np.zeros(0, FACTS)]
        for part, folder in enumerate(self.folders):
            if len(some := numbers[bounds[part] : bounds[part + 1]]):
                found.append(np.load(folder / "facts.npy")[some - self.starts[part]])
        return np.concatenate(found)

    def sets(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shingles of these documents, and where each document's begin."""
        found = [np.frombuffer(blob, np.uint32) for blob in self._blobs("shingles", numbers, 4)]
        return np.concatenate([np.zeros(0, np.uint32), *found]), np.cumsum([0, *map(len, found)])

    def urls(self, numbers: np.ndarray) -> list[str]:
        """Addresses of these documents."""
        return [blob.decode("utf-8", "surrogatepass") for blob in self._blobs("urls", numbers, 1)]

    def _blobs(self, name: str, numbers: np.ndarray, size: int) -> list[bytes]:
        """A stretch of `<name>.bin` (entries of `size` bytes) for each document, read folder by folder."""
        found: list[bytes] = [b""] * len(numbers)
        parts = np.searchsorted(self.starts, numbers, side="right") - 1
        for part in np.unique(parts):
            folder = self.folders[part]
            offsets = np.load(folder / f"{name}.npy", mmap_mode="r")
            with (folder / f"{name}.bin").open("rb") as file:
                for at in np.flatnonzero(parts == part):
                    place = int(numbers[at] - self.starts[part])
                    file.seek(int(offsets[place]) * size)
                    found[at] = file.read(int(offsets[place + 1] - offsets[place]) * size)
        return found


def bisect(file: Any, count: int, bound: int) -> int:
    """How many of the `count` sorted uint64 of a file are below `bound`."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        file.seek(middle * 8)
        if int.from_bytes(file.read(8), "little") < bound:
            low = middle + 1
        else:
            high = middle
    return low
