"""Decontamination: ours against a set of word n-grams, on real text, with planted benchmark items.

    python benchmarks/decontamination.py --megabytes 8 --items 1000

Text is the Python standard library's sources; items are made of its words, and 50 of them are planted with changed
case, punctuation and white space. The peer is the plain program: split into words, look each n-gram up in a set. The
limit is numpy hashing a number for every byte, once (multiply, shift).
"""

import random
import re
import sysconfig
from pathlib import Path

import numpy as np

from harness import alternate, options, show, timed
from openafm.data.decontaminate import NgramIndex, item_ngrams

PLANTED = 50


def corpus(megabytes: float, count: int) -> tuple[list[str], list[str], set[int]]:
    """(texts, items, numbers of the texts with a planted item)."""
    draw, texts, size = random.Random(0), [], 0
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py"))
    draw.shuffle(paths)
    while size < megabytes * 1e6 and paths:
        texts.append(paths.pop().read_text("utf-8", "replace") + "\n")
        size += len(texts[-1])
    vocabulary = sorted({word for text in texts[:100] for word in re.findall(r"[a-z]{3,9}", text)})
    items = [" ".join(draw.choices(vocabulary, k=draw.randint(5, 40))) for _ in range(count)]
    places = draw.sample(range(len(texts)), min(PLANTED, len(texts)))
    for place, item in zip(places, items, strict=False):
        joint, spell = draw.choice((" ", "\n\n", " - ", ", ", "... ")), draw.choice((str.upper, str.title))
        changed = joint.join(spell(item).split())
        cut = draw.randrange(len(texts[place]))
        texts[place] = f"{texts[place][:cut]}\n{changed}\n{texts[place][cut:]}"
    return texts, items, set(places)


def plain(texts: list[str], items: list[str]) -> set[int]:
    """Numbers of the texts that hold an n-gram of an item: words, tuples, a set for each length."""
    wanted: dict[int, set[str]] = {}
    for item in items:
        for gram in item_ngrams(item, 4, 13):
            wanted.setdefault(gram.count(" ") + 1, set()).add(gram)
    found = set()
    for number, text in enumerate(texts):
        words = re.findall(r"[^\W_]+", text.casefold())
        for n, grams in wanted.items():
            if any(" ".join(words[i : i + n]) in grams for i in range(len(words) - n + 1)):
                found.add(number)
                break
    return found


def main() -> None:
    chosen = options(__doc__, megabytes=8.0, items=1000)
    texts, items, planted = corpus(chosen.megabytes, chosen.items)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    index = NgramIndex()
    for number, item in enumerate(items):
        index.add("made", str(number), item)
    contestants = {
        "openafm": lambda: megabytes / timed(lambda: index.find(texts)),
        "set of n-grams": lambda: megabytes / timed(lambda: plain(texts, items)),
    }
    figures = alternate(contestants, chosen.repeats)
    found = {"openafm": {n for n, hits in enumerate(index.find(texts)) if hits}, "set of n-grams": plain(texts, items)}
    detail = {name: {"found": len(hits & planted), "false": len(hits - planted)} for name, hits in found.items()}
    detail["planted"] = {"texts": len(planted), "ngrams": len(index.ngrams)}
    print(detail)
    stream = np.frombuffer("".join(texts).encode(), np.uint8)
    limit = len(stream) / 1e6 / min(timed(lambda: (stream * np.uint64(0x9E3779B97F4A7C15)) >> 42) for _ in range(5))
    limit_is = "hashing every byte once"
    show("decontamination", "MB/s", figures, limit=limit, limit_is=limit_is, detail=detail, as_json=chosen.json)


if __name__ == "__main__":
    main()
