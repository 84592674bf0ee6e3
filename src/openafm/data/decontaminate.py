"""Documents that hold a benchmark's items are dropped (step `decontaminate`).

AFM drops a document upon any 4- to 13-gram collision with a benchmark, unless the n-gram's collision count reaches a
"common-usage" threshold of 1000 (arXiv 2407.21075, section 3.1.1). That is `match: every`. A 4-gram of every long
question matches almost any page, so by default n follows the item, as it follows a benchmark's short items in GPT-3
(arXiv 2005.14165, appendix C): an item of 13 words or more gives its 13-grams, a shorter one is matched whole, and one
under 4 words, which cannot be told from chance, only where it is a line by itself. The collision count is the number of
documents that hold the n-gram. The threshold is AFM's for a corpus of trillions of tokens; small recipes scale it and
say so.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from openafm import jsonl
from openafm.data.documents import FOLDER, batches, drops_by_reason, parts, read, recall, write_funnel, write_part
from openafm.data.frames import Drop, each, is_light, with_verdicts
from openafm.data.ngram_index import NgramIndex
from openafm.data.precision import Hit, audit, evidence_hash
from openafm.stage import Config, Context, Metrics

__all__ = ["DecontaminateConfig", "NgramIndex", "add_item", "decontaminate", "read_benchmarks"]

STAGE = "decontaminate"


class DecontaminateConfig(Config):
    """Length of the n-grams and what counts as a common phrase."""

    min_n: int = 4
    """Items shorter than this many words are looked for as lines by themselves alone."""
    max_n: int = 13
    """Longer items are looked for by their n-grams of this many words."""
    match: Literal["item", "every"] = "item"
    """`item`: n follows the item's length; `every`: each n-gram of `min_n` to `max_n` words counts, AFM's words taken
    literally."""
    common_count: int = 1000
    """An n-gram in so many documents is a common phrase and drops none; AFM's number, to be scaled with the corpus."""

    def index(self) -> NgramIndex:
        """An empty index of these n-grams."""
        return NgramIndex(self.min_n, self.max_n, self.match == "every")


def add_item(index: NgramIndex, benchmark: str, item: dict[str, Any]) -> int:
    """Index what gives a benchmark's item away; returns its number of n-grams.

    That is `text`, or the `questions`, each by itself, and of the `answers` the long ones.
    """
    identity, answers = str(item["id"]), item.get("answers", ())
    if not isinstance(item["text"], str):
        raise ValueError("text must be a text")
    added = sum(index.add(benchmark, identity, text) for text in questions(item))
    return added + sum(index.add(benchmark, identity, text, whole=False) for text in answers)


def questions(item: dict[str, Any]) -> list[str]:
    """What a benchmark's item asks: its `questions`, or its `text` where there are none."""
    return [item["text"]] if item.get("questions") is None else list(item["questions"])


def read_benchmarks(folder: Path, index: NgramIndex) -> dict[str, dict[str, int]]:
    """Index every `<name>.jsonl` (see `add_item`) of a folder; count items, n-grams and items too short.

    Raises ValueError naming file and line of a broken item.
    """
    counts = dict[str, dict[str, int]]()
    for path in sorted(folder.glob("*.jsonl")):
        count = {"items": 0, "ngrams": 0, "too_short": 0}
        for number, item in jsonl.numbered(path.read_bytes(), str(path)):
            try:
                added = add_item(index, path.stem, item)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f'{path}:{number}: not a benchmark item {{"id", "text"}}: {error!r}') from error
            count["items"] += 1
            count["ngrams"] += added
            count["too_short"] += not added
        counts[path.stem] = count
    return counts


class _Find:
    """Looks a part's kept documents up; writes {"id", "url", "flow", "ngrams"} of those that hold any."""

    def __init__(self, config: str, benchmarks: str, out: str) -> None:
        self.out, self.index = Path(out), DecontaminateConfig.model_validate_json(config).index()
        read_benchmarks(Path(benchmarks), self.index)

    def __call__(self, part: str) -> dict[str, Any]:
        counts, hits = Counter[int](), list[dict[str, Any]]()
        for table in batches(Path(part), ("id", "url", "flow", "planted", "verdict", "text")):
            table = table.filter(pc.equal(table["verdict"], "keep"))
            found = self.index.find(table["text"].to_pylist())
            for row, ngrams in zip(table.select(["id", "url", "flow", "planted"]).to_pylist(), found, strict=True):
                if ngrams:
                    hits.append(row | {"ngrams": ngrams})
                    counts.update(ngrams)
        jsonl.write(self.out / f"{Path(part).stem}.jsonl", hits)
        return {"counts": [list(pair) for pair in counts.items()]}


class _Judge:
    """Writes a part with its verdicts, and what the ledger says of it."""

    def __init__(self, config: str, benchmarks: str, documents: str, hits: str, counts: str, out: str) -> None:
        self.config = DecontaminateConfig.model_validate_json(config)
        self.index = self.config.index()
        read_benchmarks(Path(benchmarks), self.index)
        self.documents, self.hits, self.out = Path(documents), Path(hits), Path(out)
        self.counts = np.load(counts)

    def __call__(self, name: str) -> dict[str, Any]:
        drops, notes, found = dict[str, Drop](), dict[str, str](), list[Hit]()
        hits = jsonl.read(self.hits / f"{name}.jsonl")
        with (self.hits / f"{name}.ledger").open("w", encoding="utf-8") as ledger:
            for hit in hits:
                ledger.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in self._entries(hit))
                if telling := [number for number in hit["ngrams"] if self._is_telling(number)]:
                    drops[hit["id"]] = drop = self._drop(telling)
                    hashed = evidence_hash(*map(self.index.ngram, telling))
                    if hit["planted"] is None:
                        found.append(Hit(drop.reason, hit["url"], hashed, hit["flow"], drop.evidence))
                else:
                    notes[hit["id"]] = f'common phrases only, as "{self.index.ngram(hit["ngrams"][0])}"'
        part = self.documents / FOLDER / f"{name}.parquet"
        tables = (with_verdicts(table, STAGE, drops, {}, notes) for table in batches(part))
        funnel = write_part(self.out / FOLDER / part.name, tables)
        real = [hit.__dict__ for hit in found]
        return {"funnel": funnel, "hits": real, "common_only": len(notes)}

    def _is_telling(self, number: int) -> bool:
        return bool(self.counts[number] < self.config.common_count)

    def _entries(self, hit: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number in hit["ngrams"]:
            line = {"id": hit["id"], "url": hit["url"], "ngram": self.index.ngram(number)}
            line |= {"documents": int(self.counts[number]), "common": not self._is_telling(number)}
            for source in self.index.sources(number):
                yield line | {"benchmark": source.benchmark, "item": source.item}

    def _drop(self, telling: list[int]) -> Drop:
        source = self.index.sources(telling[0])[0]
        evidence = f'"{self.index.ngram(telling[0])}" of item {source.item} of {source.benchmark}'
        evidence += f", and {len(telling) - 1} more n-grams" if len(telling) > 1 else ""
        return Drop(f"benchmark.{source.benchmark}", evidence)


def decontaminate(config: DecontaminateConfig, context: Context, *, documents: Path, sources: Path) -> Metrics:
    """Drop every document of any flow that holds an n-gram of a benchmark, unless the n-gram is a common phrase.

    Writes the documents, `audit.jsonl` (see `precision`), and `ledger.jsonl` (a line for each document, n-gram and
    item: {"id", "url", "ngram", "documents", "common", "benchmark", "item"}); the metrics count items, n-grams, common
    phrases and dropped documents.
    """
    index, folder, there = config.index(), sources / "benchmarks", parts(documents)
    benchmarks = read_benchmarks(folder, index)
    if not benchmarks:
        raise ValueError(f"{folder} holds no benchmark (*.jsonl): nothing could be decontaminated against")
    light = is_light(there)
    found = context.scratch / "hits"
    found.mkdir(exist_ok=True)
    arguments = (config.model_dump_json(), str(folder), str(found))
    done = each(_Find, arguments, [str(part) for part in there], context.report, "n-grams of benchmarks", light)
    counts = np.zeros(len(index), np.int64)
    for number, count in (pair for part in done for pair in part["counts"]):
        counts[number] += count
    np.save(context.scratch / "counts.npy", counts)
    paths = (str(documents), str(found), str(context.scratch / "counts.npy"), str(context.out))
    names = [part.stem for part in there]
    done = each(_Judge, (config.model_dump_json(), str(folder), *paths), names, context.report, "verdicts", light)
    with (context.out / "ledger.jsonl").open("wb") as ledger:
        for name in names:
            with (found / f"{name}.ledger").open("rb") as part:
                shutil.copyfileobj(part, ledger)
    dropped = drops_by_reason(write_funnel(context.out, (part["funnel"] for part in done)), STAGE)
    headline = f"{sum(dropped.values())} documents hold one of {len(index):,} benchmark n-grams"
    short = f"shorter items only as lines by themselves; n-grams in {config.common_count} documents or more drop none"
    n = f"n = min({config.max_n}, words of the item)" if config.match == "item" else f"n up to {config.max_n}"
    return {
        "headline": headline,
        "benchmarks": benchmarks,
        "ngrams": len(index),
        "ngrams_found": int((counts > 0).sum()),
        "common_phrases": int((counts >= config.common_count).sum()),
        "rule": f"{n}, at least {config.min_n}; {short}",
        "documents_with_common_phrases_only": sum(part["common_only"] for part in done),
        "dropped": dropped,
        "planted": recall(read(context.out, ("planted", "reason")), {"benchmark": ("benchmark.",)}),
        "precision_on_real": audit((Hit(**hit) for part in done for hit in part["hits"]), context.out),
    }
