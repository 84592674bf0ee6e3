"""Fuzzed HTML: no crash, no hang over five seconds a page, every page without text counted.

    openafm bench extraction_fuzz --inputs 100000

Inputs are drawn from a seed: soups of tags, attributes and broken entities, pages (the templates' READMEs) with bytes
flipped, pieces cut, doubled and nested, deep nesting of single tags, and plain bytes. Each goes through what the
crawl's pages go through: decoding, extraction, the math page test. An exception other than UndecodableError is a crash.
"""

import json
import random
import time
from collections import Counter

from harness import machine, options
from openafm.data.extract import UndecodableError, decode, extract_decoded
from openafm.data.math_pages import math_page
from pages.templates import corpus

SOUP = (
    "<p> </p> <div> </div> <table> <tr> <td> </table> <ul> <li> </ul> <ol> <pre> </pre> <a_href=x> </a> <h1> "
    "</h1> <h2> <br> <br/> <hr> <math> <mi>x</mi> <mfrac> </math> <svg> </svg> <script> </script> <style> "
    "</style> <!-- --> <![CDATA[ ]]> <!doctype_html> <html_lang=en> <head> <title> </title> <body> "
    "<span_hidden> </span> <div_style='display:none'> <div_class='comments'> <div_class=\"article-body\"> "
    "<img_alt='x^2'_class=latex> <template> <select> <option> <textarea> <noscript> <iframe> <plaintext> "
    "<frameset> <b> <i> </b> </i> < > & &amp &#x0; &#xFFFFFFFF; &nbsp; \" ' = / \\ \0 \x1e \ufeff word "
    "words,_and_more_words. $x^2$ \\frac{1}{2} Größe 漢字 🙂 <meta_name=date_content='2020-01-02'> "
    "<time_datetime=x> <script_type='application/ld+json'>{\"@type\":\"QAPage\"}</script> <div_class='post'> "
    "<div_class='content'>"
).split(" ")
DEEP = (
    "<div>",
    "<table><tr><td>",
    "<ul><li>",
    "<b><i><p>",
    "<svg>",
    "<math><mrow>",
    "<a href=x>",
    "<pre>",
    "<dl><dd>",
    "<!--",
)


def soup(draw: random.Random) -> bytes:
    """Tags and texts in any order."""
    text = "".join(draw.choice(SOUP).replace("_", " ") for _ in range(draw.randint(0, 120)))
    return text.encode("utf-8", "surrogatepass")


def mutated(draw: random.Random, pages: list[bytes]) -> bytes:
    """A page with pieces moved, doubled, cut out and bytes replaced."""
    page = bytearray(draw.choice(pages))
    for _ in range(draw.randint(1, 12)):
        start = draw.randrange(len(page) + 1)
        end = min(len(page), start + draw.choice((1, 5, 60, 900)))
        piece, act = bytes(page[start:end]), draw.randrange(4)
        if act == 0:
            page[start:end] = b""
        elif act == 1:
            page[start:start] = piece * draw.randint(1, 6)
        elif act == 2:
            page[start:end] = draw.randbytes(len(piece))
        else:
            page[start:start] = soup(draw)
        if not page:
            break
    return bytes(page[:400_000])


def one(draw: random.Random, pages: list[bytes]) -> bytes:
    """The next input."""
    kind = draw.random()
    if kind < 0.55:
        return soup(draw)
    if kind < 0.93:
        return mutated(draw, pages)
    if kind < 0.97:
        return draw.choice(DEEP).encode() * draw.choice((10, 300, 3_000)) + soup(draw)
    return draw.randbytes(draw.randint(0, 3_000))


def main() -> None:
    """Run all inputs and print what became of them."""
    given = options(__doc__, inputs=100_000, seed=1, limit=5.0)
    pages = [page.html.encode() for page in corpus(60)]
    draw = random.Random(given.seed)
    counted: Counter[str] = Counter()
    slowest, crashes = (0.0, ""), []
    for number in range(given.inputs):
        data = one(draw, pages)
        started = time.process_time()
        try:
            source = decode(data)
            found = extract_decoded(source, "https://h.example/2020/01/02/x")
            math_page(source, "https://math.stackexchange.com/q", found)
            counted["text" if found.text else "rejected: empty"] += 1
        except UndecodableError:
            counted["rejected: undecodable"] += 1
        except Exception as crash:
            counted["crash"] += 1
            crashes.append(f"input {number}: {type(crash).__name__}: {crash}"[:200])
        seconds = time.process_time() - started
        counted["hang"] += seconds > given.limit
        slowest = max(slowest, (seconds, f"input {number}, {len(data)} bytes"))
    print("\n".join(crashes[:20]))
    print({**dict(sorted(counted.items())), "slowest_seconds": round(slowest[0], 3), "slowest": slowest[1]})
    if given.json:
        detail = {**counted, "slowest_seconds": round(slowest[0], 3)}
        line = {"name": "extraction_fuzz", "unit": "crashes and hangs", "ours": counted["crash"] + counted["hang"]}
        print(json.dumps({**line, "peers": {}, "limit": 0, "detail": detail, "machine": machine()}))
    if counted["crash"] or counted["hang"] or counted.total() - counted["hang"] != given.inputs:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
