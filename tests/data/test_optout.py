import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openafm.data.optout import of_page, tdmrep_reserved


def meta(name: str, content: str) -> bytes:
    return f'<html><head><META Name="{name}" content="{content}"></head><body>x</body></html>'.encode()


@pytest.mark.parametrize(
    ("values", "reason", "nofollow"),
    [
        ([], "", False),
        (["all"], "", False),
        (["noindex"], "noindex", False),
        (["NoIndex, NoFollow"], "noindex", True),
        (["none"], "noindex", True),
        (["noai"], "noai", False),
        (["noarchive, noai, noimageai"], "noai", False),
        (["noimageai"], "noimageai", False),
        (["nofollow"], "", True),
        (["googlebot: noindex"], "", False),
        (["OpenAFM: noindex"], "noindex", False),
        (["googlebot: noindex, nofollow", "openafm: noai"], "noai", False),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], "noindex", False),
        (["max-snippet: 20, noai"], "noai", False),
    ],
)
def test_x_robots_tag(values, reason, nofollow):
    found = of_page({"x-robots-tag": values}, b"")
    assert (found.reason, found.nofollow) == (reason, nofollow)


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        (meta("robots", "noindex"), "noindex"),
        (meta("ROBOTS", "index, noai"), "noai"),
        (meta("openafm", "noindex"), "noindex"),
        (meta("googlebot", "noindex"), ""),
        (meta("tdm-reservation", "1"), "tdm-reservation"),
        (meta("tdm-reservation", "0"), ""),
        (meta("description", "noindex and noai are words"), ""),
        (b"<head><!-- <meta name=robots content=noindex> --></head>", ""),
        (b'<head><script>\'<meta name="robots" content="noindex">\'</script></head>', ""),
        (b"<head></head><body><p>&lt;meta name=robots content=noindex&gt;", ""),
        ("<head><meta name=robots content=noindex></head>".encode("utf-16"), "noindex"),
    ],
)
def test_meta_tags(html, reason):
    assert of_page({}, html).reason == reason


def test_a_meta_tag_wins_over_the_header_on_mining_alone():
    assert of_page({"tdm-reservation": ["1"]}, b"").reason == "tdm-reservation"
    assert of_page({"tdm-reservation": ["1"]}, meta("tdm-reservation", "0")).reason == ""
    assert of_page({"tdm-reservation": ["0"]}, meta("tdm-reservation", "1")).reason == "tdm-reservation"
    assert of_page({"x-robots-tag": ["noindex"]}, meta("robots", "index, nofollow")).reason == "noindex"
    assert of_page({"tdm-reservation": ["0"]}, b"").reserved is False and of_page({}, b"").reserved is None


def test_the_sites_file_by_longest_location():
    rules = [
        {"location": "/", "tdm-reservation": 0},
        {"location": "/art/*", "tdm-reservation": 1, "tdm-policy": "https://h.example/p.json"},
        {"location": "/art/free/", "tdm-reservation": "0"},
        {"location": "*.pdf$", "tdm-reservation": 1},
        {"location": 3, "tdm-reservation": 1},
        "no rule",
    ]
    data = json.dumps(rules).encode()
    answers = {"/": False, "/art/x": True, "/art/free/x": False, "/x.pdf": True, "/x.pdf?y": False}
    assert {path: tdmrep_reserved(data, f"https://h.example{path}") for path in answers} == answers
    assert tdmrep_reserved(b'[{"location": "/a", "tdm-reservation": 1}]', "https://h.example/b") is None
    assert tdmrep_reserved(b"<html>404", "https://h.example/b") is None
    assert tdmrep_reserved(b"[" * 100_000, "https://h.example/b") is None


@given(st.binary(max_size=200), st.lists(st.text(max_size=40)))
def test_any_bytes_give_an_answer(html, values):
    of_page({"x-robots-tag": values, "tdm-reservation": values}, b"<meta noindex " + html)
    tdmrep_reserved(html, "https://h.example/x")
