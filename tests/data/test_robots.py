import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data.robots import allowed, allowed_by_status

RULES = b"""User-agent: *
Disallow: /private/
Allow: /private/open$
Disallow: /*.pdf$

User-agent: OpenAFM
User-agent: other
Disallow: /ours/
"""


@pytest.mark.parametrize(
    ("url", "agent", "answer"),
    [
        ("https://h.example/private/x", "somebot", False),
        ("https://h.example/private/open", "somebot", True),  # the longer rule wins
        ("https://h.example/private/open/x", "somebot", False),  # $ ends the path
        ("https://h.example/a/b.pdf", "somebot", False),
        ("https://h.example/a/b.pdf?x", "somebot", True),
        ("https://h.example/private/x", "openafm", True),  # our own group replaces *
        ("https://h.example/ours/x", "openafm", False),
        ("https://h.example/ours/x", "somebot", True),
    ],
)
def test_rules_of_rfc_9309(url, agent, answer):
    assert allowed(RULES, url, agent) is answer


def test_equal_length_prefers_allow_and_percent_encoding_is_compared_decoded():
    assert allowed(b"User-agent: *\nDisallow: /a\nAllow: /a\n", "https://h.example/a", "x")
    assert not allowed("User-agent: *\nDisallow: /é\n".encode(), "https://h.example/%C3%A9", "x")


def test_what_cannot_be_read_allows():
    for text in (b"", b"\x00\xff\xfe garbage", b"<html>not found</html>", b"Disallow: /\n"):
        assert allowed(text, "https://h.example/x", "openafm")
    assert not allowed(b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /\r\n", "https://h.example/x", "openafm")


def test_status():
    assert [allowed_by_status(status) for status in (200, 404, 403, 301, 503)] == [None, True, True, True, False]


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300), st.text(max_size=40))
def test_any_bytes_give_an_answer(rules, path):
    assert allowed(rules, f"https://h.example/{path}", "openafm") in (True, False)
