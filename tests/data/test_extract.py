import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data.extract import UndecodableError, decode, extract
from openafm.data.metadata import iso_date, published

SOUP = [
    *"<>/=\"' a1&;\x00é",
    "<p>",
    "</p>",
    "<table>",
    "<td>",
    "<li>",
    "<ul>",
    "</ul>",
    "<pre>",
    "<a href=x>",
    "</a>",
    "<h2>",
]
SOUP += ["<math>", "<mi>", "</math>", "<br>", "<div class=nav>", "</div>", "word and word ", "<svg>"]
PARAGRAPHS = [
    f"Paragraph number {n} talks at some length about the habits of animals, with commas, clauses and a full stop."
    for n in range(6)
]
PAGE = """<!doctype html><html lang="en-GB"><head><title>On animals | The Site</title><style>p{}</style></head><body>
<div class="navbar"><ul><li><a href="/">Home</a><li><a href="/a">About us</a><li><a href="/b">Products</a></ul></div>
<div id="wrap"><div class="content"><h1>On animals</h1><p>%s</p><p>%s</p><h2>Lists</h2><p>Some of them follow here:</p>
<ul><li>a cat, which is small<li>a dog, which barks<ul><li>a terrier among dogs</ul></ul>
<table><tr><th>Name</th><th>Legs</th></tr><tr><td>Cat</td><td>4</td></tr><tr><td>Hen</td><td>2</td></tr></table>
<pre>def f(x):
    if x:
        return &lt;1&gt;</pre><p>%s</p></div>
<div class="sidebar"><p>Popular stories: <a href=1>Ten things to know</a> <a href=2>Five more things</a></p></div></div>
<div class="footer"><p>Copyright 2020 The Site. <a href="/terms">Terms of use</a> <a href="/p">Privacy</a></p></div>
<script>var paragraph = "no text";</script></body></html>"""  # fmt: skip


def page() -> bytes:
    return (PAGE % tuple(PARAGRAPHS[:3])).encode()


def test_the_body_stays_and_the_furniture_goes():
    found = extract(page(), "https://h.example/")
    for text in (*PARAGRAPHS[:3], "## Lists", "- a cat, which is small", "  - a terrier among dogs"):
        assert text in found.text
    assert "Name | Legs\nCat | 4\nHen | 2" in found.text
    assert "    if x:\n        return <1>" in found.text
    for text in ("Home", "Popular", "Copyright", "no text", "Privacy"):
        assert text not in found.text
    assert (found.title, found.language) == ("On animals", "en")
    assert "# On animals" not in found.text and found.full_text == f"# On animals\n\n{found.text}"


def test_a_long_list_is_not_taken_for_the_whole_body():
    point = "<li><p><b>Point {n}</b></p><p>" + PARAGRAPHS[3] * 4 + "</p><p>" + PARAGRAPHS[4] * 4 + "</p></li>"
    long, short = ("".join(point.format(n=n) for n in numbers) for numbers in (range(12), range(12, 14)))
    html = f"<h1>Hens</h1><p>{PARAGRAPHS[0]}</p><ul>{long}</ul><h2>More</h2><ul>{short}</ul><p>{PARAGRAPHS[1]}</p>"
    text = extract(f"<html><body>{html}</body></html>".encode(), "https://h.example/").text
    for kept in (PARAGRAPHS[0], *(f"Point {n}" for n in range(14)), PARAGRAPHS[1]):
        assert kept in text


@pytest.mark.parametrize(
    ("html", "latex"),
    [
        ("<math><mfrac><mi>a</mi><msup><mi>b</mi><mn>2</mn></msup></mfrac></math>", r"$\frac{a}{b^{2}}$"),
        ("<math display='block'><msqrt><mi>x</mi></msqrt></math>", r"$$\sqrt{x}$$"),
        (
            '<span class="katex"><span class="katex-mathml"><math><semantics><mi>q</mi><annotation encoding='
            '"application/x-tex">q_1</annotation></semantics></math></span><span class="katex-html">q1</span></span>',
            "$q_1$",
        ),
        ('<script type="math/tex; mode=display">e^x</script>', "$$e^x$$"),
        ('<img class="latex" alt="x^2+1">', "$x^2+1$"),
        ("inline \\(a+b\\) stays", r"\(a+b\)"),
    ],
)
def test_formulas_become_latex(html, latex):
    body = f"<body><p>{PARAGRAPHS[0]}</p><p>We know that {html} holds, as everybody has seen by now, of course.</p>"
    assert latex in extract(body.encode()).text


def test_readers_comments_are_no_body_but_a_threads_replies_are():
    post = "<p>A reply of some length that says, with reasons, what its writer thinks of the matter at hand.</p>"
    page = "<body><article>{}</article><div id='comments'><div class='comment'>{}</div></div>"
    body = "".join(f"<p>{paragraph}</p>" for paragraph in PARAGRAPHS)
    assert "A reply" not in extract(page.format(body, post).encode()).text
    thread = (
        f"<body><div class='postbody'>{body}</div>"
        + f"<div class='comment'><div class='postbody'>{post}</div></div>" * 3
    )
    assert extract(thread.encode()).text.count("A reply") == 3


def test_line_breaks_part_paragraphs_and_hidden_text_is_left_out():
    html = f"<body><div class='entry-content'>{PARAGRAPHS[0]}<br><br>{PARAGRAPHS[1]}<span hidden=''>not this</span>"
    html += "<div style='display: none'>nor this</div><p class='grid gutter'>one<br>two, and some more words.</p></div>"
    assert extract(html.encode()).text == f"{PARAGRAPHS[0]}\n\n{PARAGRAPHS[1]}\n\none\ntwo, and some more words."


@pytest.mark.parametrize(
    ("head", "url", "date"),
    [
        ('<meta property="article:published_time" content="2019-03-04T10:00:00Z">', None, "2019-03-04"),
        ("<meta content='March 4, 2019' name='date'>", None, "2019-03-04"),
        ('<script type="application/ld+json">{"datePublished": "2019-03-04"}</script>', None, "2019-03-04"),
        (
            '<time datetime="2018-01-01">x</time><time class="published" datetime="2019-03-04">y</time>',
            None,
            "2019-03-04",
        ),
        ("", "https://h.example/2019/03/04/title", "2019-03-04"),
        ("", "https://h.example/2019/13/04/title", ""),
        ('<meta name="date" content="soon">', None, ""),
    ],
)
def test_the_date_of_publication(head, url, date):
    assert published(f"<html><head>{head}</head></html>", url) == date
    assert extract(f"<html><head>{head}</head><body><p>x</p></body></html>".encode(), url).date == date


@pytest.mark.parametrize(
    "text", ["4 March 2019", "4. März 2019", "Mar 4th, 2019", "04.03.2019", "20190304", "2019/3/4 12:00"]
)
def test_dates_are_read_in_many_forms(text):
    assert iso_date(text) == "2019-03-04"


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "windows-1251", "shift_jis", "utf-16"])
def test_charsets(charset):
    word = {"windows-1251": "Привет", "shift_jis": "日本語"}.get(charset, "Grüße")
    html = f'<html><head><meta charset="{charset}"></head><body><p>{word}</p></body></html>'
    assert word in decode(html.encode(charset))
    assert word in decode(html.replace(charset, "utf-8").encode(charset), charset)  # the HTTP header wins


def test_utf8_without_declaration_and_wrong_declaration():
    assert "Grüße" in decode("<p>Grüße".encode())
    assert "Grüße" in decode(('<meta charset="utf-8"><p>' + "Grüße für alle Möwen " * 9).encode("iso-8859-1"))


def test_binary_is_no_text():
    with pytest.raises(UndecodableError):
        decode(bytes(range(256)) * 20)
    assert extract(bytes(range(256)) * 20).text == ""


@pytest.mark.parametrize(
    "html",
    [
        b"<div>" * 50_000,
        b"<b><i><p>" * 3_000,
        b"<table><tr><td>" * 3_000,
        b"<ul><li>" * 5_000 + b"x",
        b"<a \"'=<" * 20_000,
        b'<p x="' + b">" * 100_000,
        b"<math>" * 2_000 + b"x",
        b"&" * 200_000,
        b"<pre>" + b"x\n" * 200_000,
        b"<!--" * 20_000,
        b"<svg><style><p>" * 2_000,
        b"<p class=katex><math><mi>" * 2_000,
        b"<script type=math/tex><p>" * 2_000,
        b"<ul><li>a few words" * 20_000,
        b"<article>" * 50_000 + b"x",
        (b"<div>" * 30_000 + b"<p>posted on 2020-01-02, at some length</p>" + b"</div>" * 30_000) * 3,
        b"",
    ],
)
def test_hostile_pages_end_soon(html):
    start = time.monotonic()
    found = extract(html)
    assert len(found.text) < 4 * len(html) + 100  # no blow-up by indentation
    assert time.monotonic() - start < 20  # a hang would be minutes; no claim on speed


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(SOUP), max_size=60))
def test_any_soup_gives_an_extraction(parts):
    found = extract("".join(parts).encode())
    assert "\x00" not in found.text and "\x1e" not in found.text


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=400))
def test_any_bytes_give_an_extraction(data):
    extract(data)
