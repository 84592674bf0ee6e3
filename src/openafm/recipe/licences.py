"""`openafm licences`: under which licence is everything that this installation and its recipes are made of.

The distributions that openafm requires, directly or not, as they say in their own metadata; and the sources of every
catalogue. What is of no licence that `openafm.data.licences` calls permissive is told apart, for a person to look at.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from openafm.data import catalogue
from openafm.data.licences import permissive, spdx

ITSELF = "openafm"


@dataclass(frozen=True)
class Licence:
    """Of one thing."""

    of: str
    """`dependency`, or the catalogue that names the source."""
    name: str
    version: str
    licence: str
    """An SPDX expression where the wording is known, else as declared; empty where nothing is."""

    @property
    def permissive(self) -> bool:
        """Whether it asks for attribution at most."""
        return permissive(self.licence)


def everything(extras: Iterable[str] = ()) -> list[Licence]:
    """All dependencies, with those of the `extras` that are installed, then the sources of all catalogues."""
    return [*dependencies(extras), *sources()]


def dependencies(extras: Iterable[str] = ()) -> list[Licence]:
    """Installed distributions that openafm requires, by name; what a marker leaves out on this system is left out."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(ITSELF, frozenset(extras))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
        found[canonicalize_name(name)] = distribution
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                entry = (needed.name, frozenset(needed.extras))
                if entry not in seen:
                    seen.add(entry)
                    waiting.append(entry)
    found.pop(ITSELF, None)
    return [Licence("dependency", name, kept.version, declared(kept.metadata)) for name, kept in sorted(found.items())]


def declared(about: metadata.PackageMetadata) -> str:
    """What a distribution declares: the expression (PEP 639), else its classifiers, else the old field's first line."""
    for expression in about.get_all("License-Expression") or ():
        return str(expression)
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or () if "License ::" in line]
    known = [spdx(name) for name in classifiers if name != "OSI Approved"]
    if known:
        return " OR ".join(dict.fromkeys(known)) if all(map(permissive, known)) else " AND ".join(known)
    old = about.get_all("License") or [""]
    return spdx(str(old[0]).strip().partition("\n")[0])


def sources() -> list[Licence]:
    """The sources of every catalogue; those whose rows declare a licence each say so."""
    made: dict[tuple[str, str, str, str], None] = {}
    for name in catalogue.names():
        for source in catalogue.load(name)[0].sources:
            own = "each row's own" if source.form == "jsonl" else "each file's own"
            made[name, f"{source.tier}:{source.package}", source.version, source.licence or own] = None
    return [Licence(*row) for row in made]
