"""What a page says about itself beside its text: title, date, whether it is a thread of posts (used by `extract`)."""

import datetime
import re
from html import unescape
from itertools import islice
from urllib.parse import urlsplit

CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff\ufffe\uffff]")
_SEPARATOR = re.compile(r"\s+(?:[|\-–—:·»«/]|::)\s+")
_META = re.compile(r"<[mM][eE][tT][aA]\s[^>]{1,600}>")
_ATTRIBUTE = re.compile(r"""([a-zA-Z:-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
_TIME = re.compile(r"<time\s[^>]{0,300}>")
_DATE_KEYS = (
    "article:published_time", "og:published_time", "datepublished", "date", "pubdate", "publishdate", "publish-date",
    "publish_date", "dc.date", "dc.date.issued", "dc.date.created", "dcterms.created", "dcterms.date", "dcterms.issued",
    "citation_publication_date", "citation_date", "parsely-pub-date", "sailthru.date", "article.published",
    "article_date_original", "cxenseparse:recs:publishtime", "datecreated", "created", "originalpublicationdate",
)  # fmt: skip
"""Names of meta elements that carry the date of publication, the surest first."""
_MONTHS = {name: number for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
_MONTHS |= {"mär": 3, "mai": 5, "okt": 10, "dez": 12}
_MONTH = r"(jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)\w*\.?"
_YEAR = r"((?:19|20)\d\d)"
_DATES = (
    (re.compile(_YEAR + r"[-/.](\d\d?)[-/.](\d\d?)(?!\d)"), "ymd"),
    (re.compile(r"(?<!\d)" + _YEAR + r"(\d\d)(\d\d)(?!\d)"), "ymd"),
    (re.compile(r"(?<!\d)(\d\d?)(?:st|nd|rd|th)?[ .-]+" + _MONTH + r",?[ -]+" + _YEAR, re.I), "dmy"),
    (re.compile(_MONTH + r" +(\d\d?)(?:st|nd|rd|th)?,? +" + _YEAR, re.I), "mdy"),
    (re.compile(r"(?<!\d)(\d\d?)\.(\d\d?)\." + _YEAR), "dmy"),
)
_URL_DATE = re.compile(r"/((?:19|20)\d\d)[/-](\d\d?)[/-](\d\d?)(?![\d])")
_THREAD_MARKS = ("QAPage", "DiscussionForumPosting")
_THREAD_SOFTWARE = (
    'id="phpbb"', "phpBB", "vBulletin", "XenForo", "MyBB", 'content="Discourse', "Simple Machines", "NodeBB", "Flarum",
    "Invision Community", "Vanilla", "bbPress",
)  # fmt: skip
"""What forum software writes into the head of its pages: there the replies are the text."""


def clean_line(text: str) -> str:
    """Return `text` on one line, without control characters."""
    return " ".join(CONTROL.sub("", text).split())


def is_thread(source: str) -> bool:
    """Tell whether a page says that it comes from a forum or a site for questions and answers."""
    head = source[: max(source.find("<body"), 0) + 400]
    if any(mark in head for mark in _THREAD_SOFTWARE):
        return True
    return "schema.org" in source and any(mark in source for mark in _THREAD_MARKS)


def plain(text: str) -> str:
    """Return what two spellings of a title share: letters and digits in lower case."""
    return "".join(character for character in text.lower() if character.isalnum())


def choose_title(written: str, headings: list[str]) -> str:
    """Return the title without the site's name: the heading it begins with, else its first part of some length.

    `written` is the page's title element, `headings` its headings of the first level.
    """
    title = clean_line(written)[:300]
    headings = [text for heading in headings[:4] if 0 < len(text := clean_line(heading).rstrip("¶#").strip()) < 200]
    starting = [text for text in headings if title.lower().startswith(text.lower())]
    if starting or not title:
        return max(starting, key=len) if starting else (headings or [""])[0]
    parts = _SEPARATOR.split(title)
    if parts[0] == title and headings and headings[0].lower() in title.lower():
        return headings[0]
    return parts[0] if len(parts[0]) >= 4 else max(parts, key=len)


def iso_date(text: str) -> str:
    """Return the first date in `text` as YYYY-MM-DD, or "" where there is none from 1990 to 2099."""
    for pattern, order in _DATES:
        for match in pattern.finditer(text):
            fields = dict(zip(order, match.groups(), strict=True))
            month = fields["m"].lower()[:3]
            try:
                day = datetime.date(int(fields["y"]), _MONTHS.get(month) or int(month), int(fields["d"]))
            except ValueError:
                continue
            if 1990 <= day.year <= 2099:
                return day.isoformat()
    return ""


def _attributes(tag: str) -> dict[str, str]:
    return {match[1].lower(): unescape(match[2] or match[3] or match[4] or "") for match in _ATTRIBUTE.finditer(tag)}


def _from_metas(head: str) -> str:
    found: dict[str, str] = {}
    for match in _META.finditer(head):
        if "dat" not in (lower := match[0].lower()) and "publi" not in lower and "creat" not in lower:
            continue
        fields = _attributes(match[0])
        for attribute in ("property", "name", "itemprop", "http-equiv"):
            found.setdefault(fields.get(attribute, "").lower(), fields.get("content", ""))
    return next((date for key in _DATE_KEYS if key in found and (date := iso_date(found[key]))), "")


def _from_json(source: str) -> str:
    at = source.find('"datePublished"')
    match = re.compile(r'\s*:\s*"([^"]{4,40})"').match(source, at + 15) if at >= 0 else None
    return iso_date(match[1]) if match else ""


def _from_times(source: str) -> str:
    if "<time" not in source:
        return ""
    times = [_attributes(match[0]) for match in islice(_TIME.finditer(source), 40)]
    named = [fields for fields in times if "pubdate" in fields or "publi" in " ".join(fields.values()).lower()]
    return next((date for fields in named + times[:1] if (date := iso_date(fields.get("datetime", "")))), "")


def published(source: str, url: str | None) -> str:
    """Return the date of publication as YYYY-MM-DD, or "": meta elements, JSON-LD, time elements, then the address."""
    date = _from_metas(source[:200_000]) or _from_json(source) or _from_times(source)
    if not date and url and (match := _URL_DATE.search(urlsplit(url).path)):
        date = iso_date("-".join(match.groups()))
    return date
