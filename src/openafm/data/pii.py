"""Personal data and credentials in text: found by format, checksum and context, replaced by typed placeholders.

The `clean` step applies `find` and `redact` to every document of every flow. Precision comes first: documentation is
full of version numbers, identifiers and digests, so a number counts only where a checksum, a full written form or a
word beside it speaks for it.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

KINDS = ("secret", "iban", "card", "ssn", "email", "ip", "phone")
"""In order of precedence where findings overlap."""


@dataclass(frozen=True, order=True)
class Span:
    """A finding: `text[start:end]` is of this kind."""

    start: int
    end: int
    kind: str


# --- email ---------------------------------------------------------------------------------------------------------
_AT = r"(?:@|\s?[\[({]\s?at\s?[\])}]\s?)"
_DOT = r"(?:\.|\s?[\[({]\s?dot\s?[\])}]\s?)"
_EMAIL = re.compile(
    rf"(?<![\w.+%/-])[A-Za-z0-9][\w.+%-]{{0,63}}{_AT}(?:[A-Za-z0-9](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?{_DOT}){{1,8}}"
    r"[A-Za-z]{2,24}(?![\w@-])"
)
_FILE_ENDINGS = frozenset(
    "png jpg jpeg gif svg webp css js mjs ts py rb go rs html json yaml yml md txt so dll service".split()
)
_NOBODY = re.compile(r"(?:^|[@.])(?:example\.[a-z]+|example|invalid|test|localhost|local)$", re.I)
"""Domains that are reserved for documentation (RFC 2606, RFC 6761), or named as if they were: nobody's mail."""


def _emails(text: str) -> Iterator[Span]:
    if not any(sign in text for sign in ("@", "at]", "at)", "at ]", "at )", "at}")):
        return
    for match in _EMAIL.finditer(text):
        ending = re.split(r"\W", match[0])[-1]
        remote = text[match.end() : match.end() + 1] == ":" and match[0].startswith("git@")
        named = ending.lower() in _FILE_ENDINGS or re.search("[a-z][A-Z]", ending)  # a file, or a member in code
        if not named and not remote and ".." not in match[0] and not _NOBODY.search(match[0]):
            yield Span(match.start(), match.end(), "email")


# --- phone ---------------------------------------------------------------------------------------------------------
_CALLING_CODE = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|(?:2[1-69]|3[578]|42|5[09]|6[7-9]|8[0578]|9[679])\d"
)
"""Country codes of ITU-T E.164, three-digit ones by their assigned tens."""
_INTERNATIONAL = re.compile(
    r"(?<![\w+.=*/^)\]-])(?<!\d )(?:\+|00(?=[1-9]\d[ ./-]))\d{1,3}(?:[ ./-]?\(?\d{1,5}\)?){1,6}(?![\w%]|\.\d)"
)
_AMERICAN = re.compile(
    r"(?<![\w.+$#/-])(?:1[-. ])?(?:\(([2-9]\d\d)\) ?|([2-9]\d\d)([-. ]))([2-9]\d\d)([-. ])(\d{4})(?![\w/]|[-.]\d)"
)
_NATIONAL = re.compile(r"(?<![\w.+$#/-])\(?0\d{1,4}\)?(?:[ /-]\d{2,8}){1,5}(?![\w/]|[-.]\d)")
_FICTIONAL = re.compile(r"(?:\+?1)?(?:\d{3})?555\d{4}|\+?1[01]\d{9}|\+?1\d{3}[01]\d{6}")
"""North American numbers of nobody: exchange 555, and area codes and exchanges that begin with 0 or 1 (NANPA)."""
_PHONE_WORDS = re.compile(
    r"\b(?:phones?|tel(?:ephone|efon)?|call(?: (?:me|us|him|her))?|fax|mobile|cell|contact|whats ?app|sms|text|reach\w*"
    r"|dial|hotline|ring|number)\b\W{0,3}(?:[\w']+\W+){0,4}$",
    re.I,
)
_NOT_PHONE = re.compile(
    r"(?:isbn|issn|doi|rfc|oid|ean|upc|sku|serial|version|order|invoice|model|part no)[^\n]{0,18}$", re.I
)


def _beside(text: str, start: int, words: re.Pattern[str], width: int = 48) -> bool:
    """Tell whether the words stand right before `start` (on its line or the one above)."""
    return words.search(text[max(0, start - width) : start]) is not None


def _integer_limit(digits: str) -> bool:
    """Tell whether a number is a power of two or one below it, as +2147483647 is."""
    return any((value & (value - 1)) == 0 for value in (int(digits), int(digits) + 1))


def _phones(text: str) -> Iterator[Span]:
    for match in _INTERNATIONAL.finditer(text):
        digits = re.sub(r"\D", "", match[0]).removeprefix("00")
        written = not match[0][1:].isdigit() or (len(digits) >= 10 and not _integer_limit(digits))
        if (
            8 <= len(digits) <= 15
            and _CALLING_CODE.match(digits)
            and written
            and not _FICTIONAL.fullmatch(digits)
            and not _beside(text, match.start(), _NOT_PHONE)
        ):
            yield Span(match.start(), match.end(), "phone")
    for match in _AMERICAN.finditer(text):
        area, exchange = match[1] or match[2], match[4]
        consistent = match[1] is not None or match[3] == match[5]
        spaced = match[5] == " " and match[1] is None
        if (
            area[1:] == "11"
            or exchange[1:] == "11"
            or exchange == "555"
            or not consistent
            or _beside(text, match.start(), _NOT_PHONE)
        ):
            continue
        if not spaced or _beside(text, match.start(), _PHONE_WORDS):
            yield Span(match.start(), match.end(), "phone")
    for match in _NATIONAL.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if 9 <= len(digits) <= 12 and _beside(text, match.start(), _PHONE_WORDS):
            yield Span(match.start(), match.end(), "phone")


# --- card, IBAN, SSN -----------------------------------------------------------------------------------------------
_CARD = re.compile(
    r"(?<![\w.,+-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w]|[.,-]\d)"
)


def luhn(digits: str) -> bool:
    """Check ISO/IEC 7812-1's check digit: every second digit from the right doubled, digits' sum divisible by 10."""
    total = sum(int(digit) for digit in digits[::-2])
    total += sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def card_length_valid(digits: str) -> bool:
    """Tell whether a card network issues numbers with this prefix at this length (ISO/IEC 7812 issuer ranges)."""
    size, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    if digits[0] == "4":
        return size in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return size == 16
    if two in (34, 37):
        return size == 15
    if two in (36, 38, 39) or 300 <= three <= 305:
        return 14 <= size <= 19
    return 16 <= size <= 19 and (3528 <= four <= 3589 or four == 6011 or two in (62, 65) or 644 <= three <= 649)


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if luhn(digits) and card_length_valid(digits) and len(set(digits)) > 2 - (digits[0] == "4"):
            yield Span(match.start(), match.end(), "card")


IBAN_LENGTHS = {
    code: int(size)
    for size, codes in {
        15: "NO", 16: "BE BI", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BF CF DJ FR GR IT MC MR SM TD", 28: "AL AZ BJ BY CI CM CY DO DZ GQ GT HN HU"
        " LB MG ML MZ NE NI PL SN SV TG", 29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for code in codes.split()
}  # fmt: skip
"""Characters of an IBAN by country (SWIFT IBAN registry)."""
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")


def iban_valid(iban: str) -> bool:
    """Check the country's length and that the rearranged number is 1 modulo 97 (ISO 13616, ISO 7064)."""
    if IBAN_LENGTHS.get(iban[:2]) != len(iban):
        return False
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        size = IBAN_LENGTHS.get(match[0][:2], 0)
        end, used = match.start(), 0
        while used < size and end < match.end():
            used += text[end] != " "
            end += 1
        if used == size and iban_valid(text[match.start() : end].replace(" ", "")):
            yield Span(match.start(), end, "iban")


_SSN = re.compile(r"(?<![\w.+/-])(?!000|666|9\d\d)\d{3}([- ]?)(?!00)\d\d\1(?!0000)\d{4}(?![\w/]|[-.]\d)")
_SSN_WORDS = re.compile(r"(?:\bssn\b|social[ -]security)[^\n]{0,30}$", re.I)


def _ssns(text: str) -> Iterator[Span]:
    for match in _SSN.finditer(text):
        if match[1] == "-" or _beside(text, match.start(), _SSN_WORDS):
            yield Span(match.start(), match.end(), "ssn")


# --- IP addresses --------------------------------------------------------------------------------------------------
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d|/\d)")
"""Not in front of a slash and a digit: a network is nobody's address."""
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}:[0-9a-fA-F:]{4,35}(?![\w:])")
_IP_WORDS = re.compile(
    r"(?:\bips?\b|address|host|server|client|dns|ping|from|connect\w*|logged|login|resolv\w*)[^\n]{0,24}$", re.I
)
_VERSION_WORDS = re.compile(
    r"(?:\bv|version|release|build|section|revision|firmware|chapter|\boid|==|>=|<=|~=)[^\n]{0,12}$|(?:^|\n)#{1,6} $",
    re.I,
)


def _global(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
        return parsed.is_global and not parsed.is_multicast
    except ValueError:
        return False


def _addresses(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        if not _global(match[0]) or _beside(text, match.start(), _VERSION_WORDS, 24):
            continue
        parts = list(map(int, match[0].split(".")))
        if all(after - before == 1 for before, after in pairwise(parts)):
            continue  # counted up, as 1.2.3.4: made up
        if sorted(parts)[-2] >= 20 or _beside(text, match.start(), _IP_WORDS):
            yield Span(match.start(), match.end(), "ip")  # small numbers by themselves are a version or a section
    for match in _IPV6.finditer(text):
        if match[0].count(":") >= 3 and _global(match[0]):
            yield Span(match.start(), match.end(), "ip")


# --- credentials ---------------------------------------------------------------------------------------------------
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY(?: BLOCK)?-----[\sA-Za-z0-9+/=:,.-]{60,}?-----END [A-Z ]+-----"
    r"|(?<![A-Za-z0-9])(?:(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z2-7]{16}(?![A-Za-z0-9])|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|github_pat_\w{22,}|glpat-[\w-]{20,}|xox[abeoprs]-[\w-]{10,}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|AIza[\w-]{35}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|hf_[A-Za-z0-9]{30,}|sk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}"
    r"|SG\.[\w-]{20,}\.[\w-]{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
)
_SECRET_SIGNS = (
    *("PRIVATE KEY", "AKIA", "ASIA", "AGPA", "AIDA", "AROA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    *("glpat-", "xox", "k_live_", "k_test_", "AIza", "npm_", "pypi-", "hf_", "sk-", "SG.", "eyJ"),
)
"""Plain searches are twenty times as fast as the expression, which only runs on a text with one of these."""
_SECRET_NAME = re.compile(r"passw(?:or)?d|pwd|secret|(?:api|access|auth|private)[_-]?key|token")
_ASSIGNED = re.compile(
    r"(?:[_-]?(?:access|key|token))*[\"']?\s{0,4}(?:=>|:=|[:=])\s{0,4}[\"']?([^\s\"'`<>(){},;$]{8,120})(?![(\w])", re.I
)
_URL_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{1,60}:([^\s/@\"'<>]{6,60})@(?!example\.)")
_PLACEHOLDER = re.compile(
    r"x{4,}|\*{3,}|\.{3}|123456|abcdef|abc-?def|example|your|change|passw[o0]rd|passwd|s[e3]cret|dummy|sample|test|placeholder|foo|none|null|token|\bmy",
    re.I,
)


def entropy(text: str) -> float:
    """Return the Shannon entropy of a text's characters in bits a character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _random_looking(value: str) -> bool:
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return (
        mixed
        and entropy(value) >= 3.0
        and not _PLACEHOLDER.search(value)
        and not re.search(r"[.\[][a-z_]+[\[.(]", value)
    )


def _secrets(text: str) -> Iterator[Span]:
    for match in _SECRET.finditer(text) if any(sign in text for sign in _SECRET_SIGNS) else ():
        yield Span(match.start(), match.end(), "secret")
    lower = text.lower()
    for name in _SECRET_NAME.finditer(lower if len(lower) == len(text) else text):
        assigned = _ASSIGNED.match(text, name.end())
        if assigned and _random_looking(assigned[1]):
            yield Span(assigned.start(1), assigned.end(1), "secret")
    for url in _URL_PASSWORD.finditer(text):
        if not _PLACEHOLDER.search(url[1]):
            yield Span(url.start(1), url.end(1), "secret")


_FINDERS = (_secrets, _ibans, _cards, _ssns, _emails, _addresses, _phones)


def find(text: str) -> list[Span]:
    """Return the personal data in a text, in order and without overlaps (the earlier kind of `KINDS` wins)."""
    found: list[Span] = []
    for finder in _FINDERS:
        taken = list(found)
        for span in finder(text):
            if all(span.end <= other.start or span.start >= other.end for other in taken):
                found.append(span)
    found.sort()
    return [span for at, span in enumerate(found) if at == 0 or span.start >= found[at - 1].end]


def redact(text: str, spans: list[Span]) -> str:
    """Replace each finding by its placeholder, as `<EMAIL>`; `spans` is in order, as `find` returns it."""
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span.start], f"<{span.kind.upper()}>"]
        at = span.end
    return "".join(parts) + text[at:]


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
