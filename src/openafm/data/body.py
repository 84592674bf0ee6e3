"""Which blocks of a page are its body: reader mode and Boilerpipe signals in one score (used by `extract`).

Reader mode (Readability, by Arc90 and Mozilla) looks at the tree: class names, scores of paragraphs summed up their
ancestors. Boilerpipe (Kohlschuetter et al., WSDM 2010) looks at the flow of text: words and link density of a block and
of its neighbours. Each fails where the other is strong, so a block is kept by a weighted sum of both; the weights are
logistic regression's on the labelled development pages (`benchmarks/pages/fit.py`).
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from openafm.data.blocks import Block, Boxes, Unit, units
from openafm.data.names import BODY, COMMENT_TEXT, POST
from openafm.data.posts import LONG, below, named_posts, unnamed_posts

MAIN_SHARE = 0.7
"""The main box is the deepest one that holds this share of the page's paragraph score."""
NAMED_SHARE = 0.4
"""A box that is named as the body is believed when it holds this share of the page's paragraph score."""
ONLY_SHARE = 0.2
"""The same for the only such box of a page."""
MIN_OUTSIDE_COMMENTS = 300
"""Characters of text outside of the readers' comments above which the comments are no part of the body."""
MAX_PHRASE = 200
"""Characters of the longest text that is compared with common phrases."""
TOGETHER = 0.6
"""Share of the long paragraphs that stand side by side in an article; posts stand each in a box of its own."""


def _phrases(name: str) -> re.Pattern[str]:
    """Return one pattern of the regular expressions in a file of `words/`, a line each."""
    lines = files("openafm.data").joinpath(f"words/{name}.txt").read_text(encoding="utf-8").splitlines()
    return re.compile("|".join(line for line in lines if line and line[0] != "#"), re.I)


_FURNITURE = _phrases("furniture")
_BYLINE = _phrases("bylines")


@lru_cache(maxsize=65_536)
def _phrase(text: str) -> str:
    """Tell whether a short text, or a line of it, is "a common phrase" or "a byline"; else ""."""
    if len(text) > MAX_PHRASE:
        return ""
    lines = text.split("\n")
    if any(_FURNITURE.fullmatch(line) for line in lines):
        return "a common phrase"
    return "a byline" if any(_BYLINE.fullmatch(line) for line in lines) else ""


_COMMENTS_HEADING = re.compile(
    r"\W*(?:\d+\W+)?(?:(?:reader|user|visitor)s?'? )?(?:comments?|comentarios|kommentare?|commentaires?|commenti"
    r"|reactions?|réactions?|responses?|discussion|leave a (?:reply|comment)|post a comment"
    r"|schreibe? einen kommentar)\b(?!,)",
    re.I,
)

WEIGHTS = {
    "15 words": -0.4,
    "3 words": -0.03,
    "40 words": -0.78,
    "8 words": -0.45,
    "a byline": 0.02,
    "a common phrase": -0.32,
    "a long cell": -2.71,
    "a long div": 0.04,
    "a long li": 0.36,
    "a sentence's end": 1.0,
    "after a long one": 0.83,
    "after links": -0.76,
    "after the heading of comments": -1.06,
    "after the text": -0.78,
    "before a long one": 0.39,
    "before links": -0.53,
    "before the text": -0.53,
    "below the text": -1.39,
    "beside the text": 1.19,
    "bias": -1.71,
    "body by name": 0.33,
    "cell": -1.55,
    "dd": 0.81,
    "div": -1.96,
    "doubtful by name": -0.3,
    "furniture by name": -0.79,
    "in the main box": 3.49,
    "in the named body": 3.82,
    "li": -0.56,
    "many links": -0.37,
    "many words": -0.05,
    "nearly all links": -0.47,
    "p": 0.54,
    "pre": 2.46,
    "repeated": 1.3,
    "some links": 0.51,
    "surely furniture by name": -1.07,
    "table": 0.85,
    "under a common phrase": 0.13,
}
"""What each signal adds to a block's log-odds of being body text; one that is not here adds nothing."""
_weight_of = defaultdict(float, WEIGHTS).__getitem__


def paragraph_score(unit: Unit) -> float:
    """Readability's score of a paragraph: one, its commas, a point per 100 characters up to three, less its links."""
    if unit.characters < 25 or unit.link_density == 1.0:
        return 0.0
    commas = 0
    for block in unit.blocks:
        commas += block.text.count(",") + block.text.count("，")
    return (1 + min(commas, 10) + min(unit.characters / 100, 3.0)) * (1 - unit.link_density)


def box_weights(found: list[Unit], boxes: Boxes, thread: bool) -> list[float]:
    """Sum each box's weight with its ancestors', from -4 to 2; a box with half of the page's text is not against it.

    Readers' comments are no body, unless the page is a `thread` or next to nothing stands outside of them.
    """
    size = len(boxes)
    parent, weight, tag = boxes.parent, boxes.weight, boxes.tag
    mass, outside = [0.0] * size, 0.0
    commented = [False] * size
    if min(weight) <= COMMENT_TEXT:
        for index in range(1, size):
            commented[index] = commented[parent[index]] or weight[index] <= COMMENT_TEXT
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
        own, above = weight[index], total[parent[index]]
        if not own:
            total[index] = above
            continue
        if own <= COMMENT_TEXT:
            own = comments
        elif own in (BODY, POST):
            own = 1.0
        elif own < 0.0 and mass[index] > half:
            own = 0.0
        if above > 0 and own < -1.0 and tag[index] in ("header", "footer"):
            own = -1.0  # an article's own header or footer
        own += above
        total[index] = 2.0 if own > 2.0 else -4.0 if own < -4.0 else own
    return total


_WITHIN = ("p", "pre", "li", "ul", "ol", "dl", "dt", "dd", "blockquote")
"""Elements that are part of a text and hold none by themselves: a long list among paragraphs is not all of the body."""


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
    needed, main = MAIN_SHARE * score[0], size - 1
    while score[main] < needed and main:
        main -= 1
    main = max(main, _named_body(boxes, score))
    if boxes.tag[main] == "td":
        main = parent[main]
    while main and boxes.tag[main] in _WITHIN:
        main = parent[main]
    at, is_named = main, False
    while at > 0 and not is_named:
        is_named, at = boxes.weight[at] == BODY or boxes.tag[at] == "article", parent[at]
    return main, below(boxes, [main]), is_named


def _named_body(boxes: Boxes, score: list[float]) -> int:
    """The last box that is named as the body and holds its share of the paragraphs, or 0."""
    weight, tag, parent = boxes.weight, boxes.tag, boxes.parent
    if BODY not in weight and "article" not in tag:
        return 0
    bodies = [i for i in range(len(boxes)) if weight[i] == BODY or tag[i] == "article"]
    known = set(bodies)
    outer = [i for i in bodies if parent[i] not in known]
    needed = (ONLY_SHARE if len(outer) == 1 else NAMED_SHARE) * score[0]
    return max((i for i in bodies if weight[i] > 0 and score[i] >= needed), default=0)


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
    under: list[str]


def signals(view: View) -> list[list[str]]:
    """Name the signals that speak for or against each unit."""
    found, weights, inside, held = view.found, view.weights, view.inside, view.below
    tag, parent, last = view.boxes.tag, view.boxes.parent, len(found) - 1
    main = "in the named body" if view.named else "in the main box"
    near = [_neighbour(unit) for unit in found]
    named: list[list[str]] = []
    for at, unit in enumerate(found):
        block, words, density, box = unit.blocks[0], unit.words, unit.link_density, unit.box
        kind = block.kind
        place = kind if kind != "p" else _TEXT_TAGS.get(tag[box], "div")
        said = ["bias", _LENGTHS[words] if words <= 40 else "many words"]
        said.append(f"a long {place}" if words > LONG and place in ("div", "li", "cell") else place)
        if density > 0.05:
            said.append("nearly all links" if density > 0.6 else "many links" if density > 0.3 else "some links")
        weight = weights[box]
        if weight > 0:
            said.append("body by name")
        elif weight < 0:
            said.append(_AGAINST_NAME[min(3, int(-weight))])
        if inside[box]:
            said.append(main)
        if unit.blocks[-1].text[-1:] in _ENDS:
            said.append("a sentence's end")
        if words <= 12 and kind == "p":
            if phrase := _phrase(block.text):
                said.append(phrase)
            elif view.repeats[block.text] >= 3:
                said.append("repeated")
        if view.under[at]:
            said.append(view.under[at])
        if view.hold == box or view.hold == parent[box]:
            said.append("beside the text")
        elif held[box]:
            said.append("below the text")
        if at < view.first:
            said.append("before the text")
        elif at > view.last:
            said.append("after the text")
        if at and near[at - 1]:
            said.append("after " + near[at - 1])
        if at < last and near[at + 1]:
            said.append("before " + near[at + 1])
        named.append(said)
    return named


_LENGTHS = ["3 words"] * 4 + ["8 words"] * 5 + ["15 words"] * 7 + ["40 words"] * 25
_AGAINST_NAME = ["doubtful by name"] * 2 + ["furniture by name", "surely furniture by name"]
_ENDS = '.!?:;…。！？»”"'


def _neighbour(unit: Unit) -> str:
    """What a unit is to the ones beside it."""
    return "links" if unit.link_density > 0.5 else "a long one" if unit.words > LONG else ""


def _with_neighbours(scores: list[float]) -> list[bool]:
    """Tell which units are kept: text stands together, so half of each neighbour's score, at most 3, counts too."""
    clipped = [0.0, *(max(-3.0, min(3.0, score)) for score in scores), 0.0]
    return [score + 0.5 * (clipped[at] + clipped[at + 2]) > 0 for at, score in enumerate(scores)]


def _with_headings(found: list[Unit], keep: list[bool], allowed: list[bool], boxes: Boxes) -> None:
    """Keep a heading when something below it, before the next heading of its level or above, is kept.

    A definition list's term stays with its definition in the same way.
    """
    reach = 0  # level of the nearest kept block below: 7 for text, which any heading may stand over; 0 for nothing
    for at in range(len(found) - 1, -1, -1):
        block = found[at].blocks[0]
        if block.kind[0] == "h":
            level = int(block.kind[1])
            keep[at] = allowed[at] and reach > level and _phrase(block.text) != "a common phrase"
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
    held = below(boxes, [hold])
    return View(found, boxes, weights, inside, named, repeats, first, last, hold, held, sections(found, first))


def sections(found: list[Unit], first: int) -> list[str]:
    """Tell for each unit whether it stands under a heading of furniture, or anywhere after one of readers' comments."""
    under, phrase = [""] * len(found), ""
    for at, unit in enumerate(found):
        block = unit.blocks[0]
        if at > first and unit.words <= 8 and _COMMENTS_HEADING.match(block.text):
            phrase = "after the heading of comments"
        elif block.kind[0] == "h" and phrase != "after the heading of comments":
            phrase = "under a common phrase" if _phrase(block.text) == "a common phrase" else ""
        under[at] = phrase
    return under


def text_holder(found: list[Unit], boxes: Boxes, long: list[int]) -> int:
    """Return the box in which most of the long paragraphs stand side by side."""
    held: Counter[int] = Counter()
    for at in long:
        box = found[at].box
        held[boxes.parent[box] if boxes.tag[box] in _TEXT_TAGS and box else box] += found[at].characters
    return max(held, key=lambda box: held[box], default=0)


def _stands_together(view: View) -> bool:
    """Tell whether most of the page's long paragraphs stand side by side in one box, as an article's do."""
    held = every = 0
    for unit in view.found:
        if unit.words > LONG and unit.link_density < 0.3:
            every += unit.characters
            if len(unit.blocks) == 1 and view.hold in (unit.box, view.boxes.parent[unit.box]):
                held += unit.characters
    return held >= TOGETHER * every


def select_body(blocks: list[Block], boxes: Boxes, thread: bool = False) -> list[Block]:
    """Return the blocks that are the page's body, in order; in a `thread`, the readers' replies are part of it.

    Where next to nothing passes, a page without paragraphs, everything outside of navigation is kept.
    """
    posts = named_posts(blocks, boxes, thread)
    if posts is None:
        view = look(blocks, boxes, thread)
        if not _stands_together(view):
            posts = unnamed_posts(blocks, boxes, thread)
    if posts is not None:
        return [block for block in blocks if posts[block.box]]
    found, weights, inside = view.found, view.weights, view.inside
    keep = _with_neighbours([sum(map(_weight_of, said)) for said in signals(view)])
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
