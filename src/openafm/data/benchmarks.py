"""Benchmarks that a user brings, in any shape: what `fetch.benchmarks` names becomes `benchmarks/NAME.jsonl`.

A place is a file, a folder (each file in it is a benchmark) or `hf:owner/name`, a data set of the Hugging Face Hub.
Read are .jsonl, .json, .csv, .tsv, .txt and .md, also gzipped, and .parquet. Of a row, texts under the names of answers
(below) give an item away only where they are long; every other text of words does by itself, since nobody can know
which of them a page will quote. A line of a text file is an item, or, where blank lines part it, a paragraph.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from openafm.data.ngram_index import words

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
_ANSWERS = re.compile(
    r"answers?|answer_?key|target|labels?|gold|solutions?|canonical_solution|responses?|completions?|outputs?|choices?|options?"
    r"|[a-h]|endings?|distractor\d?|rationale|explanations?|incorrect_answers|correct_answers?|best_answer|hints?|tests?"
    r"|assistant|system|references?",
    re.IGNORECASE,
)
_NO_TEXT = re.compile(
    r"id|_id|.*_id|idx|index|uuid|url|source|sources|split|subject|category|categories|type|difficulty|level|topic|task"
    r"|task_id|language|lang|date|author|licen[cs]e|version|entry_point|metadata|name",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"^\s*(?:(?:q(?:uestion)?\W*)?\d{1,4}\s*[.):]|q(?:uestion)?\s*[.):]|[-*•])\s+", re.IGNORECASE)
_MOST_BYTES = 2_000_000_000


def bring(place: str, cache: Path) -> dict[str, list[dict[str, Any]]]:
    """{benchmark: items {"id", "text", "questions", "answers"}} of a place.

    Raises ValueError for what is not there, cannot be read (naming file and line), or holds nothing to look for.
    """
    root = _from_hub(place.removeprefix("hf:"), cache) if place.startswith("hf:") else Path(place).expanduser()
    if not root.exists():
        raise ValueError(f"benchmarks: {place} does not exist; give a folder, a file, or hf:owner/name")
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file() and _form(path))
    found: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        if not _form(path):
            raise ValueError(f"{path}: benchmarks are read from {', '.join(SUFFIXES)}, also with .gz")
        name = _name(place, root, path)
        items = found.setdefault(name, [])
        items += [{"id": f"{name}/{len(items) + at}", **item} for at, item in enumerate(_items(path))]
    if not any(found.values()):
        raise ValueError(
            f"benchmarks: {place} holds no items; files are read from {', '.join(SUFFIXES)}, also with .gz"
        )
    return {name: items for name, items in found.items() if items}


def _form(path: Path) -> str:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return suffix.lower() if suffix.lower() in SUFFIXES and not path.name.startswith(".") else ""


def _name(place: str, root: Path, path: Path) -> str:
    """A name that is safe in a path: of the file, or of the data set and the file."""
    relative = path.relative_to(root if root.is_dir() else path.parent).as_posix()
    stem = relative.removesuffix(".gz").rsplit(".", 1)[0]
    full = f"{place.removeprefix('hf:')}/{stem}" if place.startswith("hf:") else stem
    return re.sub(r"[^\w-]+", "_", full).strip("_") or "benchmark"


def _from_hub(name: str, cache: Path) -> Path:
    """Download a data set's files into the cache; none of its code runs."""
    from huggingface_hub import snapshot_download

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"hf:{name}: a data set of the Hub is named hf:owner/name")
    patterns = [f"*{suffix}{zipped}" for suffix in SUFFIXES for zipped in ("", ".gz") if suffix not in (".txt", ".md")]
    try:
        return Path(snapshot_download(name, repo_type="dataset", cache_dir=cache / "hub", allow_patterns=patterns))
    except Exception as error:
        raise ValueError(f"hf:{name} cannot be had ({error}): download it by hand and give its folder") from error


def _items(path: Path) -> Iterator[dict[str, Any]]:
    """What gives the items of one file away."""
    for row in _rows(path):
        questions, answers = list[str](), list[str]()
        _collect(row, "", questions, answers)
        if questions or answers:
            text = "\n".join([*questions, *answers])
            yield {"text": text, "questions": list(dict.fromkeys(questions)), "answers": list(dict.fromkeys(answers))}


def _collect(value: Any, name: str, questions: list[str], answers: list[str]) -> None:
    """Sort the texts of a row into questions and answers, by the names they stand under."""
    if isinstance(value, str):
        if len(words(value)) > 1:
            (answers if _ANSWERS.fullmatch(name) else questions).append(value)
    elif isinstance(value, dict):
        said = value.get("role") if isinstance(value.get("role"), str) else None  # a turn of a conversation
        for key, part in value.items():
            inner = said if said and key == "content" else str(key)
            if not _NO_TEXT.fullmatch(str(key)) and key != "role":
                _collect(part, name if _ANSWERS.fullmatch(name) else inner, questions, answers)
    elif isinstance(value, list | tuple):
        for part in value:
            _collect(part, name, questions, answers)


def _rows(path: Path) -> Iterator[Any]:
    form = _form(path)
    if form == ".parquet":
        yield from _parquet_rows(path)
        return
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes: cut it into files of {_MOST_BYTES:,} at most")
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as such") from error
    if form in (".txt", ".md"):
        yield from _text_rows(text)
    elif form in (".csv", ".tsv"):
        yield from _table_rows(text, path)
    else:
        yield from _json_rows(text, path)


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a Parquet file ({error})") from error


def _json_rows(text: str, path: Path) -> Iterator[Any]:
    """The lines of JSON Lines; or the entries of one JSON document."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        rows = [json.loads(line) for _, line in lines]
    except (ValueError, RecursionError):
        rows = None
    if rows is not None and (len(rows) != 1 or not isinstance(rows[0], dict | list)):
        yield from rows
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        for number, line in lines:
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"{path}:{number} is not JSON; mend or delete the line") from None
        raise ValueError(f"{path} is not JSON ({error})") from None
    yield from _entries(whole)


def _entries(value: Any) -> Iterator[Any]:
    """The items of a document: of a list each, of a mapping its lists' or, where it has none, itself."""
    if isinstance(value, list):
        yield from value
    elif isinstance(value, dict) and any(_is_rows(part) for part in value.values()):
        for part in value.values():
            if _is_rows(part):
                yield from part
    else:
        yield value


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _table_rows(text: str, path: Path) -> Iterator[Any]:
    """Rows as mappings by the header where it names columns we know, else as lists, the first one too."""
    delimiter = "\t" if _form(path) == ".tsv" else ","
    csv.field_size_limit(2**31 - 1)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table ({error})") from error
    header = [name.strip() for name in rows[0]] if rows else []
    known = any(_ANSWERS.fullmatch(name) or _NO_TEXT.fullmatch(name) for name in header)
    if known and all(len(words(name)) < 4 for name in header):
        yield from (dict(zip(header, row, strict=False)) for row in rows[1:])
    else:
        yield from rows


def _text_rows(text: str) -> Iterator[str]:
    """Paragraphs between blank lines, or lines where there are none; numbers before them are left out."""
    blocks = [block for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")) if block.strip()]
    for block in blocks if len(blocks) > 1 else text.splitlines():
        yield _NUMBERED.sub("", block).strip()
