import json
import time

import pyarrow as pa
import pytest

from openafm.data import ingest
from openafm.data.extract import extract_decoded
from openafm.data.math_flow import MATH, PAGE_SCHEMA, MathPages
from openafm.data.math_pages import domain_verdict, is_mathematical, math_page, questions, symbols
from openafm.data.math_quality import MathQuality
from openafm.data.warc import Page

ASKED = r"Why is \(\sum_{k=1}^n k = \frac{n(n+1)}{2}\) for every natural number? I can see it for small ones."
FIRST = r"Write the sum twice, once backwards: \(n\) columns add up to \(n+1\) each, so \(2S = n(n+1)\)."
SECOND = r"By induction: \(\frac{n(n+1)}{2} + (n+1) = \frac{(n+1)(n+2)}{2}\), which is the claim for \(n+1\)."

STACK_EXCHANGE = f"""<html><head><title>Sum of the first n numbers - Mathematics</title></head><body>
<h1>Sum of the first n numbers</h1><div id="question" class="question" data-score="7"><div class="js-vote-count">7</div>
<div class="s-prose js-post-body"><p>{ASKED}</p></div><div class="comments"><span>Nice!</span></div></div>
<div id="answers"><div class="answer"><div class="js-vote-count">12</div>
<div class="s-prose"><p>{SECOND}</p></div></div>
<div class="answer accepted-answer"><div class="js-vote-count">5</div>
<div class="s-prose"><p>{FIRST}</p></div></div></div>
<div id="sidebar">Hot network questions</div></body></html>"""
MICRODATA = f"""<body><div itemscope itemtype="https://schema.org/Question"><h1 itemprop="name">Sum</h1>
<span itemprop="upvoteCount">7</span><div itemprop="text"><p>{ASKED}</p></div>
<div itemprop="suggestedAnswer" itemscope itemtype="https://schema.org/Answer"><span itemprop="upvoteCount">12</span>
<div itemprop="text"><p>{SECOND}</p></div></div>
<div itemprop="acceptedAnswer" itemscope itemtype="https://schema.org/Answer"><span itemprop="upvoteCount">5</span>
<div itemprop="text"><p>{FIRST}</p></div></div></div></body>"""
QA_PAGE = json.dumps(
    {
        "@type": "QAPage",
        "mainEntity": {
            "@type": "Question",
            "text": f"<p>{ASKED}</p>",
            "upvoteCount": 7,
            "acceptedAnswer": {"@type": "Answer", "text": FIRST, "upvoteCount": 5},
            "suggestedAnswer": [{"@type": "Answer", "text": SECOND, "upvoteCount": 12}],
        },
    }
)
JSON_LD = f"<body><p>Loading</p><script type='application/ld+json'>{QA_PAGE}</script></body>"
DISCOURSE = "<body>" + "".join(
    f'<div class="topic-post"><div class="cooked"><p>{t}</p></div></div>' for t in (ASKED, FIRST, SECOND)
)
PHPBB = "<body>" + "".join(
    f'<div class="post"><div class="postbody"><h3>Re: sum</h3><div class="content">{t}</div></div></div>'
    for t in (ASKED, FIRST, SECOND)
)
XENFORO = "<body>" + "".join(
    f'<article class="message message--post"><div class="bbWrapper">{t}</div></article>' for t in (ASKED, FIRST, SECOND)
)


@pytest.mark.parametrize("page", [STACK_EXCHANGE, MICRODATA, JSON_LD], ids=["stack", "microdata", "json"])
def test_the_accepted_answer_comes_first_and_votes_are_kept(page):
    kind, found = questions(page, "Sum")
    assert kind == "qa" and found is not None
    assert (found.text, found.votes) == (ASKED, 7)
    assert [(answer.text, answer.accepted, answer.votes) for answer in found.answers] == [
        (FIRST, True, 5),
        (SECOND, False, 12),
    ]
    assert found.as_text() == f"# Sum\n\n**Question:** {ASKED}\n\n**Accepted answer:** {FIRST}\n\n**Answer:** {SECOND}"


@pytest.mark.parametrize("page", [DISCOURSE, PHPBB, XENFORO], ids=["discourse", "phpbb", "xenforo"])
def test_a_threads_first_post_is_the_question(page):
    kind, found = questions(page, "")
    assert kind == "forum" and found is not None
    assert [found.text, *(answer.text for answer in found.answers)] == [ASKED, FIRST, SECOND]


def test_a_page_without_a_thread_has_no_question():
    assert questions("<body><article><p>Only text.</p></article></body>", "") == ("", None)
    assert questions("", "") == ("", None)


@pytest.mark.parametrize(
    ("text", "mathematical"),
    [
        (r"Let $x \in \mathbb{R}$ with $x^2 = 2$; then \(x\) is irrational, as $p^2 = 2 q^2$ has no solution.", True),
        ("For all ε > 0 there is δ > 0 such that |f(x) − f(y)| < ε: ∀x ∈ A ∃y ∈ B, x ≤ y, and ∑ a ≠ ∞.", True),
        ("The shop sells pens for $3.50, books for $12 and lamps for $40; with tax that is $60 in all.", False),
        ("A story about a dog that went to the market and came home with a hat and a letter for the cat.", False),
        ("", False),
    ],
)
def test_the_symbol_filter(text, mathematical):
    assert is_mathematical(text) is mathematical


def test_symbols_are_counted():
    found = symbols(r"$a^2$ and \[\frac{1}{2}\] and ∑")
    assert (found.formulas, found.commands, found.characters) == (2, 1, 1)


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        ("https://math.stackexchange.com/q/1", True),
        ("https://www.purplemath.com/x", True),
        ("https://m.youtube.com/watch", False),
        ("https://notyoutube.com/", None),
        ("not a url", None),
    ],
)
def test_the_domain_filter(url, verdict):
    assert domain_verdict(url) is verdict


def test_math_pages_are_named_by_their_kind():
    proof = f"<p>{FIRST}</p><p>{SECOND}</p>"
    for title, body, kind in [
        ("Lecture 3: sums", proof, "seminar"),
        ("Tutorial on sums", proof, "tutorial"),
        ("Sums", f'<div class="entry-content">{proof}</div>', "blog"),
        ("Sums", proof, "page"),
    ]:
        source = f"<html><head><title>{title}</title></head><body><h1>{title}</h1>{body}</body></html>"
        found = math_page(source, "https://h.example/", extract_decoded(source))
        assert found is not None and (found.kind, found.question) == (kind, None)
        assert found.text.startswith(f"# {title}\n\n") and FIRST in found.text
        assert math_page(source, "https://www.youtube.com/x", extract_decoded(source)) is None


def test_the_quality_classifier_learns_its_seeds(tmp_path):
    good = [
        f"Let $x_{n}$ solve $x^2 + {n} x = {n * n}$. Then $x = \\frac{{{n}}}{{2}}$ follows, as we show."
        for n in range(60)
    ]
    poor = [
        f"Our shop number {n} sells pens, hats and lamps; call us today and save on every order." for n in range(60)
    ]
    model = MathQuality(good, poor, tmp_path, seed=1)
    again = MathQuality(good, poor, tmp_path, seed=1)
    assert model.accuracy > 0.8
    assert model.score(good[0]) > 0.5 > model.score(poor[0])
    assert model.score(good[7]) == again.score(good[7])


def test_the_step_moves_math_pages_and_writes_their_questions(tmp_path):
    config = ingest.ExtractConfig(math=True)
    texts = {
        f"https://a.example/{n}": f"<p>Shop number {n} sells pens, hats and lamps, as shops do.</p>" for n in range(60)
    }
    texts["https://math.stackexchange.com/q/1"] = STACK_EXCHANGE
    pages = [Page(url, 200, "text/html", None, html.encode()) for url, html in texts.items()]
    rows = [dict.fromkeys(MATH) | ingest.page_document(page, {}, config) for page in pages]
    seeds = [
        f"**Question:** Why is \\(x^2 = {n}\\)? **Answer:** Since \\(x = \\sqrt{{{n}}}\\) for all of them."
        for n in range(60)
    ]
    aside, metrics = MathPages(tmp_path), {}
    others = aside.sift(pa.Table.from_pylist(rows, PAGE_SCHEMA))
    rated = aside.rated(seeds, config.min_math_quality, 1, tmp_path, tmp_path, metrics)
    table = pa.concat_tables([others, *rated])
    flows = dict(zip(table["url"].to_pylist(), table["flow"].to_pylist(), strict=True))
    assert flows.pop("https://math.stackexchange.com/q/1") == "math" and set(flows.values()) == {"web"}
    (asked,) = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert asked["question"] == ASKED and asked["answers"][0] == {"text": FIRST, "accepted": True, "votes": 5}
    assert (metrics["kept"], metrics["kinds"], metrics["questions"], metrics["answers"]) == (1, {"qa": 1}, 1, 2)


@pytest.mark.parametrize(
    "html",
    [
        '<div class="post"><div class="content postbody">∑ $x=1$' * 3_000,
        '<div class="post postbody"><div class="content">∑ $x=1$</div></div>' * 5_000,
        '<div class="question"><div class="s-prose">∑</div></div>'
        + '<div class="answer"><div class="s-prose">∑' * 2_000,
    ],
)
def test_hostile_threads_end_soon(html):
    start = time.monotonic()
    questions(html, "")
    assert time.monotonic() - start < 20  # a hang would be minutes; no claim on speed
