"""Whether a site's robots.txt lets our agent fetch a page (RFC 9309); the crawler and the `extract` step ask here.

A crawl may have been made under another name, so the rules are applied again to every page of an archive. Patterns are
matched by searching their parts one after the other, never by a regular expression, which a hostile file could make
run for hours.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

AGENT = "openafm"
MAX_BYTES = 500 * 1024
"""RFC 9309, section 2.5: a parser must read at least 500 KiB; what follows is ignored."""
MAX_REDIRECTS = 5
"""Section 2.3.1.2: so many redirects are followed; behind more the file counts as unavailable."""
CACHE_SECONDS = 24 * 3600
"""Section 2.4: rules older than this are fetched again."""

_LINE = re.compile(  # with the misspellings that Google's parser knows, and a colon that was left out
    r"\s*(user[- ]?agent|allow|disallow|dissallow|dissalow|disalow|diasllow|disallaw|crawl[- ]delay)\s*[:\s]\s*(.*)",
    re.I,
)
_TOKEN = re.compile(r"[a-zA-Z_-]+")
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # those between stand for bytes that are no UTF-8
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_FORBIDDEN = re.compile(rb"[^A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@dataclass(frozen=True)
class Rule:
    """One `Allow` or `Disallow` line: the parts between its stars, and whether it ends with `$`."""

    parts: tuple[str, ...]
    anchored: bool
    allow: bool
    octets: int
    """Length of the pattern: the longest match wins (section 2.2.2)."""

    def matches(self, path: str) -> bool:
        """Tell whether the pattern fits a normalized path from its first octet on."""
        if not path.startswith(self.parts[0]):
            return False
        at = len(self.parts[0])
        for part in self.parts[1:-1] if self.anchored else self.parts[1:]:
            at = path.find(part, at)
            if at < 0:
                return False
            at += len(part)
        if not self.anchored:
            return True
        last = self.parts[-1]
        return at == len(path) if len(self.parts) == 1 else path.endswith(last) and len(path) - len(last) >= at


@dataclass(frozen=True)
class Robots:
    """A parsed robots.txt: rules and crawl delays (seconds) by product token in lower case, `*` for everybody else."""

    rules: dict[str, tuple[Rule, ...]]
    delays: dict[str, float]

    def group(self, agent: str) -> str:
        """Name of the group that an agent must obey: its own, else `*`."""
        token = product_token(agent)
        return token if token and token in self.rules else "*"

    def allows(self, url: str, agent: str) -> bool:
        """Tell whether the longest rule that fits is an `Allow`; equal lengths and no rule at all allow."""
        path = comparable(url)
        if path == "/robots.txt":
            return True
        fitting = [(one.octets, one.allow) for one in self.rules.get(self.group(agent), ()) if one.matches(path)]
        return max(fitting, default=(0, True))[1]

    def delay(self, agent: str) -> float:
        """Seconds to wait between two requests; 0 where the file asks for none."""
        return self.delays.get(self.group(agent), 0.0)


def product_token(agent: str) -> str:
    """Return the name that `User-agent` lines are compared with: "OpenAFM/0.1 (+mail)" -> "openafm"; "" for none."""
    name = agent.split("/", 1)[0].strip()
    found = _TOKEN.match(name)
    return found[0].lower() if found and not re.search(r"\s", name) else ""


def normalize(path: str) -> str:
    """Return a path or pattern in the one spelling in which they are compared (section 2.2.2).

    Octets that a URI may not hold are escaped, escaped unreserved ones unescaped, and so are `:` and `/` in the query,
    where they separate nothing.
    """
    data = _LONE_SURROGATE.sub("\ufffd", path).encode("utf-8", "surrogateescape")
    text = _FORBIDDEN.sub(lambda found: b"%%%02X" % found[0][0], data).decode("ascii")
    text = re.sub("%(?![0-9a-fA-F]{2})", "%25", text)
    before, mark, query = text.partition("?")
    return _unescape(before, _UNRESERVED) + mark + _unescape(query, _UNRESERVED | {":", "/"})


def _unescape(text: str, characters: frozenset[str]) -> str:
    def one(found: re.Match[str]) -> str:
        """The character that an escape stands for, if it may stand unescaped; else the escape in capitals."""
        character = chr(int(found[1], 16))
        return character if character in characters else found[0].upper()

    return _ESCAPE.sub(one, text)


def _special(text: str) -> str:
    """Escape what is no wildcard here: a star or dollar of a URL, a dollar inside a pattern (section 2.2.3)."""
    return text.replace("$", "%24")


def comparable(url: str) -> str:
    """Path and query of a URL as patterns are compared with them."""
    try:
        parts = urlsplit(url)
    except ValueError:  # a malformed host; the path can still be told apart
        return _special(normalize("/" + url.partition("://")[2].partition("/")[2])).replace("*", "%2A")
    path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    return _special(normalize(path)).replace("*", "%2A")


def rule(value: str, allow: bool) -> Rule:
    """Read one pattern."""
    pattern = normalize(value)
    anchored = pattern.endswith("$")
    body = pattern[:-1] if anchored else pattern
    return Rule(tuple(_special(part) for part in body.split("*")), anchored, allow, len(pattern))


def _text(robots_txt: bytes) -> str:
    """Decode the part that counts; a line that the limit cuts is left out, for half a rule may be another rule."""
    data = robots_txt[:MAX_BYTES]
    if len(robots_txt) > MAX_BYTES:
        data = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace").encode("utf-8", "replace").decode()
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").replace("\0", "")


@lru_cache(maxsize=256)
def parse(robots_txt: bytes) -> Robots:
    """Read a robots.txt. Any bytes give rules; what cannot be read as a line is skipped (section 2.2)."""
    rules: dict[str, list[Rule]] = {}
    delays: dict[str, float] = {}
    agents: list[str] = []
    open_group = False  # whether the next user-agent line joins these agents
    for line in re.split(r"[\r\n]+", _text(robots_txt)):
        found = _LINE.match(line.split("#", 1)[0])
        if not found:
            continue
        key, value = found[1].lower(), found[2].strip(" \t\v\f")
        if key.startswith("user"):
            agents = [*agents, _agent(value)] if open_group else [_agent(value)]
            open_group = True
            rules.setdefault(agents[-1], [])
        elif key.startswith("crawl"):
            seconds = _seconds(value)
            delays.update(dict.fromkeys(agents, seconds) if seconds is not None else {})
        else:
            open_group = False
            if value:
                for agent in agents:
                    rules[agent].append(rule(value, key == "allow"))
    return Robots({agent: tuple(group) for agent, group in rules.items()}, delays)


def _agent(value: str) -> str:
    """The product token of a user-agent line, "*" for everybody, "" for a name that nobody can have."""
    if value == "*" or re.match(r"\*\s", value):
        return "*"
    found = _TOKEN.match(value)
    return found[0].lower() if found else ""


def _seconds(value: str) -> float | None:
    found = re.match(r"\d{1,9}(\.\d{1,9})?", value)
    return float(found[0]) if found else None


def allowed(robots_txt: bytes, url: str, agent: str = AGENT) -> bool:
    """Return whether `agent` may fetch `url` under these rules.

    The groups that name the agent, joined, win over `*`; then the longest matching rule, `Allow` at equal length (RFC
    9309, section 2.2). An empty or unreadable file allows everything; `robots.txt` itself is always allowed.
    """
    return parse(bytes(robots_txt)).allows(url, agent)


def allowed_by_status(status: int) -> bool | None:
    """Return what the answer to robots.txt says by itself: 5xx shuts out, other failures allow, None reads the body.

    RFC 9309, section 2.3.1: a site that cannot be reached is taken to disallow everything.
    """
    if 200 <= status < 300:
        return None
    return 300 <= status < 500
