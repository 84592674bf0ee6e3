"""Fit the weights of `openafm.data.body` on the labelled development pages, by logistic regression.

    PYTHONPATH=benchmarks python -m pages.fit        # prints the weights and a 5-fold check; --write puts them in place

A block counts as body text when most of its 4-word shingles stand in the label's text; one of under four words, when it
stands there beside its neighbour. Blocks weigh by their length and pages about alike, as the measures do. Folds are by
site, so a template is never judged by weights that have seen it.
"""

import argparse
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from resiliparse.parse.html import HTMLTree

from extraction import harmonic, precision_recall, shingles, words
from openafm.data import body
from openafm.data.blocks import read_blocks
from openafm.data.extract import extract_decoded
from openafm.data.mathml import inline_formulas
from openafm.data.metadata import is_thread
from pages.labelled import Labelled, load

SHRINKAGE = 1.0
FOLDS = 5


class Example(NamedTuple):
    """One block: the signals that it shows, whether it is body text, and how much it counts."""

    signals: list[str]
    good: bool
    weight: float


def examples(page: Labelled) -> list[Example]:
    """The blocks of a page, headings aside, which follow the text below them."""
    tree = HTMLTree.parse(page.html)
    blocks, boxes = read_blocks(inline_formulas(tree.body.html))
    view = body.look(blocks, boxes, is_thread(page.html))
    said = [[word for block in unit.blocks for word in words(block.text)] for unit in view.found]
    truth, line = shingles(page.truth, 4), f" {' '.join(words(page.truth))} "
    found, shown = [], body.signals(view)
    for at, unit in enumerate(view.found):
        own = said[at]
        if not own or unit.blocks[0].kind[0] == "h":
            continue
        if len(own) > 3:
            good = sum(tuple(own[i : i + 4]) in truth for i in range(len(own) - 3)) > 0.5 * (len(own) - 3)
        else:
            before = next((text[-3:] for text in reversed(said[:at]) if text), [])
            after = next((text[:3] for text in said[at + 1 :] if text), [])
            good = any(
                side and f" {' '.join(side)} " in line for side in (before and before + own, after and own + after)
            )
        found.append(Example(shown[at], good, 1 + min(len(own), 40) ** 0.7))
    total = sum(example.weight for example in found)
    return [example._replace(weight=60 * example.weight / (60 + total**0.8)) for example in found]


def fit(pages: Sequence[Sequence[Example]]) -> dict[str, float]:
    """Weights by Newton's method, shrunk towards nothing."""
    rows = [example for page in pages for example in page]
    names = sorted({signal for example in rows for signal in example.signals})
    column = {name: at for at, name in enumerate(names)}
    x = np.zeros((len(rows), len(names)))
    for at, example in enumerate(rows):
        x[at, [column[signal] for signal in example.signals]] = 1
    y, w = np.array([example.good for example in rows]), np.array([example.weight for example in rows])
    b = np.zeros(len(names))
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ b))
        gradient = x.T @ (w * (p - y)) + SHRINKAGE * b
        b -= np.linalg.solve((x * (w * p * (1 - p))[:, None]).T @ x + SHRINKAGE * np.eye(len(names)), gradient)
    return {name: round(float(value), 2) for name, value in zip(names, b, strict=True)}


def judged(pages: Sequence[Labelled], weights: dict[str, float]) -> Iterator[tuple[float, float]]:
    """4-gram precision and recall of the extraction by some weights."""
    body.WEIGHTS.clear()
    body.WEIGHTS.update(weights)
    yield from (precision_recall(extract_decoded(page.html).text, page.truth, 4) for page in pages)


def main() -> None:
    """Fit, check by folds, and print or write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the weights into src/openafm/data/body.py")
    given = parser.parse_args()
    pages = [page for page in load()[0] if page.split == "dev"]
    data = [examples(page) for page in pages]
    fold = [zlib.crc32(page.name.encode()) % FOLDS for page in pages]
    figures: list[tuple[float, float]] = []
    for part in range(FOLDS):
        seen = fit([blocks for blocks, of in zip(data, fold, strict=True) if of != part])
        figures += judged([page for page, of in zip(pages, fold, strict=True) if of == part], seen)
    weights = fit(data)
    for name, measured in (("held out by folds", figures), ("fitted", list(judged(pages, weights)))):
        precision, recall = np.mean(measured, axis=0)
        print(f"{name}: precision {precision:.3f}, recall {recall:.3f}, F1 {harmonic(precision, recall):.3f}")
    written = (
        "WEIGHTS = {\n" + "".join(f"    {json.dumps(name)}: {value},\n" for name, value in weights.items()) + "}\n"
    )
    print(written)
    if given.write:
        path = Path(body.__file__)
        path.write_text(re.sub(r"WEIGHTS = \{.*?\}\n", lambda _: written, path.read_text(), count=1, flags=re.S))


if __name__ == "__main__":
    main()
