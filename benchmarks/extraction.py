"""Body extraction: ours against its peers on real labelled pages: F1 and pages a second on one core, in one run.

    openafm bench extraction --peers trafilatura,resiliparse,readability-lxml

The pages are 192 real ones of 165 sites: articles, manuals, forums, shops and lists (`benchmarks/pages/labelled.py`
says whence and who labelled). Figures on `dev`, which rules and weights were fitted on, and on `test`, which they
were not, are apart. Two measures:
- 4-gram F1, that of the article-extraction-benchmark of Scrapinghub: precision and recall over bags of 4-word
  shingles, the mean over pages, and the F1 of the two means;
- token F1: of words with their multiplicity, the mean over pages.
Template pages, rendered by us from READMEs, are a table of their own (`benchmarks/pages/templates.py`). Each
extractor is called as its manual says for the main text without readers' comments; all get decoded text. The limit is
parsing the HTML alone (resiliparse). Peers that are not installed are named and left out.
"""

import gc
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree
from rich.console import Console
from rich.table import Table

from harness import alternate, options, show, timed
from openafm.data.extract import extract_decoded
from pages.labelled import Labelled, load, plain
from pages.templates import corpus

PEERS = "trafilatura,resiliparse,readability-lxml,boilerpy3,newspaper4k,goose3,justext"


def words(text: str) -> list[str]:
    """Words in lower case."""
    return re.findall(r"\w+", text.lower())


def shingles(text: str, n: int) -> Counter[tuple[str, ...]]:
    """The bag of a text's word n-grams; a shorter text is one shingle."""
    found = words(text)
    return Counter(tuple(found[at : at + n]) for at in range(max(1, len(found) - n + 1))) if found else Counter()


def precision_recall(found: str, truth: str, n: int) -> tuple[float, float]:
    """Precision and recall of the bag of n-grams; both 1 where there is nothing to find and nothing was found."""
    a, b = shingles(found, n), shingles(truth, n)
    common = (a & b).total()
    return (common / a.total() if a else float(not b)), (common / b.total() if b else float(not a))


def harmonic(precision: float, recall: float) -> float:
    """F1."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def with_trafilatura(html: str) -> str:
    import trafilatura

    return trafilatura.extract(html, include_comments=False, include_tables=True) or ""


def with_resiliparse(html: str) -> str:
    return extract_plain_text(HTMLTree.parse(html), main_content=True)


def with_readability(html: str) -> str:
    from readability import Document

    return plain(Document(html).summary())


def with_boilerpy3(html: str) -> str:
    from boilerpy3.extractors import ArticleExtractor

    return ArticleExtractor(raise_on_failure=False).get_content(html)


def with_newspaper(html: str) -> str:
    import newspaper

    article = newspaper.Article("https://h.example/a", fetch_images=False)
    article.download(input_html=html)
    article.parse()
    return article.text


def with_goose(html: str) -> str:
    from goose3 import Goose

    return Goose({"enable_image_fetching": False}).extract(raw_html=html).cleaned_text


def with_justext(html: str) -> str:
    import justext

    paragraphs = justext.justext(html, justext.get_stoplist("English"))
    return "\n".join(paragraph.text for paragraph in paragraphs if not paragraph.is_boilerplate)


EXTRACTORS: dict[str, Callable[[str], str]] = {
    "openafm": lambda html: extract_decoded(html).text,
    "trafilatura": with_trafilatura,
    "resiliparse": with_resiliparse,
    "readability-lxml": with_readability,
    "boilerpy3": with_boilerpy3,
    "newspaper4k": with_newspaper,
    "goose3": with_goose,
    "justext": with_justext,
}


def attempt(work: Callable[[str], str], html: str) -> str:
    """What an extractor finds; a page that it fails on counts as nothing found."""
    try:
        return work(html) or ""
    except Exception:
        return ""


def installed(names: Sequence[str]) -> dict[str, Callable[[str], str]]:
    """Ours and those peers that can be imported; the others are named."""
    found = {"openafm": EXTRACTORS["openafm"]}
    for name in names:
        try:
            EXTRACTORS[name]("<html><body><p>Some text to begin with, of one sentence.</p></body></html>")
        except ImportError as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
            continue
        except Exception as failure:
            print(f"{name} fails on one paragraph alone ({type(failure).__name__})", file=sys.stderr)
        found[name] = EXTRACTORS[name]
    return found


def scores(pages: list[Labelled], extractors: dict[str, Callable[[str], str]], title: str) -> dict[str, dict]:
    """Print F1 by kind of page; return {extractor: {"f1", "precision", "recall", "token_f1"}}."""
    kinds = sorted({page.kind for page in pages})
    table = Table(title=f"{title}: {len(pages)} pages")
    heads = [f"{kind} ({sum(page.kind == kind for page in pages)})" for kind in kinds]
    for column in ("extractor", *heads, "4-gram F1", "precision", "recall", "token F1"):
        table.add_column(column, justify="left" if column == "extractor" else "right")
    overall: dict[str, dict] = {}
    for name, work in extractors.items():
        measured = []
        for page in pages:
            found = attempt(work, page.html)
            measured.append(
                (page.kind, *precision_recall(found, page.truth, 4), precision_recall(found, page.truth, 1))
            )
        precision, recall = (statistics.fmean(row[at] for row in measured) for at in (1, 2))
        by_kind = []
        for kind in kinds:
            rows = [row for row in measured if row[0] == kind]
            by_kind.append(harmonic(statistics.fmean(r[1] for r in rows), statistics.fmean(r[2] for r in rows)))
        tokens = statistics.fmean(harmonic(*row[3]) for row in measured)
        f1 = harmonic(precision, recall)
        table.add_row(name, *(f"{value:.3f}" for value in (*by_kind, f1, precision, recall, tokens)))
        figures = {"f1": f1, "precision": precision, "recall": recall, "token_f1": tokens}
        overall[name] = {key: round(value, 4) for key, value in figures.items()}
    Console(width=170).print(table)
    return overall


def main() -> None:
    """Measure F1 once, on each set of pages, and pages a second in turns on all real pages."""
    given = options(__doc__, peers=PEERS, templates=150, speed_pages=192)
    extractors = installed([name for name in given.peers.split(",") if name])
    pages, missing = load()
    for reason in missing:
        print(f"left out: {reason}", file=sys.stderr)
    detail: dict[str, object] = {"missing": len(missing)}
    for split in ("test", "dev"):
        detail[split] = scores([page for page in pages if page.split == split], extractors, f"real pages, {split}")
    detail["templates"] = scores(corpus(given.templates), extractors, "template pages") if given.templates else {}
    timed_pages = [page.html for page in pages][: given.speed_pages]

    def rate(work: Callable[[str], object]) -> Callable[[], float]:
        def measure() -> float:
            gc.collect()
            return len(timed_pages) / timed(lambda: [attempt(work, html) for html in timed_pages])  # type: ignore[arg-type]

        return measure

    figures = alternate({name: rate(work) for name, work in extractors.items()}, given.repeats)
    limit = statistics.median(rate(HTMLTree.parse)() for _ in range(given.repeats))
    detail["pages"] = len(pages)
    detail["bytes_a_page"] = round(statistics.fmean(len(html.encode("utf-8", "replace")) for html in timed_pages))
    show("body extraction", "pages/s on one core", figures, limit=limit, limit_is="parsing alone", detail=detail,
         as_json=given.json)  # fmt: skip


if __name__ == "__main__":
    main()
