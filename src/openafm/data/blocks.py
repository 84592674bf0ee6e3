"""A page's HTML as a flat list of text blocks, each with its place in the tree of boxes (used by `extract`).

The HTML comes out of a parser, so every tag is closed, lower case and quoted. One regular expression cuts it at its
tags in one go and nothing recurses: nesting of any depth costs no more than its length. Where there was a compiler,
`native/html/blocks.cpp` does the same, output for output, in a seventh of the time.
"""

import re
from dataclasses import dataclass, field

from openafm.data.mathml import image_formula
from openafm.data.names import is_post, names_of, weigh

try:
    from openafm.data import _blocks
except ImportError:  # installed without a compiler
    _blocks = None  # type: ignore[assignment,unused-ignore]

MAX_TOKENS = 600_000
"""Tags read from one page; what follows is cut off, so that a hostile page costs seconds at most."""

_ATTRIBUTES = r'((?: [^\s=>]*="[^"]*")*+)'
_UNESCAPED = "script style noscript iframe xmp noembed noframes plaintext".split()
"""Elements whose text the serialiser does not escape; what looks like a tag inside is none."""
_TOKEN = re.compile(
    "|".join(rf'<{tag}(?: [^\s=>]*="[^"]*")*+>[^<]*+(?:<(?!/{tag}>)[^<]*+)*+</{tag}>' for tag in _UNESCAPED)
    + rf"|<(/?)([a-z][^\s/>]*){_ATTRIBUTES} ?/?>|<!--.*?-->|<[^>]*>",
    re.S,
)
_HIDDEN = re.compile(r' hidden="| aria-hidden="true"| style="[^"]*(?i:display: ?none|visibility: ?hidden)')
_LINE_NUMBERS = re.compile(
    r' (?:class|id)="(?i:(?:[^"]*[^"a-z-])?(?:linenos?|line-?numbers?|copybtn|mathjax_preview)(?![a-z]))'
)
_MAYBE_HIDDEN = ("hidden=", "style=", "line", "copybtn", "mathjax")

_BOX, _SKIP, _BREAK, _LINK, _RULE, _VOID = range(1, 7)
_ACTIONS = dict.fromkeys(
    "address article aside blockquote center dd details div dl dt fieldset figcaption figure footer form header"
    " hgroup legend li main nav ol p section summary table tbody tfoot thead tr td th ul caption h1 h2 h3 h4 h5 h6 pre"
    " listing".split(),
    _BOX,
)
_ACTIONS |= dict.fromkeys(
    "audio button canvas datalist dialog head map math object option select svg template textarea video".split(), _SKIP
)
_ACTIONS |= dict.fromkeys("area base body col embed img input link meta param source track wbr".split(), _VOID)
_ACTIONS |= {"br": _BREAK, "a": _LINK, "hr": _RULE}
_HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())
_PRE = frozenset(("pre", "listing"))
_ROWS = frozenset(("tr", "caption", "table"))
_ANCHOR_MARKS = frozenset(("¶", "#", "§", "🔗", "◆", "", "[edit]", "[source]"))
_BREAK_MARK = "\x1e"
"""Stands for `<br>` inside running text; the parser's output holds no other one, as control characters are dropped."""


class Boxes:
    """The tree of a page's block-level elements as columns, parents before children; box 0 is the body."""

    __slots__ = ("parent", "tag", "weight")

    def __init__(self, parent: list[int], tag: list[str], weight: list[float]) -> None:
        self.parent, self.tag, self.weight = parent, tag, weight

    def __len__(self) -> int:
        return len(self.parent)


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
        text = self.text
        words = text.count(" ") + text.count("\n") + 1
        self.words = words if len(text) < 15 * words else len(text) // 4  # Chinese and Japanese put no spaces


@dataclass(slots=True)
class Unit:
    """Blocks that are judged together: one paragraph, or a whole list or table."""

    blocks: list[Block]
    words: int
    characters: int
    linked: int
    box: int
    link_density: float = 0.0
    """Share of characters inside links; a listing's links are cross references, not navigation."""


def units(blocks: list[Block]) -> list[Unit]:
    """Join the blocks of one list or table."""
    found: list[Unit] = []
    group = -1
    for block in blocks:
        if block.group >= 0 and block.group == group and found[-1].blocks[-1].kind != "table":
            unit = found[-1]
            unit.blocks.append(block)
            unit.words += block.words
            unit.characters += len(block.text)
            unit.linked += block.linked
        else:
            found.append(Unit([block], block.words, len(block.text), block.linked, block.box))
        group = block.group
    for unit in found:
        if unit.linked and unit.blocks[0].kind != "pre":
            unit.link_density = min(1.0, unit.linked / unit.characters)
    return found


def _hidden(attributes: str) -> bool:
    """Tell whether an element with these attributes is not shown, or shows what is no text of the page."""
    lower = attributes.lower()
    return any(mark in lower for mark in _MAYBE_HIDDEN) and bool(  # plain searches are far faster
        _HIDDEN.search(attributes) or _LINE_NUMBERS.search(attributes)
    )


class _Sweep:
    """The state of one pass over a page's tags and texts."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.boxes = Boxes([-1], ["body"], [0.0])
        self.cells = [(0, -1)]  # for each box its nearest row, and the outermost cell within that; -1 for none
        self.open: list[tuple[str, int, int]] = []  # (tag, first block inside, `layouts`); box indices in `path`
        self.path = [0]
        self.layouts = 0  # tables and posts so far
        self.pieces: list[str] = []
        self.linked = self.pre = 0
        self.lists: list[list[int | str]] = []  # [tag, next number] of the open lists
        self.marker = ""

    def flush(self, kind: str = "p") -> None:
        """End the running text and keep it as a block."""
        text = "".join(self.pieces)
        self.pieces.clear()
        linked, self.linked = self.linked, 0
        if "&" in text:
            text = text.replace("&nbsp;", " ").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        if kind == "pre":
            text = text.replace(_BREAK_MARK, "\n").expandtabs(4).rstrip().strip("\n")
        elif _BREAK_MARK in text:
            text = "\n".join(" ".join(line.split()) for line in text.split(_BREAK_MARK)).strip()
        else:
            text = " ".join(text.split())
        if text and not text.isspace():
            self.blocks.append(Block(kind, text, linked, self.path[-1], self.marker, len(self.lists)))
            self.marker = ""

    def start(self, tag: str, attributes: str) -> None:
        """Open an element: it ends the running text, except in a listing, where it may end a line."""
        if self.pre:  # lines of a listing may be wrapped in blocks
            if tag in _PRE:
                self.pre += 1
            elif tag in ("div", "p", "li", "tr") and self.pieces and not self.pieces[-1].endswith("\n"):
                self.pieces.append("\n")
            return
        if self.pieces:
            self.flush()
        boxes, (row, cell) = self.boxes, self.cells[self.path[-1]]
        if tag in _ROWS:
            row, cell = len(boxes), -1
        elif cell == -1 and tag in ("td", "th"):
            cell = len(boxes)
        self.cells.append((row, cell))
        boxes.parent.append(self.path[-1])
        boxes.tag.append(tag)
        names = names_of(attributes)
        boxes.weight.append(weigh(tag, names))
        self.layouts += tag == "table" or is_post(names)
        self.path.append(len(boxes.parent) - 1)
        self.open.append((tag, len(self.blocks), self.layouts))
        if tag in _PRE:
            self.pre = 1
        elif tag in ("ul", "ol"):
            self.lists.append([tag, 1])
        elif tag == "li" and self.lists:
            ordered = self.lists[-1][0] == "ol"
            self.marker = f"{self.lists[-1][1]}. " if ordered else "- "
            self.lists[-1][1] = int(self.lists[-1][1]) + 1

    def end(self, tag: str) -> None:
        """Close the innermost element if it is a `tag`; blocks of a list or a data table are then joined."""
        if self.pre:
            self.pre -= tag in _PRE
            if self.pre:
                return
        if not self.open or self.open[-1][0] != tag:
            return
        if self.pieces:
            self.flush("pre" if tag in _PRE else tag if tag in _HEADINGS else "p")
        _, first, layouts = self.open.pop()
        self.path.pop()
        if tag in ("ul", "ol"):
            self.lists.pop()
            if not self.lists:
                _group_list(self.blocks, first)
        elif tag == "li":
            self.marker = ""
        elif tag == "table" and layouts == self.layouts:  # one that holds posts or another table has no rows of data
            self.blocks[first:] = self.table(self.blocks[first:], first)

    def table(self, cells: list[Block], group: int) -> list[Block]:
        """Join a data table's cells into blocks of rows, parted by headings; one used for layout keeps its blocks."""
        if any(block.kind in ("pre", "table") or block.marker for block in cells):
            return cells
        joined: list[Block] = []
        start = 0
        for at in range(len(cells) + 1):
            if at == len(cells) or cells[at].kind != "p":
                joined += self.rows(cells[start:at], group + at)
                joined += cells[at : at + 1]
                start = at + 1
        return joined

    def rows(self, cells: list[Block], group: int) -> list[Block]:
        """Return the cells as one block, a line a row and bars between columns, unless they look like layout."""
        rows: dict[int, dict[int, list[str]]] = {}
        for block in cells:
            row, cell = self.cells[block.box]
            rows.setdefault(row, {}).setdefault(cell, []).append(block.text.replace("\n", " "))
        widest = max((len(row) for row in rows.values()), default=0)
        if widest < 2 or sum(block.words for block in cells) > 60 * len(cells) or len(cells) > 4 * widest * len(rows):
            return cells
        lines = [" | ".join(" ".join(parts) for parts in row.values()) for row in rows.values()]
        linked = sum(block.linked for block in cells)
        return [Block("table", "\n".join(lines), linked, self.boxes.parent[cells[0].box], "", 0, group)]


def _group_list(blocks: list[Block], first: int) -> None:
    """Judge a list of short items as a whole; items as long as paragraphs speak for themselves."""
    items = blocks[first:]
    if items and all(block.kind == "p" for block in items) and sum(b.words for b in items) < 40 * len(items):
        for block in items:
            block.group = first


def read_blocks(html: str) -> tuple[list[Block], Boxes]:
    """Return the text blocks of serialised HTML in reading order and the tree of boxes that holds them."""
    if _blocks is None:
        return read_blocks_portable(html)
    blocks, parent, tag, names = _blocks.read_blocks(html, MAX_TOKENS, Block, _hidden, image_formula, is_post)
    return blocks, Boxes(parent, tag, [0.0, *map(weigh, tag[1:], names[1:])])


def read_blocks_portable(html: str) -> tuple[list[Block], Boxes]:
    """Do what `read_blocks` does in Python alone."""
    sweep = _Sweep()
    pieces = sweep.pieces
    skip_tag, skip_depth, in_link = "", 0, False
    parts = _TOKEN.split(html, MAX_TOKENS)
    for text, closing, tag, attributes in zip(parts[0::4], parts[1::4], parts[2::4], parts[3::4], strict=False):
        if skip_depth:
            if tag == skip_tag:
                skip_depth += -1 if closing else 1
            continue
        if text and (pieces or sweep.pre or not text.isspace()):
            if not in_link or sweep.pre:
                pieces.append(text)
            elif len(text) > 9 or text.strip() not in _ANCHOR_MARKS:
                pieces.append(text)
                sweep.linked += len(text)
        action = _ACTIONS.get(tag)
        if not closing and tag is not None and (
            action == _SKIP or (attributes and action not in (_BREAK, _RULE, _VOID) and _hidden(attributes))
        ):  # fmt: skip
            skip_tag, skip_depth = tag, 1
        elif action is None:
            continue
        elif action == _VOID:
            if tag == "img" and (formula := image_formula(attributes)):
                pieces.append(formula)
        elif action == _BOX:
            if closing:
                sweep.end(tag)
            else:
                sweep.start(tag, attributes)
        elif action == _LINK:
            in_link = not closing and " href=" in attributes
        elif action == _BREAK:
            if pieces and pieces[-1] == _BREAK_MARK and not sweep.pre and len(pieces) > 1:
                sweep.flush()  # two in a row part paragraphs
            elif pieces or sweep.pre:
                pieces.append(_BREAK_MARK)
        elif action == _RULE and pieces and not sweep.pre:
            sweep.flush()
    if pieces:
        sweep.flush()
    return sweep.blocks, sweep.boxes
