import random
import re
from collections import Counter

import pytest

from openafm.data import dirt
from openafm.data.dirt import KINDS, DirtConfig, plant
from openafm.data.readers import Document, Page

PROSE = [
    f"The {i}th paragraph tells how a database keeps its pages in order and why that matters to readers."
    for i in range(9)
]
PAGES = [
    Page(f"https://a.example/{n}", "".join(f"<p>{p} Page {n}.</p>" for p in PROSE).encode(), "text/html", "a", "MIT")
    for n in range(5)
]
DOCUMENTS = [
    Document(
        f"https://{flow}.example/{n}",
        flow,
        "s",
        "MIT",
        "t",
        "\n".join(PROSE) + "\n",
        "Python" if flow == "code" else "",
    )
    for flow in ("code", "licensed", "math", "public")
    for n in range(3)
]
BENCHMARKS = {
    "quiz": [{"id": "quiz/1", "text": "one two three four five six seven eight nine ten eleven twelve thirteen"}]
}


def planted(seed=0):
    return plant(PAGES, DOCUMENTS, BENCHMARKS, DirtConfig(web=2, other=1), seed)


def test_every_kind_in_every_flow_and_marked():
    done = planted()
    by_url = {mark["url"]: mark for mark in done.marks}
    rows = [(page.url, "web", page.planted) for page in done.pages]
    rows += [(document.url, document.flow, document.planted) for document in done.documents]
    assert Counter((flow, kind) for _, flow, kind in rows) == Counter(
        {
            (flow, kind): 2 if flow == "web" else 1
            for flow in ("web", "code", "licensed", "math", "public")
            for kind in KINDS
        }
    )
    assert sorted(by_url) == sorted(url for url, _, _ in rows)
    assert all(by_url[url]["kind"] == kind for url, _, kind in rows)


def test_seed_decides_everything():
    assert planted(1) == planted(1)
    assert planted(1).pages != planted(2).pages


def digit_sum_is_right(number: str) -> bool:
    """Luhn by its definition: double every second digit from the right, add the digits of all."""
    doubled = [int(c) * (1 + i % 2) for i, c in enumerate(reversed(number))]
    return sum(sum(map(int, str(value))) for value in doubled) % 10 == 0


def test_published_check_digits():
    assert dirt.luhn_digit("7992739871") == "3"  # the example in the literature on Luhn's formula
    assert digit_sum_is_right("4111111111111111")


@pytest.mark.parametrize("seed", range(50))
def test_numbers_are_valid(seed):
    rng = random.Random(seed)
    number = re.sub(r"\D", "", dirt.card(rng))
    assert digit_sum_is_right(number) and len(number) in (15, 16)
    iban = dirt.iban(rng).replace(" ", "")
    moved = iban[4:] + iban[:4]
    assert int("".join(str("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(c)) for c in moved)) % 97 == 1
    assert len(iban) == {"DE": 22, "GB": 22, "NL": 18, "ES": 24, "IT": 27}[iban[:2]]
    area, group, serial = dirt.ssn(rng).split("-")
    assert area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    assert re.fullmatch(r"[\w.]+@\w+(\.\w+)+", dirt.email(rng))
    assert 10 <= len(re.sub(r"\D", "", dirt.phone(rng))) <= 12


def test_near_copies_change_few_words_and_exact_copies_none():
    done = planted()
    originals = {page.url: page for page in PAGES}
    texts = {document.url: document.text for document in DOCUMENTS}
    for mark in done.marks:
        if mark["kind"] == "exact_copy" and mark["url"].endswith(".html"):
            page = next(page for page in done.pages if page.url == mark["url"])
            assert page.html == originals[mark["of"]].html
        if mark["kind"] == "near_copy" and mark["of"] in texts:
            text = next(document.text for document in done.documents if document.url == mark["url"])
            old, new = texts[mark["of"]].split(), text.split()
            changed = sum(a != b for a, b in zip(old, new, strict=True)) / len(old)
            assert 0 < changed <= 0.11


def test_dirt_is_in_the_pages_and_in_comments_of_code():
    done = planted()
    for page in done.pages:
        if page.planted == "benchmark":
            assert BENCHMARKS["quiz"][0]["text"].encode() in page.html
    code = next(d for d in done.documents if d.flow == "code" and d.planted == "profanity")
    added = set(code.text.splitlines()) - set(PROSE)
    assert added and all(line.startswith("# ") for line in added)


def test_foreign_pages_are_not_copied():
    french = [Page("https://f.example/1", b'<html lang="fr"><p>x</p></html>', "text/html", "f", "")]
    done = plant([*french, *PAGES], [], {}, DirtConfig(web=6, other=0), 0)
    assert all(mark.get("of") != "https://f.example/1" for mark in done.marks)
