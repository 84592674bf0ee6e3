"""Adapters of a server: the package's own, always in memory, and those of a folder, of which the last used are.

They come and go while answers are made: a file is read before its request joins the engine's batch, and only what no
answer uses leaves memory.
"""

import time
from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openafm.adapters.store import AdapterStore
from openafm.engine import Engine


class Unusable(Exception):  # noqa: N818  names the state
    """An adapter that is damaged, made for another model, or still in use by answers with what it was before."""


@dataclass(frozen=True)
class Fetched:
    """An adapter as its file was, on the way to the engine."""

    sha256: str
    read: Any
    seconds: float
    """That reading and checking it took."""


class Adapters:
    """What `model` may name after the colon."""

    def __init__(self, engine: Engine, folder: Path | None, room: int, carried: AdapterStore | None = None):
        """List a folder's adapters (openafm.adapters.store), of which `room` fit in memory at once.

        `carried` are the package's, which the engine has.

        Raises ValueError for a folder that is none, a card that is damaged, and a name that the package has too.
        """
        self._engine, self._own = engine, engine.adapters()
        self._carried = {name: carried.card(name) for name in self._own} if carried else {}
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder} is no folder: give one that holds adapters, NAME/adapter.safetensors")
        self._store = None if folder is None else AdapterStore(folder)
        self._room = max(room, 1)
        self._cards: dict[str, dict[str, Any]] = {}
        self._memory: OrderedDict[str, str] = OrderedDict()
        """The folder's adapters in the engine, the last used last, with the checksum of what is there."""
        self.loads = 0
        """How often one was put into memory."""
        for name in self._store.names() if self._store else ():
            self.add(name)

    def __contains__(self, name: str) -> bool:
        """Whether requests may name it."""
        return name in self._own or name in self._cards

    def names(self) -> list[str]:
        """All that requests may name: the package's first."""
        return [*self._own, *sorted(self._cards)]

    def about(self, name: str | None) -> dict[str, Any]:
        """Rank, size and whether it is in memory."""
        card = self._carried.get(name or "") or self._cards.get(name or "")
        if card is None:
            return {}
        there = name in self._carried or self._memory.get(name or "") == card["sha256"]
        return {"rank": card["rank"], "bytes": card["bytes"], "in_memory": there}

    def add(self, name: str) -> None:
        """Let requests name an adapter of the folder. Raises ValueError where that cannot be."""
        if self._store is None:
            raise ValueError("this server has no folder of adapters: start it with --adapters FOLDER")
        if name in self:
            raise ValueError(f"there is an adapter {name!r} already: remove that first, or give this one another name")
        self._cards[name] = self._store.card(name)

    def drop(self, name: str) -> None:
        """Requests may name it no more; answers that are being made go on. Raises ValueError where that cannot be."""
        if name in self._own:
            raise ValueError(f"the adapter {name!r} belongs to the package: only those of the folder can be removed")
        if name not in self._cards:
            raise ValueError(f"no adapter {name!r} to remove: there are {', '.join(self._cards) or 'none'}")
        del self._cards[name]

    def fetch(self, name: str | None) -> Fetched | None:
        """Read an adapter that is not in memory, ahead of its turn, in any thread. Raises Unusable."""
        if name is None or self.about(name).get("in_memory", True):
            return None
        return self._from_disk(name)

    def enter(self, name: str | None, busy: Set[str | None], fetched: Fetched | None = None) -> None:
        """Have it in memory, in place of those not used for longest; called where the engine steps. Raises Unusable.

        `busy` are the adapters of the answers that are being made, `fetched` what `fetch` returned for this one.
        """
        if name is None or name in self._own:
            return
        card = self._cards.get(name)
        if card is None:
            raise Unusable(f"the adapter {name!r} has been removed")
        if self._memory.get(name) == card["sha256"]:
            self._memory.move_to_end(name)
            self._make_room(self._room, busy | {name})
            return
        if name in busy:
            raise Unusable(f"the adapter {name!r} has changed while answers with the old one are made: try again")
        self._make_room(self._room - 1, busy)
        if fetched is None or fetched.sha256 != card["sha256"]:
            fetched = self._from_disk(name)
        try:
            self._engine.put_adapter(name, fetched.read)
        except ValueError as error:
            raise Unusable(str(error)) from error
        self._memory[name] = card["sha256"]
        self.loads += 1

    def _make_room(self, most: int, busy: Set[str | None]) -> None:
        """Let go of what is listed no more, and of those not used for longest, beyond so many."""
        idle = [name for name in self._memory if name not in busy]
        gone = [name for name in idle if self._memory[name] != self._cards.get(name, {}).get("sha256")]
        excess = len(self._memory) - len(gone) - most
        for name in gone + [name for name in idle if name not in gone][: max(excess, 0)]:
            self._engine.remove_adapter(name)
            del self._memory[name]

    @property
    def in_memory(self) -> int:
        """How many of the folder's are."""
        return len(self._memory)

    def _from_disk(self, name: str) -> Fetched:
        assert self._store is not None
        started = time.monotonic()
        try:
            sha256, read = self._store.card(name)["sha256"], self._engine.read_adapter(self._store, name)
        except ValueError as error:
            raise Unusable(str(error)) from error
        return Fetched(sha256, read, time.monotonic() - started)
