"""Body text of an HTML page, as light Markdown (paragraphs, headings, lists, tables, listings, LaTeX).

`openafm extract` and the `extract` step call `extract`. Any bytes give an `Extraction`; a page that cannot be decoded
raises `UndecodableError` only from `decode`, so that the step can count it.
"""

import re
from dataclasses import dataclass

from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree
from resiliparse.parse.lang import detect_fast

from openafm.data.blocks import Block, read_blocks
from openafm.data.body import select_body
from openafm.data.mathml import inline_formulas
from openafm.data.metadata import CONTROL, choose_title, is_thread, plain, published

MAX_HTML = 4_000_000
"""Characters of HTML that are read; longer pages are cut off there."""
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})""", re.I)
DEEPEST_LIST = 12
"""Lists within lists that are set in; a hostile page nests so many that the blanks alone would fill the memory."""
MAX_LANGUAGE_DISTANCE = 1000
"""Above this out-of-place measure the n-gram language guess is worth nothing (resiliparse's own cut-off is 1200)."""


class UndecodableError(ValueError):
    """The bytes are no text in any encoding that could be found."""


@dataclass(frozen=True)
class Extraction:
    """A page's body without its headline, which is `title`.

    `language` is the declared primary tag, else a guess, else ""; `date` is the day of publication, YYYY-MM-DD or "".
    """

    text: str
    title: str
    language: str
    date: str

    @property
    def full_text(self) -> str:
        """The text under its headline, as a document reads."""
        return f"# {self.title}\n\n{self.text}" if self.title and self.text else self.text


def decode(html: bytes, charset: str | None = None) -> str:
    """Decode a page: byte order mark, HTTP charset, meta charset, valid UTF-8, then detection (WHATWG HTML, 13.2.3).

    Raises UndecodableError for binary data: when over 2% of the characters are control or replacement characters.
    """
    if html[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = html.decode("utf-16", "replace")
    else:
        declared = charset or next((m[1].decode("ascii") for m in [_CHARSET.search(html[:4096])] if m), None)
        text = _decode_declared(html, declared)
    broken = len(CONTROL.findall(text)) + text.count("\ufffd")
    if broken > 5 and broken > 0.02 * len(text):
        raise UndecodableError(f"{broken} of {len(text)} characters are control or replacement characters")
    return text


def _decode_declared(html: bytes, declared: str | None) -> str:
    encoding = (map_encoding_to_html5(declared) if declared else None) or "utf-8"
    if encoding == "utf-8":
        try:
            return html.decode("utf-8-sig")
        except UnicodeDecodeError:
            encoding = detect_encoding(html, from_html_meta=False) or "windows-1252"
    return bytes_to_str(html, encoding, fallback_encodings=("utf-8", "windows-1252"))


def _language(tree: HTMLTree, text: str) -> str:
    root = tree.document.query_selector("html") if tree.document is not None else None
    declared = (root.getattr("lang") or root.getattr("xml:lang") or "") if root is not None else ""
    primary = re.match(r"[a-zA-Z]{2,3}(?![a-zA-Z])", declared.strip())
    if primary:
        return primary[0].lower()
    code, distance = detect_fast(text[:4000]) if text else ("unknown", MAX_LANGUAGE_DISTANCE + 1)
    return code if distance <= MAX_LANGUAGE_DISTANCE and code != "unknown" else ""


def without_headline(blocks: list[Block], title: str) -> list[Block]:
    """Drop the heading that says the title, where it is the first heading of the body."""
    for at, block in enumerate(blocks[:6]):
        if block.kind[0] == "h":
            said, wanted = plain(block.text), plain(title)
            same = bool(said) and (said == wanted or (len(said) > 12 and (said in wanted or wanted in said)))
            return blocks[:at] + blocks[at + 1 :] if same else blocks
    return blocks


def render(blocks: list[Block]) -> str:
    """Write blocks as light Markdown: items of a list on following lines, everything else a paragraph."""
    parts: list[str] = []
    previous: Block | None = None
    for block in blocks:
        text, indent = block.text, "  " * min(DEEPEST_LIST, max(0, block.depth - 1))
        if block.kind[0] == "h":
            text = f"{'#' * int(block.kind[1])} " + text.replace("\n", " ")
        elif block.kind == "pre":
            text = f"```\n{text}\n```"
        elif block.depth:
            text = indent + (block.marker or "  ") + text.replace("\n", "\n" + indent + "  ")
        tight = previous is not None and block.marker and previous.depth and previous.kind == "p"
        parts.append(("\n" if tight else "\n\n") + text if parts else text)
        previous = block
    return "".join(parts)


def fragment_text(html: str) -> str:
    """Return all text of a fragment of HTML, such as one post of a thread, as light Markdown."""
    tree = HTMLTree.parse(html)
    if tree.body is None:
        return ""
    return CONTROL.sub("", render(read_blocks(inline_formulas(tree.body.html))[0]))


def extract(html: bytes, url: str | None = None, charset: str | None = None) -> Extraction:
    """Extract the body of a page; `charset` is the one of its HTTP header, `url` may tell the date.

    Undecodable bytes and pages without text give an empty text.
    """
    try:
        return extract_decoded(decode(html, charset), url)
    except UndecodableError:
        return Extraction("", "", "", "")


def extract_decoded(source: str, url: str | None = None) -> Extraction:
    """Extract the body of a page that is text already."""
    source = source[:MAX_HTML]
    tree = HTMLTree.parse(source)
    date = published(source, url)
    if tree.body is None:
        return Extraction("", choose_title(tree.title or "", []), "", date)
    blocks, boxes = read_blocks(inline_formulas(tree.body.html))
    title = choose_title(tree.title or "", [block.text for block in blocks if block.kind == "h1"])
    kept = without_headline(select_body(blocks, boxes, is_thread(source)), title)
    text = CONTROL.sub("", render(kept))
    return Extraction(text, title, _language(tree, text), date)
