"""Telephone numbers, part of `pii`: candidates by how numbers are written, judged by Google's phonenumbers.

A run of digits is a phone number when its country's plan gives such numbers out and it is written as there (`020 7946
0958`), when it begins with + and a country code, when it is written in the North American way, or when a word beside it
says so. Version numbers, dates, DOIs, ISBNs and integer limits have the first but none of the others.
"""

import re
from functools import lru_cache
from itertools import pairwise

import phonenumbers

from openafm.data.spans import Places, before, in_digit_runs, near

_INTERNATIONAL = re.compile(
    r"(?<![\w+.=*/^)\]-])(?<!\d )(?:\(?\+|00(?=[1-9]\d[ ./-]))\d{1,3}\)?(?:[ \u00a0./-]{0,2}\(?\d{1,5}\)?){1,6}"
    r"(?![\w%]|[.,]\d)"
)
_AMERICAN = re.compile(
    r"(?<![\w.+$#/-])(?:1[-. ])?(?:\(([2-9]\d\d)\)[ -]?|([2-9]\d\d)([-. ]))([2-9]\d\d)([-. ])(\d{4})(?![\w/]|[-.]\d)"
)
_NATIONAL = re.compile(r"(?<![\w.+$#/,-])(?<!\d )\(?\d{1,5}\)?(?:[ \u00a0./-]\(?\d{2,8}\)?){1,5}(?![\w/%]|[-.,:]\d)")
_IN_A_ROW = re.compile(r"(?<![\w.+$#/,-])(?<!\d )\d{9,11}(?![\w/%]|[-.,:]\d)")
_DATE = re.compile(r"(?:19|20)\d\d[ ./-][01]?\d[ ./-][0-3]?\d|[0-3]?\d[ ./-][0-3]?\d[ ./-](?:19|20)\d\d")

_NAMED = (
    r"\b(?:tele)?(?:phone|foon)s?\b|\btel[eé]fon\w*|\bt[eé]l[eé]phone\b|\bt[eé]l\b(?:[.:]|\W{0,3}$)|\bfax\b|\bfon\b"
    r"|\bmobile?\b|\bm[oó]vil\b|\bhandy(?:nummer)?\b|\bcellulare\b|\bcell\b|\bwhats ?app\b|\bsms\b|\bhotline\b"
    r"|\bmy (?:new )?number\b|\bvoice ?mail\b|\b(?:desk|land|direct|office) ?line\b|\br[uü]ckruf\b|\banrufen\b"
    r"|\bappelez\b|\bll[aá]m\w+|\b(?:call|ring|dial|text|reach)(?:ed|ing)? (?:me|us|him|her|them|\w+ on|on|at)\b"
)
_STRONG = re.compile(_NAMED, re.I)
_WORDS = re.compile(rf"{_NAMED}|\b(?:call|ring|dial|text|reach)(?:ed|ing)?\b|\bcontact\b|\breservations\b", re.I)
"""Words that mean other things too are enough beside a number in a form of its own."""
_NOT_PHONE = re.compile(
    r"\b(?:isbn|issn|doi|rfc|oid|ean|upc|gtin|sku|serial|version|order|invoice|model|part no|ticket|case|patent|parcel"
    r"|tracking|reference|imei|orcid|pmid|zip|account|iso|version|release|build|row|bytes?|port|pid)\b[^\n]{0,18}$",
    re.I,
)
_DIRECTORY = re.compile(r"(?:\+?1)?\d{3}5551212")
_FICTIONAL = re.compile(r"(?:\+?1)?(?:\d{3})?555\d{4}|\+?1[01]\d{9}|\+?1\d{3}[01]\d{6}")
"""North American numbers of nobody: exchange 555, and area codes and exchanges that begin with 0 or 1 (NANPA)."""
_REGIONS = "GB DE FR IT ES NL BE CH AT PL PT SE NO DK FI IE CZ GR RO HU IN AU NZ ZA BR MX JP CN KR TR IL US".split()
"""Numbering plans tried for a number without a country code beside a word for it."""
_SPEAKING = ("GB", "FR", "AU", "IT", "DE", "JP", "IE", "NZ")
"""Plans with a trunk 0 whose grouping is telling enough without a word."""


def _digits(written: str) -> str:
    return re.sub(r"\D", "", written)


def _integer_limit(digits: str) -> bool:
    """Tell whether a number is a power of two or one below it, as +2147483647 is."""
    return any((value & (value - 1)) == 0 for value in (int(digits), int(digits) + 1))


@lru_cache(maxsize=16_384)
def _parsed(written: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(written, region)
    except phonenumbers.NumberParseException:
        return None


@lru_cache(maxsize=16_384)
def valid(written: str, region: str | None = None) -> bool:
    """Tell whether a numbering plan gives out such numbers; `region` is needed where no country code is written."""
    number = _parsed(written, region)
    return number is not None and phonenumbers.is_valid_number(number)


def _grouped_as_printed(written: str, region: str) -> bool:
    """Tell whether a valid number's digits are grouped as its plan prints them."""
    number = _parsed(written, region)
    if number is None or not phonenumbers.is_valid_number(number):
        return False
    printed = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    return re.findall(r"\d+", printed) == re.findall(r"\d+", written)


def _counted_up(written: str) -> bool:
    """Tell whether the groups are a progression, as 01 02 03 04 05 is: a table, not a number."""
    steps = {int(b) - int(a) for a, b in pairwise(re.findall(r"\d+", written))}
    return len(steps) == 1 and written.count(" ") >= 2


def _international(text: str) -> Places:
    for match in in_digit_runs(_INTERNATIONAL, text):
        digits = _digits(match[0]).removeprefix("00")
        bare = match[0].strip("(+").isdigit()
        if not 8 <= len(digits) <= 15 or _integer_limit(digits) or before(text, match.start(), _NOT_PHONE):
            continue
        said = near(text, match.span(), _WORDS)
        if _FICTIONAL.fullmatch(digits) and (not said or _DIRECTORY.fullmatch(digits) or digits[4] in "01"):
            continue
        written = re.sub(r"\(0\)", "", match[0])  # as in +44 (0)20
        known = valid(f"+{_digits(written).removeprefix('00')}")
        if (known and (not bare or len(digits) >= 10)) or ((said or not bare) and _possible(digits)):
            yield match.span()


def _possible(digits: str) -> bool:
    number = _parsed(f"+{digits}", None)
    return number is not None and phonenumbers.is_possible_number(number)


def _american(text: str) -> Places:
    for match in in_digit_runs(_AMERICAN, text):
        area, exchange = match[1] or match[2], match[4]
        consistent = match[1] is not None or match[3] == match[5]
        if area[1:] == "11" or exchange[1:] == "11" or not consistent or before(text, match.start(), _NOT_PHONE):
            continue
        spaced = match[5] == " " and match[1] is None
        fictional = exchange == "555"
        if fictional and match[6] == "1212":
            continue  # directory assistance
        if not (spaced or fictional) or near(text, match.span(), _WORDS):
            yield match.span()


def _national(text: str) -> Places:
    for match in in_digit_runs(_NATIONAL, text):
        digits = _digits(match[0])
        if not 8 <= len(digits) <= 12 or _DATE.search(match[0]) or _counted_up(match[0]):
            continue
        if before(text, match.start(), _NOT_PHONE) or _FICTIONAL.fullmatch(digits):
            continue
        trunk = digits[0] == "0" and digits[1] != "0"
        if trunk and "." not in match[0] and any(_grouped_as_printed(match[0], region) for region in _SPEAKING):
            yield match.span()
        elif trunk and len(digits) >= 9:
            if near(text, match.span(), _WORDS, 40, 16):
                yield match.span()
        elif near(text, match.span(), _STRONG, 40, 16) and any(valid(match[0], region) for region in _REGIONS):
            yield match.span()
    for match in in_digit_runs(_IN_A_ROW, text):
        said = before(text, match.start(), _STRONG, 32) and not before(text, match.start(), _NOT_PHONE, 32)
        if said and any(valid(match[0], region) for region in _REGIONS):
            yield match.span()


def phones(text: str) -> Places:
    """Telephone numbers of any country."""
    yield from _international(text)
    yield from _american(text)
    yield from _national(text)
