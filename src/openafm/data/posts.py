"""The posts of a thread: which boxes of a page hold what people wrote, one after another (used by `body`).

A forum's page is mostly furniture by count: names, ranks, dates, signatures and buttons stand between posts that may be
one word long, so no signal of a single block tells a post from a user's rank. What tells is the page as a whole: posts
are boxes of one build, side by side, and within that build the text is always at one place. Boxes named as posts by
the forum's software are such a build; where nothing is named, siblings alike that carry dates and reply links are.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from openafm.data.blocks import Block, Boxes
from openafm.data.names import AGAINST, BODY, COMMENT_TEXT, POST, SIGNATURE

MIN_RECORDS = 3
"""Siblings alike that make a thread where nothing is named."""
MAX_RECORD = 0.7
"""Share of the text that one sibling may hold: with more it is the page's body, and the others are furniture."""
MIN_AT_PLACE = 0.75
"""Share of the posts' text that must stand at one place of their build for the rest to be furniture."""
MIN_INNERMOST = 0.6
"""Share of the text of boxes named as posts that the innermost of them must hold to be the posts."""
MIN_SHARE = 0.3
"""Share of the page's running text that the posts must hold."""
MAX_OUTSIDE, MAX_ABOVE_COMMENTS = 600, 300
"""Characters of paragraphs outside of unnamed posts above which these are comments below an article, and the same where
they are named as comments."""
DEEPEST = 50
"""Boxes within boxes that the text of a post may stand in."""
SHORT, LONG = 12, 15
"""Words up to which a line may be a post's date or button, and above which a block is a long paragraph."""

_AROUND = re.compile(
    r"\d\d?:\d\d(?!\d)|\d{4}-\d\d-\d\d|\b\d\d?[./-]\d\d?[./-]\d\d|\bago\b|^#\d+|\bre:"
    r"|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]* \d\d?\b"
    r"|\b(?:joined|registered|posts?|location|messages)\s*:"
    r"|^(?:posted|asked|answered)\b|\b(?:posted|wrote|asked|answered|said)(?:$|:| (?:by|on|at|in)\b| \d)"
    r"|\b(?:permalink|repl(?:y|ies)|quote|report|likes? this|is o(?:ff|n)line)\b"
    r"|\b(?:senior|junior) member\b|\bnewbie\b|\bvor \d+ |\b(?:antworten|zitieren|geschrieben|beiträge|mitglied)\b"
    r"|\bil y a \d|\b(?:répondre|citer|inscrit|responder|citar|mensajes)\b|ответить|цитата|сообщени"
    r"|回复|回覆|引用|举报|返信|発表于|发表于",
    re.I,
)
"""What stands around a post and not around a paragraph."""
_PART_OF_TEXT = frozenset("p pre ul ol dl dt blockquote h1 h2 h3 h4 h5 h6 td th caption".split())
"""Elements that are no post by themselves."""
_LEAVES = (_PART_OF_TEXT | {"li"}) - {"td"}
"""Elements that the place of the text is not narrowed down to: a post's second paragraph belongs to it too."""


@dataclass(slots=True)
class Page:
    """A page's blocks and boxes with the sums that are asked for again and again."""

    blocks: Sequence[Block]
    boxes: Boxes
    children: dict[int, list[int]]
    """The boxes in a box that hold text, the last one first."""
    mass: list[int]
    """Characters of text outside of links, by box with all below it; furniture by name counts nothing."""


def measure(blocks: Sequence[Block], boxes: Boxes) -> Page:
    """Sum up a page's texts by box."""
    size, parent, weight = len(boxes), boxes.parent, boxes.weight
    mass = [0] * size
    children: dict[int, list[int]] = defaultdict(list)
    for block in blocks:
        mass[block.box] += len(block.text) - block.linked
    for index in range(size - 1, 0, -1):
        held = mass[index]
        if held and weight[index] < 0 and _is_furniture(boxes, index):
            mass[index] = 0
        elif held:
            above = parent[index]
            mass[above] += held
            children[above].append(index)
    return Page(blocks, boxes, children, mass)


def _is_furniture(boxes: Boxes, index: int) -> bool:
    """Tell whether a box is furniture by its name; an `aside` without one is how some forums mark a quotation."""
    weight = boxes.weight[index]
    if weight == SIGNATURE and boxes.tag[index] != "address":
        return True
    return COMMENT_TEXT < weight <= AGAINST and (weight < AGAINST or boxes.tag[index] != "aside")


def named_posts(blocks: Sequence[Block], boxes: Boxes, thread: bool) -> list[bool] | None:
    """Tell for each box whether it lies in the text of a post that is named as one, or None where there are none.

    `thread` says that the page was written by a forum's software, so its names are believed.
    """
    least = 1 if thread else 2 if POST in boxes.weight else MIN_RECORDS
    if boxes.weight.count(POST if POST in boxes.weight else BODY) < least:
        return None
    page = measure(blocks, boxes)
    records = _named(page, thread)
    if len(records) < least:
        return None
    texts = _place_of_text(page, records)
    inside = below(boxes, texts)
    if thread and len(records) > 1:
        most = max(MAX_OUTSIDE, sum(page.mass[index] for index in records))
        sure = _outside(page, records, -1.5) <= most
    else:
        sure = _enough(page, inside) and (thread or _is_discussion(page, records, inside))
    return _without_furniture(boxes, inside, texts) if sure else None


def unnamed_posts(blocks: Sequence[Block], boxes: Boxes, thread: bool) -> list[bool] | None:
    """The same where nothing but their likeness and the dates around them tells posts."""
    page = measure(blocks, boxes)
    records = _alike_with_dates(page, thread)
    if not records:
        return None
    texts = _place_of_text(page, records)
    inside = below(boxes, texts)
    if not _enough(page, inside) or not _told(page, texts):
        return None
    kept = _without_furniture(boxes, inside, texts)
    for block in _opening(page, records):
        kept[block.box] = True
    return kept


def _is_discussion(page: Page, records: list[int], inside: list[bool]) -> bool:
    """Tell whether named texts are posts and not a blog's: dates around them, little else, and no titles with links."""
    if _outside(page, records, -1.5) > MAX_OUTSIDE or not _surrounded(page, records, inside):
        return False
    titles = sum(b.kind[0] == "h" and not inside[b.box] and _is_title(b) for b in page.blocks)
    return 2 * titles < len(records)


def _is_title(block: Block) -> bool:
    """Tell whether a line links to a page of its own."""
    return block.words > 3 and block.linked > 0.6 * len(block.text) and not _is_around(block)


def _alike_with_dates(page: Page, thread: bool) -> list[int]:
    """Siblings alike that most likely are posts; the lines around their texts lose their weight in `page.mass`."""
    records = _alike(page)
    if not records or _is_below_article(page, records):
        return []
    owner = _owners(page.boxes, records)
    dated = {owner[block.box] for block in page.blocks if owner[block.box] >= 0 and _is_around(block)}
    if len(dated) < (2 if thread else MIN_RECORDS) or _titles(page, owner, dated):
        return []
    return [index for index in records if index in dated]


def _unweigh_around(page: Page, records: list[int]) -> None:
    """Take the lines around the texts out of the sums, so that they weigh nothing against posts of a few words."""
    owner = _owners(page.boxes, records)
    parent, mass = page.boxes.parent, page.mass
    less = [0] * len(mass)
    for block in page.blocks:
        if owner[block.box] >= 0 and mass[block.box] and _is_around(block):
            less[block.box] += len(block.text) - block.linked
    for index in range(len(mass) - 1, 0, -1):
        if less[index]:
            mass[index] -= less[index]
            less[parent[index]] += less[index] if mass[parent[index]] else 0


def _is_below_article(page: Page, records: list[int]) -> bool:
    """Tell whether there is text enough outside of the siblings for an article; where they are named as comments, the
    names of other boxes are not believed either.
    """
    boxes, at = page.boxes, records[0]
    while at > 0 and boxes.weight[at] > COMMENT_TEXT:
        at = boxes.parent[at]
    return _outside(page, records, -1.5) > MAX_OUTSIDE if not at else _outside(page, records, -9.5) > MAX_ABOVE_COMMENTS


def _is_around(block: Block) -> bool:
    """Tell whether a block is a short line such as stands around a post."""
    return block.words <= SHORT and block.kind != "table" and _says_around(block.text)


@lru_cache(maxsize=65_536)
def _says_around(text: str) -> bool:
    return _AROUND.search(text) is not None


def _owners(boxes: Boxes, records: list[int]) -> list[int]:
    """For each box the record that it lies in, or -1."""
    owner = [-1] * len(boxes)
    for index in records:
        owner[index] = index
    for index in range(1, len(owner)):
        if owner[index] < 0:
            owner[index] = owner[boxes.parent[index]]
    return owner


def _named(page: Page, thread: bool) -> list[int]:
    """Boxes named as posts or, in a thread, as a body or the text of a comment; the innermost where these hold most."""
    weight, parent, mass = page.boxes.weight, page.boxes.parent, page.mass
    name = POST if POST in weight else BODY
    wanted = (name, COMMENT_TEXT) if thread or _among(weight, name) else (name,)
    nearest = [0] * len(weight)  # the named box that holds a box; -1 within furniture
    outer, holders = [], set()
    for index in range(1, len(weight)):
        above = nearest[parent[index]]
        nearest[index] = -1 if _is_furniture(page.boxes, index) else above
        if weight[index] in wanted and mass[index] and above >= 0:
            nearest[index] = index
            holders.add(above)
            if not above:
                outer.append(index)
    inner = [index for index in range(1, len(weight)) if nearest[index] == index and index not in holders]
    most = MIN_INNERMOST * sum(mass[index] for index in outer)
    return inner if sum(mass[index] for index in inner) >= most else outer


def _among(weight: list[float], name: float) -> bool:
    """Tell whether comments stand between boxes of a name, so that they answer these and not the page as a whole."""
    first = weight.index(name)
    return COMMENT_TEXT in weight[first : len(weight) - weight[::-1].index(name)]


def _alike(page: Page) -> list[int]:
    """The siblings of one tag and weight that hold most of the text, none of them nearly all of it."""
    boxes, mass = page.boxes, page.mass
    best: list[int] = []
    best_mass = 0
    for index, kids in page.children.items():
        if len(kids) < MIN_RECORDS or mass[index] <= best_mass:
            continue
        groups: dict[tuple[str, float], list[int]] = defaultdict(list)
        for kid in kids:
            if boxes.tag[kid] not in _PART_OF_TEXT:
                groups[boxes.tag[kid], boxes.weight[kid]].append(kid)
        for group in groups.values():
            total = sum(mass[kid] for kid in group)
            if len(group) >= MIN_RECORDS and total > best_mass and max(mass[k] for k in group) <= MAX_RECORD * total:
                best, best_mass = group, total
    return best if best_mass >= MIN_SHARE * mass[0] else []


def _place_of_text(page: Page, records: list[int]) -> list[int]:
    """Go down the common build of all posts for as long as nearly all their text stands at one place of it."""
    boxes, mass = page.boxes, page.mass
    _unweigh_around(page, records)
    at = records
    for _ in range(DEEPEST):
        total = sum(mass[index] for index in at)
        places: dict[tuple[str, float, int], list[int]] = defaultdict(list)
        for index in at:
            seen: dict[tuple[str, float], int] = defaultdict(int)
            for kid in reversed(page.children.get(index, ())):
                kind = (boxes.tag[kid], boxes.weight[kid])
                if kind[0] not in _LEAVES and mass[kid]:
                    places[*kind, seen[kind]].append(kid)
                    seen[kind] += 1
        place, below = max(
            places.items(), key=lambda entry: sum(mass[kid] for kid in entry[1]), default=(("", 0.0, 0), [])
        )
        told = {boxes.parent[kid] for kid in below}
        others = (_nth(page, index, place) for index in at if index not in told)  # posts that read like a date
        whole = sorted([*below, *(kid for kid in others if kid)])
        if len(whole) < 0.7 * len(at) or sum(mass[kid] for kid in below) < MIN_AT_PLACE * total:
            return at
        at = whole
    return at


def _nth(page: Page, index: int, place: tuple[str, float, int]) -> int:
    """The box at a place of a box, by tag, weight and number among those alike; 0 where there is none."""
    tag, weight, number = place
    alike = [
        k for k in reversed(page.children.get(index, ())) if (page.boxes.tag[k], page.boxes.weight[k]) == (tag, weight)
    ]
    return alike[number] if number < len(alike) else 0


def below(boxes: Boxes, tops: Iterable[int]) -> list[bool]:
    """Tell for each box whether it is one of `tops` or in one: boxes come in the page's order, so each is a stretch."""
    size, parent = len(boxes), boxes.parent
    inside = [False] * size
    for top in tops:
        inside[top] = True
        end = top + 1
        while end < size and parent[end] >= top:
            inside[end] = True
            end += 1
    return inside


def _without_furniture(boxes: Boxes, inside: list[bool], tops: list[int]) -> list[bool]:
    """Take signatures and the like, which are named as furniture within the posts, out of them."""
    kept, starts = [False] * len(boxes), set(tops)
    for index in range(1, len(boxes)):
        if inside[index]:
            above = index in starts or kept[boxes.parent[index]]
            kept[index] = above and not _is_furniture(boxes, index)
    return kept


def _told(page: Page, texts: list[int]) -> bool:
    """Tell whether a good part of the texts are told in sentences, as the entries of an index are not."""
    owner = _owners(page.boxes, texts)
    told = {owner[b.box] for b in page.blocks if owner[b.box] >= 0 and b.words > LONG and 2 * b.linked < len(b.text)}
    return len(told) >= max(2, len(texts) / 3)


def _enough(page: Page, inside: list[bool]) -> bool:
    """Tell whether the posts hold a good part of the page's running text."""
    held = total = 0
    for block in page.blocks:
        if block.words > 3 and 2 * block.linked < len(block.text):
            total += block.words
            held += block.words if inside[block.box] else 0
    return held >= MIN_SHARE * total


def _surrounded(page: Page, records: list[int], inside: list[bool]) -> bool:
    """Tell whether dates, ranks and reply links stand around most of the texts."""
    around = sum(not inside[block.box] and _is_around(block) for block in page.blocks)
    return around >= max(2, 0.7 * len(records))


def _titles(page: Page, owner: list[int], records: set[int]) -> bool:
    """Tell whether the siblings are entries of a list: most have a line that links to a page of their own."""
    titled = {owner[block.box] for block in page.blocks if owner[block.box] in records and _is_title(block)}
    return 2 * len(titled) >= len(records)


def _opening(page: Page, records: list[int]) -> list[Block]:
    """What opens a thread and is built otherwise, as a question is: paragraphs before the first post, and under the
    page's headline shorter ones too.
    """
    found, least = list[Block](), LONG
    for block in _outside_of(page, records, -1.5):
        if block.box > records[0]:
            break
        if block.kind == "h1":
            found, least = [], 3
        elif (
            block.words > least
            and block.kind[0] != "h"
            and 3 * block.linked < len(block.text)
            and not _is_around(block)
        ):
            found.append(block)
    return found


def _outside(page: Page, records: list[int], least: float) -> int:
    """Characters of paragraphs outside of the posts, boxes of a weight of `least` or below left out."""
    return sum(
        len(block.text)
        for block in _outside_of(page, records, least)
        if block.words > LONG and 3 * block.linked < len(block.text)
    )


def _outside_of(page: Page, records: list[int], least: float) -> Iterator[Block]:
    """The blocks outside of the posts, those in boxes of a weight of `least` or below left out."""
    parent, weight = page.boxes.parent, page.boxes.weight
    skip = [False] * len(weight)
    for index in records:
        skip[index] = True
    for index in range(1, len(weight)):
        if not skip[index]:
            skip[index] = skip[parent[index]] or weight[index] <= least
    return (block for block in page.blocks if not skip[block.box])
