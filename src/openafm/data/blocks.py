"""A page's HTML as a flat list of text blocks, each with its place in the tree of boxes (used by `extract`).

The HTML comes out of a parser, so every tag is closed, lower case and quoted. One regular expression sweeps it once and
nothing recurses: nesting of any depth costs no more than its length.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from html import unescape

MAX_TOKENS = 600_000
"""Tags and texts read from one page; what follows is cut off, so that a hostile page costs seconds at most."""

_ATTRIBUTES = r'((?: [^\s=>]*="[^"]*")*+)'
_TOKEN = re.compile(
    rf"<(script|style|noscript|iframe|xmp|noembed|noframes|plaintext){_ATTRIBUTES}>.*?</\1>"  # unescaped text
    rf"|<(/?)([a-z][^\s/>]*){_ATTRIBUTES} ?/?>|<!--.*?-->|<[^>]*>|([^<]+)",
    re.S | re.I,
)
_MARKS = re.compile(r' (?:class|id|role)="([^"]*)"')
_HIDDEN = re.compile(r' hidden="|aria-hidden="true"| style="[^"]*display: ?none', re.I)

_BOXES = frozenset(
    "address article aside blockquote body center dd details dialog div dl dt fieldset figcaption figure footer form"
    " header hgroup legend li main nav ol p section summary table tbody tfoot thead tr td th ul caption"
    " h1 h2 h3 h4 h5 h6 pre listing".split()
)
_VOID = frozenset("area base br col embed hr img input link meta source track wbr param".split())
_SKIPPED = frozenset("button canvas datalist dialog head map math object option select svg template textarea".split())
_HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())
_PRE = frozenset(("pre", "listing"))
_ANCHOR_MARKS = frozenset(("¶", "#", "§", "🔗", "◆", "", "[edit]", "[source]"))
_LINE_NUMBERS = re.compile(r"(?<![a-z])(linenos?|line-?numbers?|gutter|lnt|copybtn|mathjax_preview)(?![a-z])")

# Words of class, id and role that Readability (Arc90, Mozilla) takes as a sign against and for body text.
_AGAINST = re.compile(
    r"(?<![a-z])(ads?|advert\w*|banner|buttons?|byline|complementary|contentinfo|copyright|crumbs?|dialog|login|menus?|modal"
    r"|nav|next|pager|popup|prev|promo\w*|recommend\w*|related|rss|search|share|sharing|shop-cart|signup|skip|social|tags"
    r"|toc|toolbar|top-?bar|widgets?)(?![a-z])"
    r"|breadcrumb|combx|consent|cookie|disqus|footer|gdpr|masthead|navbar|navhead|navigation|newsletter|outbrain"
    r"|pagination|sidebar|skyscraper|sponsor|subscribe|indextable|localtable"
)
_FOR = re.compile(r"(?<![a-z])(article|body|content|documentwrapper|entry|hentry|main|post|story|text)(?![a-z])")
_TAG_WEIGHTS = {"nav": -3.0, "footer": -3.0, "aside": -2.0, "header": -1.0, "form": -0.5, "figcaption": -0.5}


@dataclass(slots=True)
class Box:
    """One block-level element: its parent's index (-1 for the root) and how its tag, class and id speak for it."""

    parent: int
    tag: str
    weight: float


@dataclass(slots=True)
class Block:
    """One run of text. `linked` counts the characters inside links; `group` joins the items of one list or table."""

    kind: str
    text: str
    linked: int
    box: int
    marker: str = ""
    depth: int = 0
    group: int = -1
    words: int = field(init=False)

    def __post_init__(self) -> None:
        self.words = self.text.count(" ") + self.text.count("\n") + 1


@lru_cache(maxsize=4096)
def _weight(tag: str, attributes: str) -> float:
    """Return the weight of a tag with its class, id and role; about -3 (surely not body) to +1."""
    weight = _TAG_WEIGHTS.get(tag, 0.0)
    names = " ".join(_MARKS.findall(attributes)).lower() if attributes else ""
    if names and tag != "body":
        if _AGAINST.search(names):
            weight -= 2.0
        elif _FOR.search(names):
            weight += 1.0
    return weight + (tag in ("article", "main"))


@lru_cache(maxsize=4096)
def _hidden(attributes: str) -> bool:
    return bool(attributes) and bool(_HIDDEN.search(attributes) or _LINE_NUMBERS.search(attributes.lower()))


class _Sweep:
    """The state of one pass over a page's tags and texts."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.boxes = [Box(-1, "body", 0.0)]
        self.open: list[tuple[str, int]] = []  # (tag, first block inside), innermost last; box indices in `path`
        self.path = [0]
        self.pieces: list[str] = []
        self.linked = self.link_start = 0
        self.in_link = self.pre = 0
        self.lists: list[list[int | str]] = []  # [tag, next number] of the open lists
        self.marker = ""

    def text(self, raw: str) -> None:
        text = unescape(raw) if "&" in raw else raw
        if self.in_link and not self.pre:
            if text.strip() in _ANCHOR_MARKS:
                return
            self.linked += len(text.strip())
        self.pieces.append(text)

    def flush(self, kind: str = "p") -> None:
        """End the running text and keep it as a block."""
        if not self.pieces:
            return
        text, self.pieces = "".join(self.pieces), []
        linked, self.linked = self.linked, 0
        if kind == "pre":
            text = text.replace("\x1e", "\n").expandtabs(4).rstrip().strip("\n")
        elif "\x1e" in text:
            text = "\n".join(" ".join(line.split()) for line in text.split("\x1e")).strip()
        else:
            text = " ".join(text.split())
        if text.strip():
            self.blocks.append(Block(kind, text, linked, self.path[-1], self.marker, len(self.lists)))
            self.marker = ""

    def start(self, tag: str, attributes: str) -> None:
        if self.pre:  # lines of a listing may be wrapped in blocks
            if tag in _PRE:
                self.pre += 1
            elif tag in ("div", "p", "li", "tr") and self.pieces and not self.pieces[-1].endswith("\n"):
                self.pieces.append("\n")
            return
        self.flush()
        self.path.append(len(self.boxes))
        self.boxes.append(Box(self.path[-2], tag, _weight(tag, attributes)))
        self.open.append((tag, len(self.blocks)))
        if tag in _PRE:
            self.pre = 1
        elif tag in ("ul", "ol"):
            self.lists.append([tag, 1])
        elif tag == "li" and self.lists:
            ordered = self.lists[-1][0] == "ol"
            self.marker = f"{self.lists[-1][1]}. " if ordered else "- "
            self.lists[-1][1] = int(self.lists[-1][1]) + 1

    def end(self, tag: str) -> None:
        if self.pre:
            self.pre -= tag in _PRE
            if self.pre:
                return
        if not self.open or self.open[-1][0] != tag:
            return
        self.flush("pre" if tag in _PRE else tag if tag in _HEADINGS else "p")
        first = self.open.pop()[1]
        self.path.pop()
        if tag in ("ul", "ol"):
            self.lists.pop()
            if not self.lists:
                _group_list(self.blocks, first)
        elif tag == "li":
            self.marker = ""
        elif tag == "table":
            self.blocks[first:] = _table(self.blocks[first:], self.boxes, first)


def _group_list(blocks: list[Block], first: int) -> None:
    """Judge a list of short items as a whole; items as long as paragraphs speak for themselves."""
    items = blocks[first:]
    if items and all(block.kind == "p" for block in items) and sum(b.words for b in items) < 40 * len(items):
        for block in items:
            block.group = first


def _table(cells: list[Block], boxes: list[Box], group: int) -> list[Block]:
    """Join a data table's cells into blocks of rows, parted by headings; a table used for layout keeps its blocks."""
    if any(block.kind in ("pre", "table") or block.marker for block in cells):
        return cells
    joined: list[Block] = []
    start = 0
    for at in range(len(cells) + 1):
        if at == len(cells) or cells[at].kind != "p":
            joined += _rows(cells[start:at], boxes, group + at)
            joined += cells[at : at + 1]
            start = at + 1
    return joined


def _rows(cells: list[Block], boxes: list[Box], group: int) -> list[Block]:
    """Return the cells as one block, a line a row and bars between columns, unless they look like layout."""
    rows: dict[int, dict[int, list[str]]] = {}
    for block in cells:
        at, cell = block.box, -1
        while at > 0 and boxes[at].tag not in ("tr", "caption", "table"):
            cell = at if boxes[at].tag in ("td", "th") else cell
            at = boxes[at].parent
        rows.setdefault(at, {}).setdefault(cell, []).append(block.text.replace("\n", " "))
    widest = max((len(row) for row in rows.values()), default=0)
    if widest < 2 or sum(block.words for block in cells) > 60 * len(cells) or len(cells) > 4 * widest * len(rows):
        return cells
    lines = [" | ".join(" ".join(parts) for parts in row.values()) for row in rows.values()]
    return [Block("table", "\n".join(lines), sum(b.linked for b in cells), boxes[cells[0].box].parent, "", 0, group)]


def read_blocks(html: str) -> tuple[list[Block], list[Box]]:
    """Return the text blocks of serialised HTML in reading order and the tree of boxes that holds them."""
    sweep = _Sweep()
    skip_tag, skip_depth = "", 0
    for count, match in enumerate(_TOKEN.finditer(html)):
        _, _, closing, tag, attributes, text = match.groups()
        if skip_depth:
            if tag == skip_tag:
                skip_depth += -1 if closing else 1
        elif text is not None:
            sweep.text(text)
        elif tag is None:
            continue
        elif tag == "br":
            sweep.pieces.append("\x1e")
        elif not closing and tag not in _VOID and (tag in _SKIPPED or _hidden(attributes)):
            skip_tag, skip_depth = tag, 1
        elif tag in _BOXES:
            if closing:
                sweep.end(tag)
            else:
                sweep.start(tag, attributes)
        elif tag == "a":
            sweep.in_link = 0 if closing else int(" href=" in attributes)
        elif tag == "hr":
            sweep.flush()
        if count > MAX_TOKENS:
            break
    sweep.flush()
    return sweep.blocks, sweep.boxes
