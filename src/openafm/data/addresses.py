"""Street addresses and network addresses, part of `pii`.

A street address is a house number beside a street's name in the form of its country; kinds of street that are common
words too ("Place", "Way", "platz") need a postcode or town behind them. Of IP addresses those count that are routed and
that somebody is said to be behind: in documentation most are examples, and version numbers look the same.
"""

import ipaddress
import re
from itertools import pairwise

from openafm.data.spans import Places, before, in_digit_runs

# --- streets -------------------------------------------------------------------------------------------------------
# Expressions begin with a plain character and look behind it: so `re` skips to the next one that can begin a match.
_NAME = r"(?:[A-ZÀ-Þ][\w'’.-]*|\d{1,3}(?:st|nd|rd|th)|de|la|le|del|von|der)"
_STATE = (
    r"A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|P[AR]|RI|S[CD]|T[NX]|UT|V[AT]"
    r"|W[AIVY]"
)
_UK_CODE = r"[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}"
_TOWN = r"[A-ZÀ-Þ][\w'’.-]+(?:[ -](?:[A-ZÀ-Þ][\w'’.-]*|am|an|der|de|la|sur|upon|on|les?)){0,3}"
_UNIT = r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|Fl|Room|Rm|#)\.? ?#?[\w-]{1,6}|,? \w+ Floor)?"
_ENGLISH_TAIL = (
    rf"(?:,?\s{{1,3}}{_TOWN},?\s{{1,3}}(?:(?:{_STATE})\b(?:,?\s\d{{5}}(?:-\d{{4}})?)?|{_UK_CODE})"
    rf"|,?\s{{1,3}}(?:{_STATE})\s\d{{5}}(?:-\d{{4}})?|,?\s{{1,3}}{_UK_CODE})"
)
_CERTAIN = r"(?:Street|St\.?|Avenue|Ave\.?|Boulevard|Blvd\.?|Road|Rd\.?|Lane|Ln\.?|Parkway|Pkwy\.?|Drive|Dr\.?)"
_LIKELY = (
    r"(?:Court|Ct\.?|Way|Place|Pl\.?|Terrace|Ter\.?|Circle|Cir\.?|Square|Sq\.?|Highway|Hwy\.?|Close|Crescent|Gardens"
    r"|Grove|Hill|Row|Walk|Mews|Quay|Trail|Loop|Park|Broadway|Plaza)"
)
_NUMBER = r"\d(?<![\w.,:/$#%-].)(?<!\d .)\d{0,4}[A-Za-z]?(?:[-/]\d{1,4})?,? "
_ENGLISH = re.compile(
    rf"{_NUMBER}(?:[NSEW]{{1,2}}\.? |(?:North|South|East|West) )?(?:{_NAME} ){{1,4}}?"
    rf"(?:{_CERTAIN}(?!\w)(?: [NSEW]{{1,2}}\b\.?)?{_UNIT}{_ENGLISH_TAIL}?|{_LIKELY}(?!\w){_UNIT}{_ENGLISH_TAIL})"
)
_BOX = re.compile(rf"\bP\.? ?O\.? ?Box \d{{1,6}}{_ENGLISH_TAIL}?", re.I)
_GERMAN_TAIL = rf",?\s{{1,2}}(?:[A-Z]{{1,2}}-)?(?:\d{{4,5}}|\d{{4}} ?[A-Z]{{2}}) {_TOWN}"
_GERMAN = re.compile(
    r"\b[A-ZÄÖÜ][\wäöüß.-]*(?:straße|strasse|str\.|gasse|allee|damm|straat|laan|gracht"
    r"|[ -](?:Straße|Strasse|Str\.|Allee))"
    rf" \d{{1,4}} ?[a-z]?(?!\w)(?:{_GERMAN_TAIL})?|\b[A-ZÄÖÜ][\wäöüß.-]*"
    rf"(?:weg|platz|ring|ufer|plein|kade|hof|berg| Weg| Platz| Ring| Ufer) \d{{1,4}} ?[a-z]?{_GERMAN_TAIL}"
)
_FRENCH = re.compile(
    r"\d(?<![\w.,:/-].)\d{0,3}(?: ?(?:bis|ter))?,? "
    r"(?:rue|avenue|boulevard|bd|place|chemin|all[ée]e|impasse|quai|route|cours|passage) "
    rf"(?:(?:d[eu]s?|de la|la|le|les) |de l['’]|d['’]|l['’])?{_NAME}(?:[ -](?:{_NAME}|et|du|des)){{0,4}}"
    rf"(?:,?\s{{1,2}}\d{{5}} {_TOWN})?"
)
_ROMANCE = re.compile(
    r"\b(?:Calle|C/|Avenida|Avda?\.|Plaza|Paseo|Via|Viale|Piazza|Corso|Largo|Rua|Av\.) "
    rf"(?:(?:de|del|della|di|la|do|da|dos) )*{_NAME}(?: (?:{_NAME}|e|y)){{0,4}},? (?:n[º°.] ?)?\d{{1,4}}(?!\w)"
    rf"(?:,?[^\n,]{{0,12}},?\s{{1,2}}\d{{4,5}}(?:-\d{{3}})? {_TOWN})?"
)
_GERMAN_ENDS = tuple(
    "straße strasse str. gasse allee damm straat laan gracht weg platz ring ufer plein kade hof berg".split()
)
_ROMANCE_SIGNS = (
    *("Calle ", "C/ ", "Avenida ", "Avda", "Plaza ", "Paseo ", "Via ", "Viale ", "Piazza ", "Corso ", "Largo ", "Rua "),
    "Av. ",
)
_HOUSE = re.compile(r"\d(?<=[a-zß.] .)\d{0,3}(?!\d)")
_NOT_A_STREET = re.compile(r"\b(?:the|best|top|ways?|steps?|reasons?|of|and|in|on)\b", re.I)


def _german(text: str) -> Places:
    """Read from the house number back: every word might be the beginning of a street's name."""
    for house in _HOUSE.finditer(text):
        street = text[max(0, house.start() - 40) : house.start() - 1]
        if street.lower().endswith(_GERMAN_ENDS):
            start = house.start() - 1 - len(street)
            yield from (match.span() for match in _GERMAN.finditer(text, start, house.end() + 60))


def streets(text: str) -> Places:
    """Postal addresses: English, German and Dutch, French, Italian, Spanish and Portuguese forms, and PO boxes."""
    for match in _ENGLISH.finditer(text):
        if not _NOT_A_STREET.fullmatch(match[0].split(" ", 2)[1]):
            yield match.span()
    yield from _german(text)
    yield from (match.span() for match in _FRENCH.finditer(text))
    if any(sign in text for sign in _ROMANCE_SIGNS):
        yield from (match.span() for match in _ROMANCE.finditer(text))
    if "Box " in text or "BOX " in text:
        yield from (match.span() for match in _BOX.finditer(text))


# --- IP addresses --------------------------------------------------------------------------------------------------
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d|/\d)")
"""Not in front of a slash and a digit: a network is nobody's address."""
_IPV6 = re.compile(r"[23](?<![\w:.].)[0-9a-fA-F]{3}:[0-9a-fA-F:]{4,35}(?![\w:]|/\d)")
_SOMEBODY = re.compile(
    r"\b(?:ips?|ip[ -]?addr\w*|ipv[46]|address|host|server|client|visitor|user|peer|remote|src|source|origin|attacker"
    r"|dns|ping\w*|from|connect\w*|logged|log-?in|resolv\w*|ban(?:ned)?|block\w*|traced?|geolocat\w*|reached|ssh|telnet"
    r"|machine|router|gateway|x-forwarded-for|node)\b[^\n]{0,24}$",
    re.I,
)
_LOG = re.compile(r"(?:^|\n)$")
_LOG_AFTER = re.compile(r" - \S+ \[|:\d{2,5}\b| - - ")
_VERSION = re.compile(
    r"(?:\bv|version|ver\.|release|build|section|revision|firmware|chapter|driver|\boid|==|>=|<=|~=|sdk|chrome/|safari/)"
    r"[^\n]{0,12}$|(?:^|\n)#{1,6} $",
    re.I,
)
_EXAMPLE = re.compile(
    r"\b(?:e\.g\.|for (?:example|instance)|such as|examples?|listen|allow|deny|bind|proxypass|(?:name)?virtualhost"
    r"|require|balancermember|servername|inet|cidr|subnet|netmask|where|values?|hostaddr)\b[^\n]{0,32}$|[<'\"(=]$",
    re.I,
)
"""Where documentation writes addresses that it made up: settings, query literals, examples."""


def _routed(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
        return parsed.is_global and not parsed.is_multicast
    except ValueError:
        return False


def _made_up(parts: list[int]) -> bool:
    """Counted up, as 1.2.3.4, or one number repeated, as 11.22.33.44 and 111.111.111.111 are."""
    steps = {after - before for before, after in pairwise(parts)}
    return len(steps) == 1 and steps.pop() in (0, 1, 11, 111) and parts[0] not in (1, 8, 9)


def network_addresses(text: str) -> Places:
    """IPv4 and IPv6 addresses that are routed and not examples, networks or versions."""
    for match in in_digit_runs(_IPV4, text):
        start, end = match.span()
        if not _routed(match[0]) or before(text, start, _VERSION, 24):
            continue
        parts = list(map(int, match[0].split(".")))
        if _made_up(parts) or parts == [1, 2, 3, 4]:
            continue
        if before(text, start, _LOG, 1) and _LOG_AFTER.match(text, end):
            yield match.span()
        elif before(text, start, _EXAMPLE):
            continue
        elif before(text, start, _SOMEBODY) or (sorted(parts)[-2] >= 20 and sorted(parts)[-3] >= 20):
            yield match.span()
    for match in _IPV6.finditer(text):
        if match[0].count(":") >= 3 and _routed(match[0]) and not before(text, match.start(), _EXAMPLE):
            yield match.span()
