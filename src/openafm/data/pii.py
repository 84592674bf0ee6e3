"""Personal data and credentials in text: found by format, checksum and context, replaced by typed placeholders.

The `clean` and `screen` steps apply `find` and `redact` to every document of every flow. Precision comes first:
documentation is full of version numbers, identifiers and digits, so a number counts only where a checksum, a full
written form or a word beside it speaks for it. Names of people take a model (`openafm.data.people`), which is off by
default: rules cannot tell Paris from Paris.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import phonenumbers

from openafm.data.addresses import network_addresses, streets
from openafm.data.credentials import secrets
from openafm.data.identifiers import cards, ibans, national_ids, ssns
from openafm.data.phones import phones
from openafm.data.spans import Places, Span

# --- email ---------------------------------------------------------------------------------------------------------
_AT = r"(?:@|\s?[\[({<]\s?at\s?[\])}>]\s?)"
_DOT = r"(?:\.|\s?[\[({<]\s?dot\s?[\])}>]\s?)"
_LABEL = r"[^\W_](?:[^\W_]|-){0,62}"
_EMAIL = re.compile(
    rf"(?<![\w.+%/-])[^\W_][\w.+%'-]{{0,63}}{_AT}(?:{_LABEL}{_DOT}){{1,8}}[^\W\d_]{{2,24}}(?![\w@-]|\.[^\W_])"
)
_SPOKEN = re.compile(
    r"(?<![\w.+%/-])[A-Za-z0-9][\w.+-]{1,40} (?:at|AT) (?:[A-Za-z0-9-]{2,40} (?:dot|DOT) ){1,3}"
    r"(?:com|org|net|edu|gov|io|de|uk|fr|eu)\b"
)
_SIGNS = ("@", "at]", "at)", "at ]", "at )", "at}", "at>", " dot ", " DOT ")
_TOP_LEVEL = {region.lower() for region in phonenumbers.SUPPORTED_REGIONS} | set(
    "com org net edu gov mil int info biz name pro aero coop museum mobi jobs travel cat tel asia post xxx app dev page"
    " blog shop store online site tech cloud email life live world today news media digital agency solutions services"
    " group company team network systems software center academy education university school institute science"
    " foundation ngo ong health care clinic legal law finance bank money capital consulting design studio art photo"
    " photography video games fun guru zone space website host hosting press xyz top icu vip club wiki ink link click"
    " berlin london paris nyc tokyo amsterdam wien koeln hamburg bayern scot wales eus gal swiss africa uk eu"
    " su".split()
)
_MAIL_WORD = re.compile(r"(?:mail\w*|contact\w*|write|reach|sent? |from|to|by|<|mailto:)\W{0,3}(?:\w+\W+){0,3}$", re.I)
_NOBODY = re.compile(r"(?:^|[@.])(?:example\.[a-z]+|example|invalid|test|localhost|local)$", re.I)
"""Domains that are reserved for documentation (RFC 2606, RFC 6761), or named as if they were."""
_PERSONAL = re.compile(r"[a-z]{2,}[._][a-z]{2,}\d{0,4}@", re.I)
"""A first and a last name: somebody's, at whatever domain."""


def emails(text: str) -> Iterator[tuple[int, int]]:
    """Mail addresses, also with [at] and [dot]; not members in code, files, Git remotes and reserved domains."""
    if not any(sign in text for sign in _SIGNS):
        return
    for match in _EMAIL.finditer(text):
        start, end = match.span()
        top = re.split(r"\W", match[0])[-1]
        if ".." in match[0] or re.search("[a-z][A-Z]", top) or (text[end : end + 1] == ":" and match[0][:4] == "git@"):
            continue
        if top.lower() not in _TOP_LEVEL and not _MAIL_WORD.search(text[max(0, start - 40) : start]):
            continue
        if not _NOBODY.search(match[0]) or (_PERSONAL.match(match[0]) and top.lower() in _TOP_LEVEL):
            yield match.span()
    for match in _SPOKEN.finditer(text) if " dot " in text or " DOT " in text else ():
        yield match.span()


# --- all kinds -----------------------------------------------------------------------------------------------------
_FINDERS: dict[str, Callable[[str], Places]] = {
    "secret": secrets, "iban": ibans, "card": cards, "ssn": ssns, "national_id": national_ids, "email": emails,
    "ip": network_addresses, "phone": phones, "address": streets,
}  # fmt: skip
KINDS = (*_FINDERS, "person")
"""In order of precedence where findings overlap."""

People = Callable[[str], Sequence[tuple[int, int]]]
"""A model that finds the names of people: see `openafm.data.people`."""


def find(text: str, people: People | None = None) -> list[Span]:
    """Return the personal data in a text, in order and without overlaps (the earlier kind of `KINDS` wins)."""
    found: list[Span] = []
    finders = _FINDERS if people is None else {**_FINDERS, "person": lambda text: iter(people(text))}
    for kind, places in finders.items():
        taken = list(found)
        for start, end in places(text):
            if all(end <= other.start or start >= other.end for other in taken):
                found.append(Span(start, end, kind))
    found.sort()
    kept: list[Span] = []
    for span in found:
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def redact(text: str, spans: list[Span]) -> str:
    """Replace each finding by its placeholder, as `<EMAIL>`; `spans` is in order, as `find` returns it."""
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span.start], f"<{span.kind.upper()}>"]
        at = span.end
    return "".join(parts) + text[at:]


def without(text: str, people: People | None = None) -> str:
    """The text with every finding replaced by its placeholder."""
    return redact(text, find(text, people))


def in_context(text: str, spans: list[Span], span: Span, before: int = 60, after: int = 30) -> str:
    """Return a finding masked in brackets and what stands around it, every other finding replaced."""
    left = redact(text[: span.start], [other for other in spans if other.end <= span.start])
    following = [Span(s.start - span.end, s.end - span.end, s.kind) for s in spans if s.start >= span.end]
    right = redact(text[span.end :], following)
    return f"{left[-before:]}[{masked(text, span)}]{right[:after]}"


def masked(text: str, span: Span) -> str:
    """Return a finding for people to read that does not repeat it: the ends, and stars between."""
    value = text[span.start : span.end]
    return f"{value[:2]}{'*' * min(8, max(1, len(value) - 4))}{value[-2:]}"
