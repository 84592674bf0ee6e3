"""Which code may be used: SPDX licences on an allow-list of permissive ones; the licence filter of the `clean` step.

AFM takes code from licence-filtered repositories (arXiv 2407.21075, section 3.1.3). A file's own header wins over what
its package declares; what nobody declares is not used.
"""

import re

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


def judge_licence(text: str, declared: str) -> tuple[str, str]:
    """Return (reason, evidence) for a code file under a package's `declared` licence; reason "" lets it pass."""
    header = _HEADER.search(text[:4000])
    licence = header[1].strip() if header else declared
    copyleft = None if header else _COPYLEFT.search(text[:4000])
    if copyleft and " OR " not in declared.upper():
        return "licence.copyleft", f"the file's head names the {copyleft[0]}"
    if not licence:
        return "licence.unknown", "neither the file nor its package names a licence"
    if not permissive(licence):
        return "licence.not-permissive", f"{'SPDX header' if header else 'package'}: {licence}"
    return "", ""
