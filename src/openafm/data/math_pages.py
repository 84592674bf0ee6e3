"""Math out of web pages: which pages hold it, and their questions and answers as pairs (used by the `extract` step).

AFM's math data comes from question forums, blogs, tutorials and seminars, by an extractor that knows their templates,
a math symbol filter, a quality filter and a domain filter (arXiv 2407.21075, section 3.1.1). Templates, symbols and
domains are here; the quality classifier is in `math_quality`.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from html import escape as html_escape
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lxml import etree, html

from openafm.data.extract import Extraction, fragment_text

MIN_SYMBOLS = 3
"""Formulas and symbols a page must hold to count as mathematical ..."""
MIN_DENSITY = 0.004
"""... and their share of its characters: about one formula in three lines of text."""
MAX_POSTS = 200


@dataclass(frozen=True)
class Answer:
    """One answer: its text, whether the asker accepted it, and its votes (None where the page tells none)."""

    text: str
    accepted: bool = False
    votes: int | None = None


@dataclass(frozen=True)
class Question:
    """A question with its answers, the accepted one first, then by votes, then as on the page."""

    title: str
    text: str
    answers: tuple[Answer, ...] = field(default_factory=tuple)
    votes: int | None = None

    def as_text(self) -> str:
        """Write it as one document, so that a model reads the answers right after what was asked."""
        parts = [f"# {self.title}"] if self.title else []
        parts.append(f"**Question:** {self.text}")
        for answer in self.answers:
            parts.append(f"**{'Accepted answer' if answer.accepted else 'Answer'}:** {answer.text}")
        return "\n\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values: {"title", "question", "votes", "answers": [{"text", "accepted", "votes"}]}."""
        return {
            "title": self.title,
            "question": self.text,
            "votes": self.votes,
            "answers": [asdict(answer) for answer in self.answers],
        }


class Template(NamedTuple):
    """Where a kind of page keeps its posts: CSS selectors. Without `answer`, the first post is the question."""

    kind: str
    post: str
    text: str
    answer: str = ""
    accepted: str = ""
    votes: str = ""


TEMPLATES = (
    Template(
        "qa", '[itemtype$="schema.org/Question"]', '[itemprop="text"]',
        '[itemprop="suggestedAnswer"], [itemprop="acceptedAnswer"], [itemtype$="schema.org/Answer"]',
        '[itemprop="acceptedAnswer"]', '[itemprop="upvoteCount"]',
    ),
    Template(  # Stack Exchange, also where the microdata is gone
        "qa", "#question, .question", ".s-prose, .post-text", ".answer", ".accepted-answer",
        '[itemprop="upvoteCount"], .js-vote-count, .vote-count-post',
    ),
    Template(  # Question2Answer
        "qa", ".qa-q-view", ".qa-q-view-content, .qa-a-item-content", ".qa-a-list-item", ".qa-a-list-item-selected",
        ".qa-netvote-count-data",
    ),
    Template("forum", ".topic-post, .crawler-post", ".cooked, .post", accepted=".accepted-answer"),  # Discourse
    Template("forum", "div.post, article.post", ".content, .postbody .content"),  # phpBB 3
    Template("forum", "td.postbody, table.tablebg", ".postbody"),  # phpBB 2
    Template("forum", ".message--post, li.message", ".bbWrapper, .messageText"),  # XenForo
    Template("forum", "li.postcontainer, div[id^=edit]", ".postcontent, div[id^=post_message_]"),  # vBulletin
    Template("forum", ".post_wrapper", ".post .inner, .inner"),  # Simple Machines
    Template("forum", "article.ipsComment", ".ipsType_richText"),  # Invision
    Template("forum", ".cmty-post", ".cmty-post-html"),  # Art of Problem Solving
)  # fmt: skip
_THREAD_MARKS = (
    "QAPage", "schema.org/Question", "s-prose", "post-text", "qa-q-view", "topic-post", "crawler-post", "postbody",
    "bbWrapper", "messageText", "postcontent", "post_message_", "post_wrapper", "ipsComment", "cmty-post",
)  # fmt: skip
"""One of these stands in every page that a template fits: most pages need no second look."""
_PART = re.compile(r'\.([\w-]+)|#([\w-]+)|\[([\w-]+)([$^]?=)"?([^"\]]*)"?\]')
_SEMINAR = re.compile(
    r"\b(?:lectures?|seminars?|colloqui\w+|syllabus|course notes|problem sets?|homework|exercises?|vorlesung)\b",
    re.I,
)
_TUTORIAL = re.compile(
    r"\b(?:tutorials?|how to|introduction to|guide|lesson|step by step|examples?|chapter|explained)\b", re.I
)
_BLOG_MARKS = ("hentry", "blog-post", "entry-content", "wp-block", 'content="WordPress', 'content="Ghost')
_FORMULA = re.compile(r"\$\$?[^$\n]{1,2000}\$\$?|\\\(.{1,2000}?\\\)|\\\[.{1,2000}?\\\]", re.S)
_COMMAND = re.compile(
    r"\\(?:frac|sqrt|sum|int|prod|lim|infty|alpha|beta|gamma|delta|epsilon|theta|lambda|mu|pi|sigma|phi|omega|mathbb|mathcal"
    r"|mathrm|left|right|begin|cdot|times|leq?|geq?|neq?|in|subset|forall|exists|partial|nabla|to|mapsto|text|binom)(?![a-z])"
)
_PRICE = re.compile(r"\$\s?\d[\d,.]*(?:\s?(?:million|billion|k|m|bn))?\b", re.I)
_SYMBOL = re.compile(r"[∀-⋿⟀-⟯⦀-⫿𝐀-𝟿±×÷√∞Σπ≤≥≠≈∫∂∇]")


class Symbols(NamedTuple):
    """How mathematical a text looks: formulas in LaTeX, LaTeX commands, mathematical Unicode characters."""

    formulas: int
    commands: int
    characters: int
    density: float


def symbols(text: str) -> Symbols:
    """Count a text's mathematical signs; amounts of money are no formulas."""
    text = text[:200_000]
    plain = _PRICE.sub(" ", text)
    formulas = sum(1 for match in _FORMULA.finditer(plain) if any(c.isalpha() or c in "=^_+<>" for c in match[0]))
    commands = len(_COMMAND.findall(plain))
    characters = len(_SYMBOL.findall(plain))
    return Symbols(formulas, commands, characters, (2 * formulas + commands + characters) / max(1, len(text)))


def is_mathematical(text: str) -> bool:
    """The symbol filter: enough formulas or mathematical characters, and dense enough."""
    found = symbols(text)
    return found.formulas + found.commands + found.characters >= MIN_SYMBOLS and found.density >= MIN_DENSITY


@lru_cache(maxsize=1)
def _domains() -> dict[str, bool]:
    lines = files("openafm.data").joinpath("words/math_domains.txt").read_text().splitlines()
    return {line[1:].strip(): line[0] == "+" for line in lines if line[:1] in ("+", "-")}


def domain_verdict(url: str) -> bool | None:
    """The domain filter: True for a host on the allow-list, False for one on the deny-list, None for any other."""
    host = (urlsplit(url).hostname or "").lower()
    parts = host.split(".")
    listed = _domains()
    return next((listed[name] for at in range(len(parts)) if (name := ".".join(parts[at:])) in listed), None)


@lru_cache(maxsize=256)
def _xpath(selector: str) -> etree.XPath:
    """Translate the few forms of CSS selectors that `TEMPLATES` use (resiliparse's own take time for every node)."""
    paths = []
    for alternative in selector.split(","):
        path = "."
        for simple in alternative.split():
            path += "//" + (re.match("[a-z]+", simple) or "*")[0]
            for name, identity, key, operator, value in _PART.findall(simple):
                path += {
                    name: f"[contains(concat(' ', normalize-space(@class), ' '), ' {name} ')]",
                    identity: f"[@id='{identity}']",
                    operator: f"[@{key}='{value}']",
                    "^=": f"[starts-with(@{key}, '{value}')]",
                    "$=": f"[substring(@{key}, string-length(@{key}) - {len(value) - 1}) = '{value}']",
                }[name or identity or operator]
        paths.append(path)
    return etree.XPath(" | ".join(paths))


def _select(node: etree._Element, selector: str) -> list[etree._Element]:
    return _xpath(selector)(node)[:MAX_POSTS] if selector else []


def _number(text: str | None) -> int | None:
    found = re.search(r"[-−]?\d+", text or "")
    return int(found[0].replace("−", "-")) if found else None


def _inside(node: etree._Element, others: Collection[etree._Element]) -> bool:
    """Tell whether `node` lies inside of one of `others` (and is none itself)."""
    return any(above in others for above in node.iterancestors())


def _first_text(post: etree._Element, selector: str, answers: Collection[etree._Element]) -> str:
    """Return the text of the first part of a post that `selector` finds, not that of an answer inside of it."""
    own = set(answers) - {post}
    found = (node for node in _select(post, selector) if node not in own and not _inside(node, own))
    node = next(found, None)
    return "" if node is None else fragment_text(html.tostring(node, encoding="unicode", with_tail=False))


def _votes(post: etree._Element, selector: str, answers: Collection[etree._Element]) -> int | None:
    own = set(answers) - {post}
    for node in _select(post, selector):
        if not _inside(node, own):
            return _number(node.get("content") or node.get("data-value") or node.text_content())
    return _number(post.get("data-score"))


def _with_template(document: etree._Element, template: Template, title: str) -> Question | None:
    posts = _select(document, template.post)
    if not posts:
        return None
    if template.answer:
        answers = _select(document, template.answer)
        question, rest = posts[0], answers
    else:
        nested = set(posts)
        posts = [post for post in posts if not _inside(post, nested)]
        question, rest = posts[0], posts[1:]
        answers = []
    text = _first_text(question, template.text, answers)
    accepted = set(_select(document, template.accepted))
    found = []
    for post in rest:
        if said := _first_text(post, template.text, [post]):
            is_accepted = post in accepted or bool(_select(post, template.accepted))
            found.append(Answer(said, is_accepted, _votes(post, template.votes, [post])))
    if not text or not found:
        return None
    return Question(title, text, _ranked(found), _votes(question, template.votes, answers))


def _ranked(answers: list[Answer]) -> tuple[Answer, ...]:
    unique = list(dict.fromkeys(answers))
    return tuple(sorted(unique, key=lambda answer: (not answer.accepted, -(answer.votes or 0))))


def _json_objects(document: etree._Element) -> Iterator[dict[str, Any]]:
    for script in _select(document, 'script[type="application/ld+json"]'):
        try:
            found = json.loads(script.text or "", strict=False)
        except (ValueError, RecursionError):
            continue
        nested = found.get("@graph", [found]) if isinstance(found, dict) else found
        yield from (entry for entry in nested if isinstance(entry, dict)) if isinstance(nested, list) else ()


def _from_json(document: etree._Element, title: str) -> Question | None:
    """Read the Question of a QAPage in JSON-LD."""
    for entry in _json_objects(document):
        main = entry.get("mainEntity", entry)
        main = main[0] if isinstance(main, list) and main else main
        if not isinstance(main, dict) or main.get("@type") != "Question":
            continue
        found = []
        for name in ("acceptedAnswer", "suggestedAnswer"):
            listed = main.get(name) or []
            for answer in listed if isinstance(listed, list) else [listed]:
                if isinstance(answer, dict) and isinstance(answer.get("text"), str):
                    votes = _number(str(answer.get("upvoteCount", "")))
                    found.append(Answer(_markup_text(answer["text"]), name == "acceptedAnswer", votes))
        asked = main.get("text") or main.get("name")
        if isinstance(asked, str) and found:
            return Question(title, _markup_text(asked), _ranked(found), _number(str(main.get("upvoteCount", ""))))
    return None


def _markup_text(text: str) -> str:
    """Return the text of what may be HTML or plain text with line breaks."""
    if re.search(r"<(?:p|br|div|pre|li|code|strong|em|math)\b", text):
        return fragment_text(text)
    return fragment_text("".join(f"<p>{html_escape(part)}</p>" for part in text.split("\n\n")))


def questions(source: str, title: str) -> tuple[str, Question | None]:
    """Return the kind of thread a page is ("qa" or "forum", else "") and its question with the answers."""
    if not any(mark in source for mark in _THREAD_MARKS):
        return "", None
    try:
        document = html.document_fromstring(source.encode("utf-8", "replace"), parser=html.HTMLParser(encoding="utf-8"))
    except etree.LxmlError:  # nothing in it
        return "", None
    for template in TEMPLATES:
        if found := _with_template(document, template, title):
            return template.kind, found
    found = _from_json(document, title)
    return ("qa", found) if found else ("", None)


def page_kind(source: str, extraction: Extraction) -> str:
    """Name what a page without a thread is like: "seminar", "tutorial", "blog" or "page"."""
    head = f"{extraction.title}\n{extraction.text[:400]}"
    if _SEMINAR.search(head):
        return "seminar"
    if _TUTORIAL.search(head):
        return "tutorial"
    return "blog" if any(mark in source for mark in _BLOG_MARKS) else "page"


class MathPage(NamedTuple):
    """A page that passed the symbol and domain filters: its kind, its text, and its question if it is a thread."""

    kind: str
    text: str
    question: Question | None


def math_page(source: str, url: str, extraction: Extraction) -> MathPage | None:
    """Return what the math flow takes of a page, or None for a page without mathematics or on the deny-list."""
    verdict = domain_verdict(url)
    if verdict is False or not extraction.text or not (verdict or is_mathematical(extraction.text)):
        return None
    kind, question = questions(source, extraction.title)
    if question is not None:
        return MathPage(kind, question.as_text(), question)
    return MathPage(page_kind(source, extraction), extraction.full_text, None)
