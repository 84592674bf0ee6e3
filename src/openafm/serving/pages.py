"""Web pages of this package, shut: only their own script and style run, and nothing is asked elsewhere."""

import base64
import hashlib
import re
from importlib import resources

from fastapi import Response


def page(name: str) -> Response:
    """One of the package's pages, one script and one style in each, with the headers that keep it shut."""
    content = resources.files("openafm.serving").joinpath(name).read_bytes()

    def digest(tag: bytes) -> str:
        inline = re.search(rb"<%s>(.*?)</%s>" % (tag, tag), content, re.DOTALL)
        assert inline
        return f"'sha256-{base64.b64encode(hashlib.sha256(inline[1]).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {digest(b'script')}; style-src {digest(b'style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(content, media_type="text/html", headers=headers)
