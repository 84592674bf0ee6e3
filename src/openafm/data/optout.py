"""What a page says against being indexed, mined or trained on, in its HTTP headers and its <meta> tags.

`noindex`, `none`, `noai`, `noimageai` in X-Robots-Tag and <meta name="robots"> (or our name), and the TDM Reservation
Protocol of the W3C community group: the header, the meta tag and /.well-known/tdmrep.json. The crawler obeys all of
them; reading an archive obeys what stands in its records, for the crawl may have been made by somebody else.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from resiliparse.parse.html import HTMLTree

from openafm.data import robots

OPT_OUTS = ("noai", "noimageai", "noindex", "none")
"""Directives that shut a page out; the first that is there is the reason."""
TDM = "tdm-reservation"
_MARKS = (b"noindex", b"nofollow", b"noai", b"noimageai", b"none", TDM.encode())
MAX_HEAD = 256 * 1024
"""Bytes of a page in which its <meta> tags are looked for."""


@dataclass(frozen=True)
class Statement:
    """What one page says: its directives for us, and whether it reserves text and data mining (None: not a word)."""

    directives: frozenset[str] = frozenset()
    reserved: bool | None = None

    @property
    def reason(self) -> str:
        """Why the page is not taken: "noindex", "noai", "tdm-reservation" ...; "" when it does not object."""
        found = [name for name in OPT_OUTS if name in self.directives]
        return found[0].replace("none", "noindex") if found else TDM if self.reserved else ""

    @property
    def nofollow(self) -> bool:
        """Whether its links are not to be followed."""
        return bool(self.directives & {"nofollow", "none"})


def of_page(headers: Mapping[str, Sequence[str]], html: bytes, agent: str = robots.AGENT) -> Statement:
    """Read headers (names in lower case) and head of a page together; a <meta> tag wins over a header on TDM."""
    told = _header_directives(headers.get("x-robots-tag", ()), agent)
    reserved = _reserved(headers.get(TDM, ()))
    for name, content in _metas(html):
        if name in ("robots", robots.product_token(agent)):
            told |= _words(content)
        elif name == TDM:
            reserved = _reserved([content])
    return Statement(frozenset(told), reserved)


def _words(text: str) -> set[str]:
    return {word.strip().lower() for word in text.split(",")}


def _header_directives(values: Iterable[str], agent: str) -> set[str]:
    """Directives for everybody, and behind "name:" those for that agent alone."""
    told: set[str] = set()
    for value in values:
        ours = True
        for part in value.split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip().lower() not in ("unavailable_after", "max-snippet", "max-image-preview"):
                ours, part = robots.product_token(name) == robots.product_token(agent), rest
            told |= _words(part) if ours else set()
    return told


def _reserved(values: Sequence[str]) -> bool | None:
    said = [value.strip() for value in values]
    return True if "1" in said else False if "0" in said else None


def _metas(html: bytes) -> list[tuple[str, str]]:
    """(name in lower case, content) of the head's <meta> tags; [] where no byte hints at one that matters."""
    head = html[:MAX_HEAD]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", "replace").encode()
    low = head.lower()
    if b"<meta" not in low or not any(mark in low for mark in _MARKS):
        return []
    body = re.search(rb"<body[\s>]", low)
    tree = HTMLTree.parse(head[: body.start() if body else None].decode("latin-1"))
    if tree.document is None:
        return []
    tags = tree.document.query_selector_all("meta[name][content]")
    return [((tag.getattr("name") or "").strip().lower(), tag.getattr("content") or "") for tag in tags]


def tdmrep_reserved(tdmrep: bytes, url: str) -> bool | None:
    """What a site's /.well-known/tdmrep.json says of `url`: the longest `location` that fits, read like robots rules.

    None when it says nothing, or is no such file.
    """
    try:
        entries = json.loads(tdmrep)
    except (ValueError, RecursionError):
        return None
    said: list[tuple[int, bool]] = []
    for entry in entries if isinstance(entries, list) else []:
        place = entry.get("location") if isinstance(entry, dict) else None
        if isinstance(place, str) and entry.get(TDM) in (0, 1, "0", "1"):
            rule = robots.rule(place if place.startswith(("/", "*")) else f"/{place}", allow=True)
            if rule.matches(robots.comparable(url)):
                said.append((rule.octets, int(entry[TDM]) == 1))
    return max(said)[1] if said else None
