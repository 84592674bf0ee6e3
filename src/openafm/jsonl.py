"""JSON Lines files: one JSON object a line, the form of examples, preferences, rollouts and sources."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of a file. Raises ValueError naming the file, and the line that is no JSON object."""
    if not path.exists():
        raise ValueError(f"{path} is missing: run the step that makes {path.parent.name}")
    return parse(path.read_bytes(), str(path))


def parse(data: bytes, name: str) -> list[dict[str, Any]]:
    """All rows of a file's content; `name` is what errors call it."""
    return [row for _, row in numbered(data, name)]


def numbered(data: bytes, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file's content, each with the number of its line."""
    for number, line in enumerate(data.split(b"\n"), 1):  # str.splitlines would cut at U+2028 too
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{name}:{number} is not JSON ({error}); mend or delete the line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{name}:{number} is not a JSON object; each line must hold one")
        yield number, row


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
