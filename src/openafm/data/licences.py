"""Which texts may be used: SPDX licences on an allow-list of permissive ones; the licence filter of the `clean` step.

AFM takes code from licence-filtered repositories (arXiv 2407.21075, section 3.1.3). A file's own word wins over what
its package declares: an SPDX identifier in its head, else a licence's text or notice there, recognised by the share of
its word 5-grams (`licence_texts/`), else the name of a copyleft licence. What nobody declares is not used.
"""

import re
from collections.abc import Collection
from functools import cache
from importlib.resources import files

import numpy as np

from openafm.data.ngrams import ngram_hashes, word_hashes

PERMISSIVE = frozenset(
    "0BSD AFL-3.0 Apache-1.1 Apache-2.0 Artistic-2.0 BlueOak-1.0.0 BSD-1-Clause BSD-2-Clause"
    " BSD-2-Clause-Patent BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 CC-BY-3.0 CC-BY-4.0 CC-PDDC"
    " CC0-1.0 curl ECL-2.0 FTL HPND ICU ISC Libpng libtiff MIT MIT-0 MIT-CMU MIT-Modern-Variant MS-PL"
    " MulanPSL-2.0 NCSA NTP OFL-1.1 OLDAP-2.8 PHP-3.01 PostgreSQL PSF-2.0 Python-2.0 Python-2.0.1 Ruby"
    " SGI-B-2.0 TCL TCP-wrappers Unicode-3.0 Unicode-DFS-2016 Unlicense UPL-1.0 Vim W3C WTFPL X11 Xnet Zlib"
    " ZPL-2.1 blessing Public-Domain".split()
)
"""SPDX identifiers that ask for attribution at most."""
_LOWER = {name.lower() for name in PERMISSIVE}
_HEADER = re.compile(r"SPDX-License-Identifier:[ \t]*([^\n*#]{2,120}?)(?:[ \t]*(?:\*/|-->|\n|$))")
_COPYLEFT = re.compile(
    r"GNU (?:Affero |Lesser |Library )?General Public License|Mozilla Public License|Eclipse Public License"
    r"|Server Side Public License|Business Source License|All rights reserved\.? (?:Confidential|Proprietary)",
    re.I,
)


def permissive(expression: str) -> bool:
    """Evaluate an SPDX expression: `OR` needs one permissive side, `AND` both; exceptions (`WITH`) change nothing.

    Unknown identifiers and malformed expressions are not permissive (SPDX 2.3, annex D).
    """
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    value, at = _either(tokens, 0)
    return value and at == len(tokens)


def _either(tokens: list[str], at: int) -> tuple[bool, int]:
    value, at = _both(tokens, at)
    while at < len(tokens) and tokens[at].upper() == "OR":
        other, at = _both(tokens, at + 1)
        value = value or other
    return value, at


def _both(tokens: list[str], at: int) -> tuple[bool, int]:
    value, at = _one(tokens, at)
    while at < len(tokens) and tokens[at].upper() == "AND":
        other, at = _one(tokens, at + 1)
        value = value and other
    return value, at


def _one(tokens: list[str], at: int) -> tuple[bool, int]:
    if at >= len(tokens):
        return False, at + 1
    if tokens[at] == "(" and tokens.count("(") < 50:
        value, at = _either(tokens, at + 1)
        return value, at + 1
    value, at = tokens[at].lower() in _LOWER, at + 1
    return value, at + 2 if at < len(tokens) and tokens[at].upper() == "WITH" else at


NGRAM = 5
ALIKE = 0.7
"""Share of a licence text's 5-grams from which on a file holds it: a name put in, or a word changed, costs a few."""
_SPEAKS = re.compile(r"licen[cs]|permission|redistribut|warrant|public domain|blessing", re.I)
_EITHER = re.compile(
    r"alternatively|dual.{0,3}licen|either (?:of )?(?:the )?licen|at your (?:option|choice),? (?:under|of)", re.I
)
_SIGNS = re.compile(r"(?m)^[ \t]*(?:\*+|//+!?|#+|--+|;+|%+|\.\\\"|REM|dnl)(?=\s|$)")
"""What begins the lines of a comment."""
_NAMES = {
    name: spdx
    for spdx, names in {
        "MIT": "mit license|the mit license|expat|mit/expat|x11-style (mit)",
        "Apache-2.0": "apache 2.0|apache license 2.0|apache license, version 2.0|apache software license|apache2",
        "BSD-3-Clause": "bsd|bsd license|new bsd|new bsd license|modified bsd|3-clause bsd|bsd 3-clause|bsd-3",
        "BSD-2-Clause": "simplified bsd|2-clause bsd|bsd 2-clause|freebsd|bsd-2",
        "ISC": "isc license|isc license (iscl)",
        "PSF-2.0": "psf|python software foundation license|psfl",
        "MPL-2.0": "mpl|mpl 2.0|mozilla public license 2.0 (mpl 2.0)|mpl2",
        "GPL-2.0-only": "gplv2|gpl-2|gpl2|gpl-2.0",
        "GPL-2.0-or-later": "gplv2+|gpl-2+|gpl-2.0+|gpl",
        "GPL-3.0-only": "gplv3|gpl-3|gpl3|gpl-3.0|gnu general public license v3 (gplv3)",
        "GPL-3.0-or-later": "gplv3+|gpl-3+|gpl-3.0+|gnu general public license v3 or later (gplv3+)",
        "LGPL-2.1-or-later": "lgpl|lgplv2+|lgpl-2.1+|lgpl-2+",
        "Unlicense": "the unlicense|the unlicense (unlicense)",
        "Zlib": "zlib/libpng|zlib license",
        "Public-Domain": "public domain|public-domain|licenseref-public-domain|pd",
        "CC0-1.0": "cc0|cc0 1.0|cc0 1.0 universal (cc0 1.0) public domain dedication",
    }.items()
    for name in names.split("|")
}
"""What packages write instead of SPDX identifiers."""


def spdx(declared: str) -> str:
    """Return a package's declared licence as an SPDX expression where its wording is known, else as it is."""
    name = declared.strip().removeprefix("License :: ").removeprefix("OSI Approved :: ").strip()
    return _NAMES.get(name.lower(), name)


@cache
def _texts() -> dict[str, np.ndarray]:
    """Hashes of the 5-grams of every licence text and notice, by its file's name."""
    paths = sorted((files("openafm.data") / "licence_texts").iterdir(), key=lambda path: path.name)
    return {path.name.removesuffix(".txt"): _grams(path.read_text("utf-8")) for path in paths}


def _grams(text: str) -> np.ndarray:
    return np.unique(ngram_hashes(word_hashes([text])[0], NGRAM))


def recognise(text: str) -> list[tuple[str, float]]:
    """Return the licences whose text or notice stands in a text: SPDX identifier and share of it that is there.

    Of licences that hold one another's words (BSD's two, three and four clauses, GPL's versions) only the one with most
    words found counts.
    """
    if not _SPEAKS.search(text):
        return []
    known, grams = _texts(), _grams(_SIGNS.sub(" ", text))
    there = {name: known[name][np.isin(known[name], grams, assume_unique=True)] for name in known}
    shares = {name: len(there[name]) / len(known[name]) for name in known}
    likely = sorted((name for name in known if shares[name] >= ALIKE), key=lambda name: (-len(there[name]), name))
    chosen: list[str] = []
    for name in likely:
        said = [np.isin(there[name], there[other], assume_unique=True).mean() for other in chosen]
        if max(said, default=0.0) < 0.5:
            chosen.append(name)
    return [(name.removesuffix(".notice"), round(shares[name], 2)) for name in chosen]


def judge_licence(text: str, declared: str) -> tuple[str, str]:
    """Return (reason, evidence) for a code file under a package's `declared` licence; reason "" lets it pass."""
    head = text[:6000]
    header = _HEADER.search(head)
    if header:
        said = header[1].strip()
        return ("", "") if permissive(said) else ("licence.not-permissive", f"SPDX header: {said}")
    licence, found = spdx(declared), recognise(head)
    good = [name for name, _ in found if permissive(name)]
    copyleft = _COPYLEFT.search(head)
    if copyleft and not good and " OR " not in declared.upper():
        return "licence.copyleft", f"the file's head names the {copyleft[0]}"
    if licence and not good and not permissive(licence):
        return "licence.not-permissive", f"package: {licence}"
    if found and len(good) < len(found) and not (good and _EITHER.search(head)):
        name, share = next((name, share) for name, share in found if name not in good)
        return "licence.copyleft", f"{share:.0%} of the words of {name} are in the file's head"
    if not licence and not good:
        return "licence.unknown", "neither the file nor its package names a licence"
    return "", ""


def judge_set(licence: str, allowed: Collection[str]) -> tuple[str, str]:
    """Return (reason, evidence) for a document of a public set: its licence must be permissive or on the list."""
    if not licence:
        return "licence.unknown", "its source names no licence"
    if permissive(spdx(licence)) or licence in allowed:
        return "", ""
    return "licence.not-listed", licence


def terms(licence: str) -> str:
    """Say in a few words what a licence asks for: a line of the ledger."""
    name = spdx(licence)
    if not name:
        return "unknown: none is declared"
    if name in ("Public-Domain", "CC0-1.0", "Unlicense", "0BSD", "MIT-0", "blessing", "WTFPL", "CC-PDDC"):
        return "none: public domain or as good as"
    if permissive(name):
        return "attribution: keep copyright and licence notices"
    if "NC" in name.split("-"):
        return "non-commercial use only"
    if "SA" in name.split("-"):
        return "attribution and share alike"
    if re.search(r"GPL|MPL|EPL|GFDL|CDDL|OSL", name):
        return "copyleft: distributed copies and derived works stay under it"
    return "see the licence"
