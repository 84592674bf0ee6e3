"""Whether a site's robots.txt lets our agent fetch a page (RFC 9309); the `extract` step drops what it does not.

A crawl may have been made under another name, so the rules are applied again to every page of an archive.
"""

from functools import lru_cache

from protego import Protego

AGENT = "openafm"
MAX_BYTES = 500 * 1024
"""RFC 9309, section 2.5: a parser must read at least 500 KiB; what follows is ignored."""


@lru_cache(maxsize=256)
def _rules(robots_txt: bytes) -> Protego:
    text = robots_txt[:MAX_BYTES].decode("utf-8-sig", "replace").replace("\x00", "")
    return Protego.parse(text)


def allowed(robots_txt: bytes, url: str, agent: str = AGENT) -> bool:
    """Return whether `agent` may fetch `url` under these rules.

    The group that names the agent wins over `*`, then the longest matching rule, `Allow` at equal length (RFC 9309,
    section 2.2). An empty or unreadable file allows everything; `robots.txt` itself is always allowed.
    """
    return bool(_rules(bytes(robots_txt)).can_fetch(url, agent))


def allowed_by_status(status: int) -> bool | None:
    """Return what the answer to robots.txt says by itself: 5xx shuts out, other failures allow, None reads the body.

    RFC 9309, section 2.3.1: a site that cannot be reached is taken to disallow everything.
    """
    if 200 <= status < 300:
        return None
    return status < 500
