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
COMMENT_TEXT = -9.0
"""The weight of an element that holds the text of one of them: in a thread, that of a reply."""
AGAINST = -2.0
"""The weight of an element that is furniture by its name."""

SIGNATURE = -0.5
"""The weight of an element that holds a signature: furniture in a thread, but in a manual it may be a function's."""
POST = 2.5
"""The weight of an element that is named as one post of a forum's thread."""

_MARKS = re.compile(r' (?:class|id|role|itemprop|data-component|data-testid)="([^"]*)"')
_SIGNATURE = re.compile(r"(?:^|(?:post|user|message|forum)[-_]?)signature$")
_DIGITS = str.maketrans("", "", "0123456789")
_START, _END = r"(?<![a-z])(?:", r")(?![a-z])"

_POST = re.compile(
    r"postbody|post_message|messagetext|topic-?post(?!s)|ipscomment_?content|commtext|forum-?post(?!s)|post-?message(?!s)"
    r"|cpost|js-post__content|bbwrapper|bbp-(?:reply|topic)-content|s-prose|post-text|qa-message|postcontent|postmsg|usercontent"
    r"|lia-message-body-content|usertext-body|email-body|bz_comment_text|d_post_content|boardcommentbody|jive-rendered"
    r"|^(?:msg|pid)_$|qa-[qa]-(?:view|item)-content"
)
_COMMENT_TEXT = re.compile(r"comment-?_?(?:body|content|text|copy|message)(?![a-z])")
_BODY = re.compile(
    r"article-?_?_?-?(?:body|content|text|copy)|(?:body|content)-?_?article"
    r"|(?:entry|post|story|td-post)-?_?_?-?(?:body|content|text|copy)(?!s)|(?:mw|markdown)-(?:parser-output|body)"
    r"|mw-content-text|documentwrapper|rst-content|theme-doc|post-?entry|field-name-body|bodytext|blog-?text|konabody|"
    + _START + r"documentation|e-content|reviewbody|node-?content" + _END
)  # fmt: skip
_COMMENTS = re.compile(
    _START + r"comments?|comment-?_?(?:list|area|section|thread|wrapper|body|content|form|text)s?|respond|disqus\w*"
    r"|livefyre|fb-comments|reader-?comments|talkback" + _END
    + r"|commentlist|disqus_thread|(?:visitor|user|reader)s?_?-?comment"
)  # fmt: skip
_AGAINST = re.compile(
    _START + r"ads?|adv|advert\w*|alerts?|banner|bio|breadcrumbs?|buttons?|btns?|byline|cart|carousel|complementary"
    r"|contentinfo|copyright|crumbs?|dialog|dropdown|follow|footers?|foot|login|logo|mega-?menu|menus?|modal|more|nav|navi"
    r"|next|noprint|overlay|pager|paywall|popular|popup|prev|previous|print|promo\w*|rail|rating|recirc\w*|recommend\w*"
    r"|related\w*|rss|search|share\w*|sharing|shop-cart|signin|signup|skip|sitemap|social\w*|sponsor\w*|tab-?list|tags"
    r"|teasers?|toc|toolbar|tooltip|top-?bar|trending|upsell|voting|votes?|widgets?|wishlist"
    + _END
    + r"|about-?_?(?:the-?)?author|also-?(?:like|read)|author-?_?_?(?:bio|box|info|card|desc\w*|profile)|breadcrumb"
    r"|combx|consent|cookie|cross-?sell|footer|gdpr|hidden-print|masthead|most-?(?:read|popular|viewed|recent)|navbar"
    r"|navhead|navigation|newsletter|outbrain|pagination|read-?(?:more|next)|screen-reader-text|see-?also-?list|sidebar"
    r"|skyscraper|social-|sr-only|subscri(?:be|ption)|taboola|tag-?(?:list|cloud)|visually-?hidden|indextable|localtable"
    r"|you-?may|post-?nav|jp-relatedposts|addtoany|addthis|sharedaddy|signup|sign-up|site-?header|page-?header-?nav"
)
_MILD = re.compile(
    _START
    + r"attribution|author|avatar|caption\w*|categor(?:y|ies)|credits?|date|dateline|datetime|infos?|kicker|legend"
    r"|meta\w*|posted|pub-?date|published|source|stats|tag|time|timestamp|tools?|user-?info|views?"
    + _END
    + r"|entry-?(?:meta|footer)|post-?(?:meta|info|date|footer)|article-?_?_?(?:meta|info|header-?meta)|photo-?credit"
    r"|wp-caption|media-?caption|image-?caption"
)
_FOR = re.compile(
    _START + r"articles?|body|content|entry|main|post|story|text|paragraph|answer|question|message" + _END
)
_TAGS = {"nav": -3.0, "footer": -2.5, "aside": -2.0, "header": -1.0, "form": -1.0, "figcaption": -1.0, "address": -0.5}
_TAGS |= {"article": 1.0, "main": 1.0}
_TEXT_TAGS = frozenset("p li dd dt td th tr tbody h1 h2 h3 h4 h5 h6 pre blockquote".split())


@lru_cache(maxsize=65_536)
def _speaks(name: str) -> float:
    """Return what one class name or id says: one of the weights above, -1 for doubt, 1 for text, 0 for nothing."""
    if _SIGNATURE.search(name):
        return SIGNATURE
    if _POST.search(name):
        return POST
    if _COMMENT_TEXT.search(name):
        return COMMENT_TEXT
    if _COMMENTS.search(name):
        return COMMENTS
    if _AGAINST.search(name):
        return AGAINST
    if _BODY.search(name):
        return BODY
    return -1.0 if _MILD.search(name) else 1.0 if _FOR.search(name) else 0.0


def names_of(attributes: str) -> str:
    """Return the values of the attributes that name an element, in a row and without digits."""
    return " ".join(_MARKS.findall(attributes)).translate(_DIGITS) if attributes else ""


@lru_cache(maxsize=65_536)
def weigh(tag: str, names: str) -> float:
    """Return how a tag with its names speaks for its text, from `COMMENTS` over 0 for nothing to `BODY`."""
    weight = _TAGS.get(tag, 0.0)
    if not names:
        return weight
    said = {_speaks(name) for name in names.lower().split()}
    if SIGNATURE in said:
        return weight if tag in _TEXT_TAGS else weight + SIGNATURE
    if POST in said:
        return POST
    if COMMENT_TEXT in said:
        return COMMENT_TEXT
    if COMMENTS in said:
        return COMMENTS
    if AGAINST in said:
        return weight + AGAINST
    if BODY in said:
        return weight if tag in _TEXT_TAGS else BODY
    return weight + (-1.0 if -1.0 in said else 1.0 if 1.0 in said else 0.0)


@lru_cache(maxsize=65_536)
def is_post(names: str) -> bool:
    """Tell whether an element's names are those of one post of a thread."""
    return weigh("div", names) == POST
