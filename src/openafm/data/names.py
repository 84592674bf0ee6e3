"""What the tag, class, id, role and itemprop of a page's element say about its text (used by `blocks` and `body`).

The words are those that Readability (Arc90, Mozilla) looks for, and what the themes of blogs, news sites, shops, forums
and documentation generators call their parts.
"""

import re
from functools import lru_cache

BODY = 3.0
"""The weight of an element that is named as the body of the text."""
COMMENTS = -10.0
"""The weight of an element that holds readers' comments."""
AGAINST = -2.0
"""The weight of an element that is furniture by its name."""

_MARKS = re.compile(r' (?:class|id|role|itemprop|data-component|data-testid)="([^"]*)"')
_START, _END = r"(?<![a-z])(?:", r")(?![a-z])"

_BODY = re.compile(
    r"article-?_?_?-?(?:body|content|text|copy)|(?:body|content)-?_?article"
    r"|(?:entry|post|story|td-post)-?_?_?-?(?:body|content|text|copy)(?!s)|(?:mw|markdown)-(?:parser-output|body)"
    r"|mw-content-text|documentwrapper|rst-content|theme-doc|post-?entry|field-name-body|postmessage|postbody|messagetext"
    r"|bodytext|blog-?text|konabody|" + _START + r"documentation|s-prose|e-content|reviewbody|node-?content" + _END
)
_COMMENTS = re.compile(
    _START + r"comments?|comment-?_?(?:list|area|section|thread|wrapper|body|content|form|text)s?|respond|disqus\w*"
    r"|livefyre|fb-comments|reader-?comments|talkback" + _END + r"|commentlist|disqus_thread|(?:visitor|user|reader)s?_?-?comment"
)
_AGAINST = re.compile(
    _START + r"ads?|adv|advert\w*|alerts?|banner|bio|breadcrumbs?|buttons?|btns?|byline|cart|carousel|complementary"
    r"|contentinfo|copyright|crumbs?|dialog|dropdown|follow|footers?|foot|login|logo|mega-?menu|menus?|modal|more|nav|navi"
    r"|next|noprint|overlay|pager|paywall|popular|popup|prev|previous|print|promo\w*|rail|rating|recirc\w*|recommend\w*"
    r"|related\w*|rss|search|share\w*|sharing|shop-cart|signin|signup|skip|sitemap|social\w*|sponsor\w*|tab-?list|tags"
    r"|teasers?|toc|toolbar|tooltip|top-?bar|trending|upsell|voting|votes?|widgets?|wishlist" + _END
    + r"|about-?_?(?:the-?)?author|also-?(?:like|read)|author-?_?_?(?:bio|box|info|card|desc\w*|profile)|breadcrumb"
    r"|combx|consent|cookie|cross-?sell|footer|gdpr|hidden-print|masthead|most-?(?:read|popular|viewed|recent)|navbar"
    r"|navhead|navigation|newsletter|outbrain|pagination|read-?(?:more|next)|screen-reader-text|see-?also-?list|sidebar"
    r"|skyscraper|social-|sr-only|subscri(?:be|ption)|taboola|tag-?(?:list|cloud)|visually-?hidden|indextable|localtable"
    r"|you-?may|post-?nav|jp-relatedposts|addtoany|addthis|sharedaddy|signup|sign-up|site-?header|page-?header-?nav"
)
_MILD = re.compile(
    _START + r"attribution|author|avatar|caption\w*|categor(?:y|ies)|credits?|date|dateline|datetime|infos?|kicker|legend"
    r"|meta\w*|posted|pub-?date|published|source|stats|tag|time|timestamp|tools?|user-?info|views?" + _END
    + r"|entry-?(?:meta|footer)|post-?(?:meta|info|date|footer)|article-?_?_?(?:meta|info|header-?meta)|photo-?credit"
    r"|wp-caption|media-?caption|image-?caption"
)
_FOR = re.compile(_START + r"articles?|body|content|entry|main|post|story|text|paragraph|answer|question|message" + _END)
_TAGS = {"nav": -3.0, "footer": -2.5, "aside": -2.0, "header": -1.0, "form": -1.0, "figcaption": -1.0, "address": -0.5}
_TAGS |= {"article": 1.0, "main": 1.0}
_TEXT_TAGS = frozenset("p li dd dt td th tr tbody h1 h2 h3 h4 h5 h6 pre blockquote".split())


@lru_cache(maxsize=8192)
def weigh(tag: str, attributes: str) -> float:
    """Return how a tag with its names speaks for its text: `AGAINST` or less for furniture, 0 for nothing, up to `BODY`."""
    weight = _TAGS.get(tag, 0.0)
    names = " ".join(_MARKS.findall(attributes)).lower() if attributes else ""
    if not names:
        return weight
    against = bool(_AGAINST.search(names))
    if _BODY.search(names) and tag not in _TEXT_TAGS and not against and not _COMMENTS.search(names):
        return BODY
    if _COMMENTS.search(names):
        return COMMENTS
    if against:
        return weight + AGAINST
    if _MILD.search(names):
        return weight - 1.0
    return weight + (1.0 if _FOR.search(names) else 0.0)
