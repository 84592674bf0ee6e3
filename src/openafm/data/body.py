"""Which blocks of a page are its body: reader mode and Boilerpipe signals in one score (used by `extract`).

Reader mode (Readability, by Arc90 and Mozilla) looks at the tree: class names, scores of paragraphs summed up their
ancestors. Boilerpipe (Kohlschuetter et al., WSDM 2010) looks at the flow of text: words and link density of a block and
of its neighbours. Each fails where the other is strong, so a block is kept by a weighted sum of both; the weights are
logistic regression's on the labelled development pages (`benchmarks/extraction_fit.py`).
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from openafm.data.blocks import Block, Boxes
from openafm.data.names import BODY, COMMENTS, POST

MAIN_SHARE = 0.7
"""The main box is the deepest one that holds this share of the page's paragraph score."""
NAMED_SHARE = 0.4
"""A box that is named as the body is believed when it holds this share of the page's paragraph score."""
MIN_OUTSIDE_COMMENTS = 300
"""Characters of text outside of the readers' comments above which the comments are no part of the body."""
LONG = 15
"""Words that make a paragraph long: short ones before the first and after the last long one are often furniture."""


def _phrases(name: str) -> re.Pattern[str]:
    """Return one pattern of the regular expressions in a file of `words/`, a line each."""
    lines = files("openafm.data").joinpath(f"words/{name}.txt").read_text(encoding="utf-8").splitlines()
    return re.compile("|".join(line for line in lines if line and line[0] != "#"), re.I)


_FURNITURE = _phrases("furniture")
_BYLINE = _phrases("bylines")

WEIGHTS = {
    "15 words": -0.57,
    "3 words": 0.23,
    "40 words": -0.72,
    "8 words": -0.54,
    "a byline": -0.17,
    "a common phrase": -1.02,
    "a sentence's end": 1.5,
    "after a long one": 0.85,
    "after links": -0.97,
    "after the text": -0.83,
    "before a long one": 0.79,
    "before links": -0.83,
    "before the text": -0.73,
    "below the text": -0.78,
    "beside the text": 1.03,
    "bias": -1.07,
    "body by name": -0.02,
    "cell": -1.13,
    "dd": 1.9,
    "div": -2.39,
    "doubtful by name": -0.73,
    "furniture by name": -0.55,
    "in the main box": 3.45,
    "in the named body": 4.33,
    "li": -0.71,
    "many links": -1.5,
    "many words": 0.54,
    "nearly all links": -0.34,
    "p": -0.17,
    "pre": 1.38,
    "repeated": 1.72,
    "some links": 0.02,
    "surely furniture by name": -1.83,
    "table": 0.05,
    "under a common phrase": -0.37,
}
"""What each signal adds to a block's log-odds of being body text."""


@dataclass(slots=True)
class Unit:
    """Blocks that are judged together: one paragraph, or a whole list or table."""

    blocks: list[Block]
    words: int
    characters: int
    linked: int
    box: int

    @property
    def link_density(self) -> float:
        """Share of characters inside links; a listing's links are cross references, not navigation."""
        return 0.0 if self.blocks[0].kind == "pre" else min(1.0, self.linked / max(1, self.characters))


def units(blocks: list[Block]) -> list[Unit]:
    """Join the blocks of one list or table."""
    found: list[Unit] = []
    for block in blocks:
        last = found[-1].blocks[-1] if found else None
        if last is not None and block.group >= 0 and block.group == last.group and (last.kind != "table"):
            unit = found[-1]
            unit.blocks.append(block)
            unit.words += block.words
            unit.characters += len(block.text)
            unit.linked += block.linked
        else:
            found.append(Unit([block], block.words, len(block.text), block.linked, block.box))
    return found


def paragraph_score(unit: Unit) -> float:
    """Readability's score of a paragraph: one, its commas, a point per 100 characters up to three, less its links."""
    if unit.characters < 25:
        return 0.0
    commas = sum(block.text.count(",") + block.text.count("，") for block in unit.blocks)
    return (1 + min(commas, 10) + min(unit.characters / 100, 3.0)) * (1 - unit.link_density)


def box_weights(found: list[Unit], boxes: Boxes, thread: bool) -> list[float]:
    """Sum each box's weight with its ancestors', from -4 to 2; a box with half of the page's text is not against it.

    Readers' comments are no body, unless the page is a `thread` or next to nothing stands outside of them.
    """
    size = len(boxes)
    parent, weight, tag = boxes.parent, boxes.weight, boxes.tag
    mass, outside = [0.0] * size, 0.0
    commented = [False] * size
    for index in range(1, size):
        commented[index] = commented[parent[index]] or weight[index] == COMMENTS
    for unit in found:
        plain = unit.characters - unit.linked
        mass[unit.box] += plain
        if not commented[unit.box] and unit.words >= 10:
            outside += plain
    for index in range(size - 1, 0, -1):
        mass[parent[index]] += mass[index]
    thread = thread or POST in weight
    comments = 0.0 if thread or outside < MIN_OUTSIDE_COMMENTS else -4.0
    total = [0.0] * size
    half = 0.5 * mass[0]
    for index in range(1, size):
        own = weight[index]
        if own == COMMENTS:
            own = comments
        elif own in (BODY, POST):
            own = 1.0
        elif own < 0.0 and mass[index] > half:
            own = 0.0
        above = total[parent[index]]
        if above > 0 and own < -1.0 and tag[index] in ("header", "footer"):
            own = -1.0  # an article's own header or footer
        total[index] = max(-4.0, min(2.0, above + own))
    return total


def main_box(found: list[Unit], boxes: Boxes, weights: list[float]) -> tuple[int, list[bool], bool]:
    """Return the main box, for each box whether it lies in it, and whether it is named as the body.

    The main box is the deepest one with `MAIN_SHARE` of all paragraph scores or, inside of it, one named as the body
    with `NAMED_SHARE` of them.
    """
    size, parent = len(boxes), boxes.parent
    score = [0.0] * size
    for unit in found:
        score[unit.box] += paragraph_score(unit) * (0.1 if weights[unit.box] <= -1.5 else 1.0)
    for index in range(size - 1, 0, -1):
        score[parent[index]] += score[index]
    needed = MAIN_SHARE * score[0]
    main = max((index for index in range(size) if score[index] >= needed), default=0)
    named = max((i for i in range(size) if boxes.weight[i] == BODY and score[i] >= NAMED_SHARE * score[0]), default=0)
    main = max(main, named)
    if boxes.tag[main] in ("p", "pre", "li", "td", "dd", "blockquote"):
        main = max(0, parent[main])
    inside = [False] * size
    inside[main] = True
    for index in range(1, size):
        inside[index] = inside[index] or inside[parent[index]]
    at, is_named = main, False
    while at > 0 and not is_named:
        is_named, at = boxes.weight[at] == BODY, parent[at]
    return main, inside, is_named


_TEXT_TAGS = {"p": "p", "li": "li", "td": "cell", "th": "cell", "dd": "dd", "dt": "dd", "blockquote": "p"}


@dataclass(slots=True)
class View:
    """What the signals of a unit are read from: all units, the tree and what is known of the page as a whole."""

    found: list[Unit]
    boxes: Boxes
    weights: list[float]
    inside: list[bool]
    named: bool
    repeats: Counter[str]
    first: int
    last: int
    hold: int
    below: list[bool]
    under: list[bool]


def signals(view: View, at: int) -> Iterator[str]:
    """Name the signals that speak for or against one unit."""
    unit = view.found[at]
    block, words, density = unit.blocks[0], unit.words, unit.link_density
    yield "bias"
    yield "3 words" if words <= 3 else "8 words" if words <= 8 else "15 words" if words <= 15 else (
        "40 words" if words <= 40 else "many words"
    )  # fmt: skip
    kind = block.kind
    yield kind if kind != "p" else _TEXT_TAGS.get(view.boxes.tag[unit.box], "div")
    if density > 0.6:
        yield "nearly all links"
    elif density > 0.3:
        yield "many links"
    elif density > 0.05:
        yield "some links"
    weight = view.weights[unit.box]
    if weight <= -3:
        yield "surely furniture by name"
    elif weight <= -2:
        yield "furniture by name"
    elif weight < 0:
        yield "doubtful by name"
    elif weight > 0:
        yield "body by name"
    if view.inside[unit.box]:
        yield "in the named body" if view.named else "in the main box"
    text = unit.blocks[-1].text
    if text[-1:] in '.!?:;…。！？»”"':
        yield "a sentence's end"
    if words <= 12 and kind == "p":
        if any(_FURNITURE.fullmatch(line) for line in block.text.split("\n")):
            yield "a common phrase"
        elif any(_BYLINE.fullmatch(line) for line in block.text.split("\n")):
            yield "a byline"
        elif view.repeats[block.text] >= 3:
            yield "repeated"
    if view.under[at]:
        yield "under a common phrase"
    parent = view.boxes.parent[unit.box]
    if view.hold in (unit.box, parent):
        yield "beside the text"
    elif view.below[unit.box]:
        yield "below the text"
    if at < view.first:
        yield "before the text"
    elif at > view.last:
        yield "after the text"
    if at and (other := view.found[at - 1]):
        if other.link_density > 0.5:
            yield "after links"
        elif other.words > LONG:
            yield "after a long one"
    if at + 1 < len(view.found) and (other := view.found[at + 1]):
        if other.link_density > 0.5:
            yield "before links"
        elif other.words > LONG:
            yield "before a long one"


def _with_headings(found: list[Unit], keep: list[bool], allowed: list[bool], boxes: Boxes) -> None:
    """Keep a heading when something below it, before the next heading of its level or above, is kept.

    A definition list's term stays with its definition in the same way.
    """
    reach = 0  # level of the nearest kept block below: 7 for text, which any heading may stand over; 0 for nothing
    for at in range(len(found) - 1, -1, -1):
        block = found[at].blocks[0]
        if block.kind[0] == "h":
            level = int(block.kind[1])
            keep[at] = allowed[at] and reach > level and not _FURNITURE.fullmatch(block.text)
            reach = min(reach, level) if reach > level else reach
        else:
            term = boxes.tag[found[at].box] == "dt" and allowed[at] and at + 1 < len(found) and keep[at + 1]
            keep[at] = keep[at] or (term and found[at].link_density < 0.9)
            reach = 7 if keep[at] else reach


def look(blocks: list[Block], boxes: Boxes, thread: bool) -> View:
    """Gather what `signals` reads."""
    found = units(blocks)
    weights = box_weights(found, boxes, thread)
    _, inside, named = main_box(found, boxes, weights)
    repeats = Counter(unit.blocks[0].text for unit in found if unit.words <= 5 and unit.blocks[0].kind == "p")
    long = [
        at
        for at, unit in enumerate(found)
        if unit.words > LONG and unit.link_density < 0.3 and inside[unit.box] and weights[unit.box] > -2
    ]
    first, last = (long[0], long[-1]) if long else (0, len(found))
    hold = text_holder(found, boxes, long)
    below = [False] * len(boxes)
    below[hold] = True
    for index in range(1, len(boxes)):
        below[index] = below[index] or below[boxes.parent[index]]
    under, phrase = [False] * len(found), False
    for at, unit in enumerate(found):
        if unit.blocks[0].kind[0] == "h":
            phrase = bool(_FURNITURE.fullmatch(unit.blocks[0].text))
        under[at] = phrase
    return View(found, boxes, weights, inside, named, repeats, first, last, hold, below, under)


def text_holder(found: list[Unit], boxes: Boxes, long: list[int]) -> int:
    """Return the box in which most of the long paragraphs stand side by side."""
    held: Counter[int] = Counter()
    for at in long:
        box = found[at].box
        held[boxes.parent[box] if boxes.tag[box] in _TEXT_TAGS and box else box] += found[at].characters
    return max(held, key=lambda box: held[box], default=0)


def select_body(blocks: list[Block], boxes: Boxes, thread: bool = False) -> list[Block]:
    """Return the blocks that are the page's body, in order; in a `thread`, the readers' replies are part of it.

    Where next to nothing passes, a page without paragraphs, everything outside of navigation is kept.
    """
    view = look(blocks, boxes, thread)
    found, weights, inside = view.found, view.weights, view.inside
    keep = [sum(WEIGHTS.get(signal, 0.0) for signal in signals(view, at)) > 0 for at in range(len(found))]
    plain = [weights[unit.box] > -2 and unit.link_density < 0.5 for unit in found]
    size = sum(unit.characters for unit, kept in zip(found, keep, strict=True) if kept)
    if size < 0.15 * sum(unit.characters for unit, kept in zip(found, plain, strict=True) if kept):
        keep = plain
    allowed = [
        (weights[unit.box] > -2 and inside[unit.box]) or (unit.blocks[0].kind == "h1" and weights[unit.box] > -1)
        for unit in found
    ]
    _with_headings(found, keep, allowed, boxes)
    return [block for unit, kept in zip(found, keep, strict=True) if kept for block in unit.blocks]
