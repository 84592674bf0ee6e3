"""Which blocks of a page are its body: reader mode and Boilerpipe signals in one score (used by `extract`).

Reader mode (Readability, by Arc90 and Mozilla) looks at the tree: class names, scores of paragraphs summed up their
ancestors. Boilerpipe (Kohlschuetter et al., WSDM 2010) looks at the flow of text: words and link density of a block and
of its neighbours. Each fails where the other is strong, so a block is kept by the sum of both.
"""

import re
from collections import Counter
from dataclasses import dataclass

from openafm.data.blocks import Block, Box

MAIN_SHARE = 0.7
"""The main box is the deepest one that holds this share of the page's paragraph score."""


_FURNITURE = re.compile(
    r"advertisements?|sponsored(?: content| post)?|share(?: this.*| on.*)?|print|tweet|e-?mail|subscribe.*"
    r"|sign (?:up|in).*|log ?in|(?:read|see|view|learn|show) (?:more|all).*|reply|quote|report|like|edit|copy|comments?"
    r"|(?:posts|joined|likes|views|replies|location|reputation): ?[\w ,.]+|previous.*|next.*|back to top.*|skip to.*"
    r"|add to (?:cart|basket|wishlist)|table of contents|loading.*|©.*|[\d.,]+ ?(?:votes?|points?|answers?|replies)?"
    r"|(?:(?:asked|answered|posted|published|written|edited) )?by .{2,40}",
    re.I,
)
"""Short texts that pages are furnished with everywhere."""


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


def is_content(previous: Unit | None, this: Unit, following: Unit | None) -> bool:
    """Boilerpipe's NumWordsRules classifier: the decision tree of Kohlschuetter et al., algorithm 1."""
    if this.link_density > 1 / 3:
        return False
    previous_words, previous_density = (previous.words, previous.link_density) if previous else (0, 0.0)
    next_words = following.words if following else 0
    if previous_density <= 0.555556:
        return this.words > 16 or next_words > 15 or previous_words > 4
    return this.words > 40 or next_words > 17


def paragraph_score(unit: Unit) -> float:
    """Readability's score of a paragraph: one, its commas, a point per 100 characters up to three, less its links."""
    if unit.characters < 25:
        return 0.0
    commas = sum(block.text.count(",") + block.text.count("，") for block in unit.blocks)
    return (1 + min(commas, 10) + min(unit.characters / 100, 3.0)) * (1 - unit.link_density)


def box_weights(found: list[Unit], boxes: list[Box]) -> list[float]:
    """Sum each box's weight with its ancestors', at least -4; a box with half of the page's text is not against it."""
    mass = [0.0] * len(boxes)
    for unit in found:
        mass[unit.box] += unit.characters - unit.linked
    for index in range(len(boxes) - 1, 0, -1):
        mass[boxes[index].parent] += mass[index]
    total = [0.0] * len(boxes)
    for index, box in enumerate(boxes):
        own = max(0.0, box.weight) if mass[index] > 0.5 * mass[0] else box.weight
        above = total[box.parent] if index else 0.0
        if box.tag in ("header", "footer") and above > 0:
            own = max(own, -1.0)  # an article's own header or footer
        total[index] = max(-4.0, min(2.0, above + own))
    return total


def main_box(found: list[Unit], boxes: list[Box], weights: list[float]) -> list[bool]:
    """Return for each box whether it lies in the main box, the deepest with `MAIN_SHARE` of all paragraph scores."""
    score = [0.0] * len(boxes)
    for unit in found:
        score[unit.box] += paragraph_score(unit) * (0.2 if weights[unit.box] <= -1.5 else 1.0)
    for index in range(len(boxes) - 1, 0, -1):
        score[boxes[index].parent] += score[index]
    needed = MAIN_SHARE * score[0]
    main = max((index for index in range(len(boxes)) if score[index] >= needed), default=0)
    if boxes[main].tag in ("p", "pre", "li", "td", "dd", "blockquote"):
        main = max(0, boxes[main].parent)
    inside = [False] * len(boxes)
    for index, box in enumerate(boxes):
        inside[index] = index == main or (index > 0 and inside[box.parent])
    return inside


def _score(found: list[Unit], at: int, inside: bool, weight: float, repeats: int) -> float:
    """Add up the signals for one unit; above 0 it is body text. `repeats` counts the page's units with its text."""
    unit = found[at]
    if unit.words <= 8 and unit.blocks[0].kind == "p":
        lines = unit.blocks[0].text.split("\n")
        if (repeats >= 3 and unit.words <= 5) or any(_FURNITURE.fullmatch(line) for line in lines):
            return -1.0
    previous = found[at - 1] if at else None
    following = found[at + 1] if at + 1 < len(found) else None
    score = (1.0 if is_content(previous, unit, following) else -1.0) + (1.0 if inside else -1.2) + weight
    if unit.link_density > 0.5:
        score -= 1.0
    text = unit.blocks[-1].text
    if unit.blocks[0].kind == "pre" or unit.words >= 12 or text[-1:] in ".!?:;…。":
        score += 0.5
    return score


def _with_headings(found: list[Unit], keep: list[bool], allowed: list[bool], boxes: list[Box]) -> None:
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
            term = boxes[found[at].box].tag == "dt" and allowed[at] and at + 1 < len(found) and keep[at + 1]
            keep[at] = keep[at] or (term and found[at].link_density < 0.9)
            reach = 7 if keep[at] else reach


def select_body(blocks: list[Block], boxes: list[Box]) -> list[Block]:
    """Return the blocks that are the page's body, in order.

    Where next to nothing passes, a page without paragraphs, everything outside of navigation is kept.
    """
    found = units(blocks)
    weights = box_weights(found, boxes)
    inside = main_box(found, boxes, weights)
    repeats = Counter(unit.blocks[0].text for unit in found if unit.words <= 5 and unit.blocks[0].kind == "p")
    keep = [
        _score(found, at, inside[unit.box], weights[unit.box], repeats[unit.blocks[0].text]) > 0
        for at, unit in enumerate(found)
    ]
    plain = [weights[unit.box] > -2 and unit.link_density < 0.5 for unit in found]
    size = sum(unit.characters for unit, kept in zip(found, keep, strict=True) if kept)
    if size < 0.15 * sum(unit.characters for unit, kept in zip(found, plain, strict=True) if kept):
        keep = plain
    allowed = [
        (weights[unit.box] > -2 and (inside[unit.box] or weights[unit.box] > 0))
        or (unit.blocks[0].kind == "h1" and weights[unit.box] > -1)  # a title may stand above the body's box
        for unit in found
    ]
    _with_headings(found, keep, allowed, boxes)
    return [block for unit, kept in zip(found, keep, strict=True) if kept for block in unit.blocks]
