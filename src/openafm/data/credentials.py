"""Credentials in text and code, part of `pii`: tokens by their issuer's form, keys, connection strings, assignments.

What an issuer marks (`ghp_`, `AKIA`) is found wherever it stands. A value assigned to a name such as `api_key` counts
when it looks drawn at random: by its entropy, and by not being a placeholder or an expression.
"""

import math
import re
from collections import Counter

from openafm.data.spans import Places

_ISSUED = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----[\sA-Za-z0-9+/=:,.\\-]{60,}?-----END [A-Z ]+-----"
    r"|(?<![A-Za-z0-9])(?:(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z2-7]{16}(?![A-Za-z0-9])|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|github_pat_\w{22,}|gl(?:pat|dt|rt|ptt|ft)-[\w-]{20,}|xox[abeoprs]-[\w-]{10,}|xapp-\d-[\w-]{20,}"
    r"|(?:[srp]k|rk)_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{24,}"
    r"|AIza[\w-]{35}|ya29\.[\w-]{30,}|GOCSPX-[\w-]{28}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|hf_[A-Za-z0-9]{30,}"
    r"|sk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}|SG\.[\w-]{20,}\.[\w-]{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    r"|hooks\.slack\.com/services/T\w{8,}/B\w{8,}/\w{20,}|discord(?:app)?\.com/api/webhooks/\d{16,}/[\w-]{40,}"
    r"|\d{8,10}:AA[\w-]{33}(?![\w-])|do[opr]_v1_[a-f0-9]{64}|dapi[a-f0-9]{32}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"
    r"|sq0(?:atp|csp)-[\w-]{22,}|key-[0-9a-f]{32}(?![0-9a-f])|lin_api_[A-Za-z0-9]{40}|dckr_pat_[\w-]{20,}"
    r"|hvs\.[\w-]{24,}|AGE-SECRET-KEY-1[A-Z0-9]{58}|EAACEdEose0cBA[A-Za-z0-9]+|ATATT3[\w=-]{60,}"
    r"|AccountKey=[A-Za-z0-9+/]{60,}={0,2})"
)
_SIGNS = (
    *("PRIVATE KEY", "AKIA", "ASIA", "AGPA", "AIDA", "AROA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    *("glpat-", "gldt-", "glrt-", "glptt-", "glft-", "xox", "xapp-", "k_live_", "k_test_", "whsec_", "AIza", "ya29."),
    *("GOCSPX-", "npm_", "pypi-", "hf_", "sk-", "SG.", "eyJ", "hooks.slack", "api/webhooks", ":AA", "_v1_", "dapi"),
    *("shpat_", "shpca_", "shppa_", "shpss_", "sq0", "key-", "lin_api_", "dckr_pat_", "hvs.", "AGE-SECRET", "EAACEd"),
    *("ATATT3", "AccountKey="),
)
"""Plain searches are twenty times as fast as the expression, which only runs on a text with one of these."""
_NAME = re.compile(
    r"passw(?:or)?d|passphrase|passwd|pass(?<=[_-]pass)(?=[\"'\s]*[:=])|pwd|secret|api[_-]?key|access[_-]?key"
    r"|auth[_-]?key|private[_-]?key|account[_-]?key|signing[_-]?key|token|credentials?|authorization|bearer"
)
_ASSIGNED = re.compile(
    r"(?:[_-]?(?:access|key|token|id))*[\"']?\]?\s{0,4}(?:=>|:=|[:=])\s{0,4}(?:(?:Bearer|Basic|Token) )?[\"']?"
    r"([^\s\"'`<>(){},;$]{8,160})(?![(\w])",
    re.I,
)
_SAID = re.compile(r"(?: +is)?[: ]{1,3}[\"'`]?([^\s\"'`<>(){},;$]{10,120})(?![(\w])", re.I)
"""A value after `Bearer` or "the password is": it must be of three classes of characters."""
_URL_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{0,60}:([^\s/@\"'<>]{6,80})@(?!example\.)")
_DSN_PASSWORD = re.compile(r"(?:Password|Pwd)\s?=\s?([^;\s\"'<>{}$]{6,60})(?=[;\"'\s]|$)", re.I)
_DSN_SIGN = re.compile(r"(?:Server|Data Source|Host|User ?ID|Uid|Database|Initial Catalog)\s?=", re.I)
_PLACEHOLDER = re.compile(
    r"x{4,}|\*{3,}|\.{3}|123456|abcdef|abc-?def|example|your|change|passw[o0]rd|passwd|s[e3]cret|secr[e3]t|-encrypted|dummy|sample|test"
    r"|placeholder|foo|none|null|token|\bmy|redacted|\bfake|env\.|process\.|config\.|os\.|%[sd(]|\$\{|^\W+$",
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
        and not re.match(r"(?:https?|file|git|ssh)://|[\w.-]+\.(?:com|org|net|io|py|js|json|html)\b|/|\./", value)
    )


def _strong(value: str) -> bool:
    """Letters of both cases and digits: what a sentence's own words are not."""
    return any(map(str.isupper, value)) and any(map(str.islower, value)) and _random_looking(value)


def secrets(text: str) -> Places:
    """Credentials that would let their finder in somewhere."""
    for match in _ISSUED.finditer(text) if any(sign in text for sign in _SIGNS) else ():
        yield match.span()
    lower = text.lower()
    for name in _NAME.finditer(lower if len(lower) == len(text) else text):
        assigned = _ASSIGNED.match(text, name.end())
        if assigned and _random_looking(assigned[1]):
            yield assigned.span(1)
        elif (said := _SAID.match(text, name.end())) and _strong(said[1]):
            yield said.span(1)
    for url in _URL_PASSWORD.finditer(text) if "://" in text else ():
        if not _PLACEHOLDER.search(url[1]):
            yield url.span(1)
    for pair in _DSN_PASSWORD.finditer(text) if "password" in lower or "pwd" in lower else ():
        line = text[max(0, pair.start() - 160) : pair.end() + 80]
        if _DSN_SIGN.search(line) and not _PLACEHOLDER.search(pair[1]):
            yield pair.span(1)
