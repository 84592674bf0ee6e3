"""Step `screen`: synthetic and human examples pass the filters that documents pass.

AFM's synthetic data is made from and checked by models (arXiv 2407.21075, section 4.1.2), and a model may repeat what
it has read. Each part of an examples artifact (`math_data`, `tool_data`, `code_data`, `human_data`, `summaries`,
`long_qa`) passes safety, personal data, deduplication and decontamination here, and leaves in the same files, so that a
recipe puts this step between the maker and the reader of a part. Rejected rows keep their reason in `rejected.jsonl`.
Where the sources hold a sentence encoder, questions that mean a benchmark's go too (`openafm.data.meanings`), and
`near_benchmarks.jsonl` lists the nearest pairs, kept and rejected, for reading.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openafm import jsonl
from openafm.data import pii, safety
from openafm.data.clean import DROPPED_KINDS
from openafm.data.decontaminate import DecontaminateConfig, NgramIndex, read_benchmarks
from openafm.data.dedup import near_duplicates
from openafm.data.meanings import Meanings, Near, asked, numbers
from openafm.data.people import load_people
from openafm.data.shards import read_shard, write_shard
from openafm.stage import Config, Context, Metrics

Row = dict[str, Any]
"""{"messages", "answer", ...} or {"text", ...}; `check` is how a program verifies the answer."""


class ScreenConfig(Config):
    """What an example must be to stay."""

    near_copy: float = 0.8
    """Jaccard similarity of word 5-grams from which on two examples without a check are the same."""
    common_count: int = 1000
    """An n-gram in so many examples of a part is a common phrase and drops none."""
    person_model: str = ""
    """A model for people's names, as for `clean`."""
    meaning: float = 0.7
    """Cosine from which on a question with the numbers of a benchmark's item is that item's, where there is a sentence
    encoder. Both limits were set by eye on 12 paraphrases and 1,300 made questions (docs/synthesis.md)."""
    meaning_of_numbers: float = 0.6
    """The same where both name two numbers or more: seldom are they equal by chance."""
    listed: int = 200
    """Pairs of a question and its nearest item in `near_benchmarks.jsonl`, the nearest of all."""

    def same(self, near: Near | None) -> bool:
        """Whether a question is the item's that it is near to."""
        if near is None or not near.same_numbers:
            return False
        return near.similarity >= (self.meaning_of_numbers if len(numbers(near.text)) > 1 else self.meaning)


def text_of(row: Row) -> str:
    """Everything that a model would read or write of an example, a string a line."""
    said = [message["content"] for message in row.get("messages", ())]
    asked = [f"{entry['question']} {entry['answer']}" for entry in row.get("questions", ())]
    return "\n".join([*said, row.get("answer", ""), row.get("text", ""), *asked]).strip("\n")


def _redacted(row: Row, people: pii.People | None) -> Row:
    def redact(text: str) -> str:
        """The text with the personal data that is found in it replaced."""
        return pii.without(text, people)

    changed = dict(row)
    if "messages" in row:
        changed["messages"] = [{**message, "content": redact(message["content"])} for message in row["messages"]]
    if "questions" in row:
        changed["questions"] = [
            {**entry, "question": redact(entry["question"]), "answer": redact(entry["answer"])}
            for entry in row["questions"]
        ]
    return changed | {name: redact(row[name]) for name in ("answer", "text") if name in row}


def _fault(row: Row, words: safety.Words, people: pii.People | None) -> tuple[str, str]:
    """(reason, evidence) of a row that safety or personal data shuts out; reason "" lets it pass, perhaps redacted."""
    text = text_of(row)
    finding = safety.judge_words(text, words, disguised=False)
    if finding.category:
        return f"safety.{finding.category}", f"weight {finding.weight:.1f}: {', '.join(finding.terms)}"
    spans = pii.find(text, people)
    for span in spans:
        if span.kind in DROPPED_KINDS:
            return f"pii.{span.kind}", pii.masked(text, span)
    if spans and (row.get("check") or "text" in row):  # what a program compares, or a shard holds, cannot be replaced
        return f"pii.{spans[0].kind}", pii.masked(text, spans[0])
    return "", ""


def _copies(rows: Sequence[Row], threshold: float) -> Iterator[tuple[int, str, str]]:
    """(place, reason, evidence) of all but the first of equal rows, and of near copies where nothing is checked.

    Checked problems may differ in one number, so near copies among them are none.
    """
    seen: dict[str, int] = {}
    whole = [" ".join(text_of(row).casefold().split()) for row in rows]
    exact = {place: first for place, text in enumerate(whole) if (first := seen.setdefault(text, place)) != place}
    yield from ((place, "duplicate.exact", str(rows[first]["id"])) for place, first in exact.items())
    loose = [place for place, row in enumerate(rows) if not row.get("check") and place not in exact]
    for group in near_duplicates([whole[place] for place in loose], threshold) if loose else []:
        first, *others = (loose[at] for at in sorted(group))
        yield from ((place, "duplicate.near", str(rows[first]["id"])) for place in others)


def _contaminated(rows: Sequence[Row], index: NgramIndex, common: int) -> Iterator[tuple[int, str, str]]:
    """(place, reason, evidence) of rows that hold a benchmark item's n-gram that is no common phrase."""
    found = index.find([text_of(row) for row in rows])
    collisions = Counter(number for held in found for number in set(held))
    for place, held in enumerate(found):
        rare = [number for number in held if collisions[number] < common]
        if rare:
            sources = sorted({source.benchmark for source in index.sources(rare[0])})
            yield place, f"benchmark.{sources[0]}", index.ngram(rare[0])


class _Near:
    """Looks every part's questions up among the benchmarks' items, and remembers the nearest pair of each question."""

    def __init__(self, config: ScreenConfig, sources: Path):
        self.config, self.meanings, self.pairs = config, Meanings.open(sources), dict[str, tuple[Near, bool]]()

    def __call__(self, rows: Sequence[Row]) -> Iterator[tuple[int, str, str]]:
        """(place, reason, evidence) of rows that ask what an item asks; none where there is no encoder."""
        if self.meanings is None:
            return
        texts = [asked(row) for row in rows]
        new = sorted({text for of_row in texts for text in of_row} - self.pairs.keys())
        for text, (nearest, same) in zip(new, self.meanings.nearest(new), strict=True):
            hit = self.config.same(same)
            self.pairs[text] = (same if same and hit else nearest), hit
        for place, of_row in enumerate(texts):
            pairs = (self.pairs[text] for text in of_row)
            if near := next((near for near, hit in pairs if hit), None):
                yield place, f"benchmark_meaning.{near.benchmark}", f"{near.similarity:.3f} to {near.item}: {near.text}"

    def write(self, path: Path) -> Metrics:
        """List the nearest pairs; tell how many questions were compared with how many items."""
        if self.meanings is None:
            return {"compared": 0, "because": "no sentence encoder in models/embedder of the sources, or no benchmark"}
        ordered = sorted(self.pairs.values(), key=lambda pair: (not pair[1], -pair[0].similarity, pair[0].asked))
        jsonl.write(path, ({**vars(near), "rejected": hit} for near, hit in ordered[: self.config.listed]))
        return {"compared": len(self.pairs), "items": len(self.meanings.items), "near": sum(h for _, h in ordered)}


def screen_rows(
    rows: Sequence[Row], words: safety.Words, index: NgramIndex, near: _Near, config: ScreenConfig
) -> list[tuple[str, str]]:
    """Reason and evidence for each row; reason "" lets it pass."""
    people = load_people(config.person_model)
    said = [_fault(row, words, people) for row in rows]
    for stage in (
        lambda left: _copies(left, config.near_copy),
        lambda left: _contaminated(left, index, config.common_count),
        near,
    ):
        places = [place for place, (reason, _) in enumerate(said) if not reason]
        for at, reason, evidence in stage([rows[place] for place in places]):
            said[places[at]] = reason, evidence
    return said


def _screen_shards(part: Path, out: Path, kept: dict[str, list[bool]]) -> None:
    """Token shards of a part whose rows are their documents, in order: those of rejected rows are left out."""
    index = json.loads((part / "index.json").read_text())
    dtype = np.dtype(index["dtype"]).newbyteorder("<")
    for split, sources in index["splits"].items():
        for name in sources:
            documents = list(read_shard(part / split, name, dtype))
            assert len(documents) == len(kept[split]), f"{part}: {split} has other documents than rows"
            left = [(tokens, 0) for tokens, keep in zip(documents, kept[split], strict=True) if keep]
            sources[name] |= {
                key: value for key, value in write_shard(out / split, name, left, dtype).items() if key != "bytes"
            }
    (out / "index.json").write_text(json.dumps(index, indent=1) + "\n")


def screen(config: ScreenConfig, context: Context, *, parts: dict[str, Path], sources: Path) -> Metrics:
    """Write a folder a part, with the files that it came with and without the rows that a filter shuts out.

    `near_benchmarks.jsonl` beside them, where there is an encoder: a line for a question and its nearest item."""
    words, index = safety.load_words(sources / "words"), DecontaminateConfig().index()
    benchmarks = read_benchmarks(sources / "benchmarks", index)  # a recipe may fetch none
    people, near = load_people(config.person_model), _Near(config, sources)
    counts: dict[str, Counter[str]] = {}
    for name, part in context.track(parts.items(), "parts screened", len(parts)):
        out, reasons = context.out / name, Counter[str]()
        out.mkdir()
        rejected: list[Row] = list(jsonl.read(part / "rejected.jsonl")) if (part / "rejected.jsonl").exists() else []
        kept: dict[str, list[bool]] = {}
        for path in sorted(set(part.glob("*.jsonl")) - {part / "rejected.jsonl"}):
            rows = list(jsonl.read(path))
            said = screen_rows(rows, words, index, near, config)
            kept["heldout" if path.stem == "heldout" else "train"] = [not reason for reason, _ in said]
            jsonl.write(out / path.name, _passed(rows, said, people))
            pairs = zip(rows, said, strict=True)
            rejected += [{**row, "reason": reason, "evidence": shown} for row, (reason, shown) in pairs if reason]
            reasons.update(reason or "kept" for reason, _ in said)
        jsonl.write(out / "rejected.jsonl", [_without_personal_data(row, people) for row in rejected])
        if (part / "index.json").is_file():
            _screen_shards(part, out, kept)
        counts[name] = reasons
    found = {name: dict(sorted(reasons.items())) for name, reasons in counts.items()}
    kept_all = sum(reasons["kept"] for reasons in counts.values())
    total = sum(reasons.total() for reasons in counts.values())
    headline = f"{kept_all:,} of {total:,} examples pass the documents' filters"
    headline += "" if benchmarks else "; no benchmark was there to compare them with"
    meanings = near.write(context.out / "near_benchmarks.jsonl")
    return {"headline": headline, "parts": found, "benchmarks": sorted(benchmarks), "meanings": meanings}


def _passed(rows: Iterable[Row], said: Iterable[tuple[str, str]], people: pii.People | None) -> list[Row]:
    return [_redacted(row, people) for row, (reason, _) in zip(rows, said, strict=True) if not reason]


def _without_personal_data(row: Row, people: pii.People | None) -> Row:
    """A rejected row for reading: personal data replaced; the check left out where it may hold what was found."""
    redacted = _redacted(row, people)
    return {key: value for key, value in redacted.items() if key != "check" or not row["reason"].startswith("pii")}
