"""RFC 9309 as a table of cases: the RFC's own examples, and what the tests of Google's parser say of the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protego import Protego

from openafm.data.robots import MAX_BYTES, allowed, allowed_by_status, normalize, parse, product_token

SITE = "https://h.example"
SHUT = "user-agent: *\ndisallow: /\n"
GROUPS = """allow: /outside/

user-agent: FooBot
disallow: /
allow: /x/
user-agent: BarBot
disallow: /
allow: /y/


allow: /w/
user-agent: BazBot

user-agent: FooBot
allow: /z/
disallow: /
"""


def only(allow: str) -> str:
    return f"user-agent: *\ndisallow: /\nallow: {allow}\n"


CASES = [
    # Section 2.2: lines
    ("user-agent: FooBot\ndisallow: /\n", "FooBot", "/x/y", False),
    ("foo: FooBot\nbar: /\n", "FooBot", "/x/y", True),
    ("user-agent FooBot\ndisallow /\n", "FooBot", "/x/y", False),
    ("USER-AGENT: FooBot\nALLOW: /x/\nDISALLOW: /\n", "FooBot", "/x/y", True),
    ("uSeR-aGeNt: FooBot\nAlLoW: /x/\ndIsAlLoW: /\n", "FooBot", "/a/b", False),
    (" \tuser-agent : FooBot \t\n\t disallow\t: / # all\n", "FooBot", "/x", False),
    ("user-agent: a\rdisallow: /x\r\ndisallow: /y\rdisallow: /z", "a", "/z", False),
    ("user-agent: a\rdisallow: /x\r\ndisallow: /y\r\r", "a", "/x", False),
    ("\ufeffuser-agent: a\ndisallow: /x\n", "a", "/x", False),
    ("user-agent: a\nallow: /\ndisallow: /foo/quz#qux\n# disallow: /\n", "a", "/foo/quz", False),
    ("user-agent: a\nallow: /\ndisallow: /foo/quz#qux\n# disallow: /\n", "a", "/foo/bar", True),
    ("useragent: a\ndissallow: /x\n", "a", "/x", False),
    ("user-agent: a\nunknown: 1\ndisallowed: /\nallow\ndisallow:\n", "a", "/x", True),
    # Section 2.2.1: groups
    *((GROUPS, "FooBot", path, answer) for path, answer in [("/x/b", True), ("/z/d", True), ("/y/c", False)]),
    *((GROUPS, "BarBot", path, answer) for path, answer in [("/y/c", True), ("/w/a", True), ("/z/d", False)]),
    (GROUPS, "BazBot", "/z/d", True),
    *((GROUPS, agent, "/outside/", False) for agent in ("FooBot", "BarBot", "BazBot")),
    (GROUPS, "QuxBot", "/x", True),
    ("user-agent: *\nallow: /\nuser-agent: FooBot\ndisallow: /\n", "FooBot", "/x", False),
    ("user-agent: *\nallow: /\nuser-agent: FooBot\ndisallow: /\n", "BarBot", "/x", True),
    ("user-agent: FooBot\nallow: /\nuser-agent: *\ndisallow: /\n", "QuxBot", "/x", False),
    ("user-agent: ExampleBot\ndisallow: /foo\n\nuser-agent: ExampleBot\ndisallow: /baz\n", "examplebot", "/foo", False),
    ("user-agent: ExampleBot\ndisallow: /foo\n\nuser-agent: ExampleBot\ndisallow: /baz\n", "ExampleBot", "/baz", False),
    ("user-agent: *\ndisallow: /foo\n\nuser-agent: BazBot\ndisallow: /baz\n", "ExampleBot", "/foo", False),
    ("user-agent: *\ndisallow: /x/\nuser-agent: FooBot\ndisallow: /y/\n", "FooBot", "/x/page", True),
    ("user-agent: *\ndisallow: /\nuser-agent: FooBot\n", "FooBot", "/x", True),  # a last group without rules
    ("user-agent: *\ndisallow: /\nuser-agent: Foo Bar\nallow: /x/\ndisallow: /\n", "Foo", "/x/y", True),
    ("user-agent: *\ndisallow: /\nuser-agent: Foo Bar\nallow: /x/\ndisallow: /\n", "Foo Bar", "/x/y", False),
    ("user-agent: FooBot/2.1\ndisallow: /\n", "FooBot", "/x", False),
    ("user-agent: FooBot\ndisallow: /\n", "FooBot/2.1 (+https://foo.example)", "/x", False),
    ("user-agent: open\ndisallow: /\n", "openafm", "/x", True),  # no prefix, no substring
    ("user-agent: afm\ndisallow: /\n", "openafm", "/x", True),
    ("user-agent: openafm-news\ndisallow: /\n", "openafm", "/x", True),
    ("user-agent: * baz\ndisallow: /\n", "FooBot", "/x", False),
    ("user-agent: *baz\ndisallow: /\n", "FooBot", "/x", True),
    ("user-agent: ツ\ndisallow: /\n", "FooBot", "/x", True),
    ("user-agent: ツ\ndisallow: /\n", "", "/x", True),
    # Section 2.2.4: other records end no group
    ("user-agent: a\nsitemap: https://h.example/s.xml\nuser-agent: b\ndisallow: /\n", "a", "/x", False),
    ("user-agent: a\ncrawl-delay: 5\nuser-agent: b\ndisallow: /\n", "a", "/x", False),
    ("user-agent: a\nfoo: bar\ndisallow: /\n", "a", "/x", False),
    # Section 2.2.2: the longest match, case, Allow at equal length
    ("user-agent: a\ndisallow: /x/\n", "a", "/X/y", True),
    ("user-agent: a\ndisallow: /x/page.html\nallow: /x/\n", "a", "/x/page.html", False),
    ("user-agent: a\nallow: /x/page.html\ndisallow: /x/\n", "a", "/x/page.html", True),
    ("user-agent: a\nallow: /x/page.html\ndisallow: /x/\n", "a", "/x/", False),
    ("user-agent: a\ndisallow: \nallow: \n", "a", "/x/page.html", True),
    ("user-agent: a\ndisallow: /\nallow: /\n", "a", "/x/page.html", True),
    ("user-agent: a\ndisallow: /x\nallow: /x/\n", "a", "/x", False),
    ("user-agent: a\ndisallow: /x\nallow: /x/\n", "a", "/x/", True),
    ("user-agent: a\nallow: /page\ndisallow: /*.html\n", "a", "/page.html", False),
    ("user-agent: a\nallow: /page\ndisallow: /*.html\n", "a", "/page", True),
    ("user-agent: a\nallow: /x/page.\ndisallow: /*.html\n", "a", "/x/page.html", True),
    ("user-agent: a\nallow: /x/page.\ndisallow: /*.html\n", "a", "/x/y.html", False),
    (SHUT, "a", "/robots.txt", True),
    (SHUT, "a", "/robots.txt?x", False),
    (SHUT, "a", "", False),
    # Section 2.2.2: percent-encoding
    (only("/foo/bar?qux=taz&baz=http://foo.bar?tar&par"), "a", "/foo/bar?qux=taz&baz=http://foo.bar?tar&par", True),
    (only("/foo/bar?baz=https://foo.bar"), "a", "/foo/bar?baz=https%3A%2F%2Ffoo.bar", True),
    (only("/foo/bar/ツ"), "a", "/foo/bar/%E3%83%84", True),
    (only("/foo/bar/ツ"), "a", "/foo/bar/ツ", True),
    (only("/foo/bar/%e3%83%84"), "a", "/foo/bar/%E3%83%84", True),
    (only("/foo/bar/%62%61%7A"), "a", "/foo/bar/baz", True),
    (only("/foo/bar/baz"), "a", "/foo/bar/%62%61%7A", True),
    (only("/a%2Fb"), "a", "/a/b", False),  # an escaped slash is part of a name
    (only("/a b"), "a", "/a%20b", True),
    # Section 2.2.3: special characters
    (only("/this/*/exactly"), "a", "/this/or/that/exactly/so", True),
    (only("/this/path/exactly$"), "a", "/this/path/exactly", True),
    (only("/this/path/exactly$"), "a", "/this/path/exactly/", False),
    (only("/path/file-with-a-%2A.html"), "a", "/path/file-with-a-*.html", True),
    (only("/path/file-with-a-%2A.html"), "a", "/path/file-with-a-b.html", False),
    (only("/path/foo-%24"), "a", "/path/foo-$", True),
    (only("/pa$th"), "a", "/pa$th/x", True),  # a dollar inside a pattern is itself
    (only("/*a*b*a$"), "a", "/xaybza", True),
    (only("/*ab*ba$"), "a", "/aba", False),  # parts may not overlap
    (only("/foo/*/qux"), "a", "/foo/bar/quz", False),
    (only("/$"), "a", "/", True),
    (only("/$"), "a", "/page.html", False),
    (only("*.gif$"), "a", "/x/y.gif", True),
    *((only("/fish"), "a", path, True) for path in ("/fish", "/fish.html", "/fishheads/yummy.html", "/fish.html?id=x")),
    *((only("/fish"), "a", path, False) for path in ("/Fish.asp", "/catfish", "/?id=fish")),
    *((only("/fish*"), "a", path, True) for path in ("/fish", "/fish/salmon.html", "/fishheads")),
    *((only("/fish/"), "a", path, True) for path in ("/fish/", "/fish/?salmon", "/fish/salmon.html")),
    *((only("/fish/"), "a", path, False) for path in ("/fish", "/fish.html", "/Fish/Salmon.html")),
    *((only("/*.php"), "a", p, True) for p in ("/f.php", "/d/f.php?x", "//d/any.php.file", "/index?f=f.php/")),
    *((only("/*.php"), "a", path, False) for path in ("/php/", "/index?php", "/windows.PHP")),
    *((only("/*.php$"), "a", path, True) for path in ("/f.php", "/d/f.php")),
    *((only("/*.php$"), "a", path, False) for path in ("/f.php?x", "/f.php/", "/f.php5", "/filename?php")),
    *((only("/fish*.php"), "a", path, True) for path in ("/fish.php", "/fishheads/catfish.php?parameters")),
    (only("/fish*.php"), "a", "/Fish.PHP", False),
]


@pytest.mark.parametrize(("text", "agent", "path", "answer"), CASES)
def test_rules_of_rfc_9309(text, agent, path, answer):
    assert allowed(text.encode(), SITE + path, agent) is answer


def test_other_encodings_than_utf_8():
    assert not allowed(SHUT.encode("utf-16"), f"{SITE}/x", "a")
    assert not allowed("user-agent: a\ndisallow: /café\n".encode("latin-1"), f"{SITE}/caf%E9", "a")


def test_what_cannot_be_read_allows():
    for text in (
        b"",
        b"\x00\xff\xfe garbage",
        b"<html>not found</html>",
        b"Disallow: /\n",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
    ):
        assert allowed(text, f"{SITE}/x", "openafm")


def test_the_limit_of_500_kib_and_half_a_rule_at_it():
    start = b"user-agent: *\ndisallow: /first\n"
    filled = start + b"#" * (MAX_BYTES - len(start) - 10) + b"\nallow: /private\ndisallow: /last\n"
    assert not allowed(filled, f"{SITE}/first", "a")
    assert allowed(filled, f"{SITE}/last", "a")
    assert parse(filled).rules["*"] == parse(start).rules["*"], "the limit cuts `allow: /private` to `allow: /`"


def test_crawl_delay_is_the_groups():
    text = b"user-agent: a\nuser-agent: b\ncrawl-delay: 2.5\ndisallow: /x\nuser-agent: *\ncrawl-delay: 10\n"
    assert [parse(text).delay(agent) for agent in ("a", "b/1.0", "c")] == [2.5, 2.5, 10]
    for value in (b"", b"nan", b"-1", b"inf", b"1e99", b"soon"):
        assert 0 <= parse(b"user-agent: *\ncrawl-delay: " + value + b"\n").delay("a") <= 1


def test_product_tokens():
    names = ("OpenAFM/0.1 (+mail)", "Foo_Bar-x", "ツ", "", "Foo Bar", " a ")
    assert [product_token(name) for name in names] == ["openafm", "foo_bar-x", "", "", "", "a"]


def test_status():
    assert [allowed_by_status(status) for status in (200, 404, 403, 301, 503, 0)] == [
        *(None, True, True, True, False),
        False,
    ]


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300), st.text(max_size=40))
def test_any_bytes_give_an_answer(rules, path):
    assert allowed(rules, f"https://h.example/{path}", "openafm") in (True, False)
    assert allowed(rules, path, "openafm") in (True, False)


PATTERN = st.text("ab/*$", max_size=7).map("/".__add__)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), PATTERN), max_size=4), st.text("ab/", max_size=9).map("/".__add__))
def test_plain_rules_as_another_parser_reads_them(rules, path):
    lines = [
        f"{'Allow' if allow else 'Disallow'}: {p.replace('$', '') + p[-1:].replace('*', '')}" for allow, p in rules
    ]
    text = "User-agent: *\n" + "\n".join(lines) + "\n"
    assert allowed(text.encode(), SITE + path, "x") == Protego.parse(text).can_fetch(SITE + path, "x")


@given(st.text(max_size=30))
def test_normalizing_twice_is_normalizing_once(path):
    once = normalize(path)
    assert normalize(once) == once and once.isascii()


def test_patterns_made_to_explode_do_not():
    hostile = b"user-agent: *\n" + b"".join(b"disallow: /" + b"*a" * 2_000 + b"b$\n" for _ in range(100))
    assert allowed(hostile, f"{SITE}/" + "a" * 20_000, "x")
