"""Decontamination: ours against datatrove and a set of word n-grams, on real text, with planted benchmark items.

    python benchmarks/decontamination.py --megabytes 32 --items 1000

Text is what is installed beside this Python; items are made of its words, and 50 of them are planted with changed case,
punctuation and white space. "set of n-grams" is the plain program: split into words, look each n-gram up in a set.
datatrove's NGramsDecontFilter is given the same items as its index, 13-grams as we take them of long items (it drops
shorter items), and words cut at white space. All on one core. "every n" is ours with all n-grams of 4 to 13 words. The
limit is numpy hashing a number for every byte, once (multiply, shift).
"""

import random
import re
from collections.abc import Iterator

import numpy as np

from harness import alternate, options, show, timed
from openafm.data.ngram_index import NgramIndex, words
from texts import files, words_at_white_space

PLANTED = 50


def corpus(megabytes: float, count: int) -> tuple[list[str], list[str], set[int]]:
    """(texts, items, numbers of the texts with a planted item)."""
    draw, texts, size = random.Random(0), [], 0.0
    for path in files():
        texts.append(path.read_text("utf-8", "replace") + "\n")
        size += len(texts[-1])
        if size >= megabytes * 1e6:
            break
    vocabulary = sorted({word for text in texts[:100] for word in re.findall(r"[a-z]{3,9}", text)})
    items = [" ".join(draw.choices(vocabulary, k=draw.randint(5, 40))) for _ in range(count)]
    places = draw.sample(range(len(texts)), min(PLANTED, len(texts)))
    for place, item in zip(places, items, strict=False):
        joint, spell = draw.choice((" ", "\n\n", " - ", ", ", "... ")), draw.choice((str.upper, str.title))
        changed = joint.join(spell(item).split())
        cut = draw.randrange(len(texts[place]))
        texts[place] = f"{texts[place][:cut]}\n{changed}\n{texts[place][cut:]}"
    return texts, items, set(places)


def grams(item: str) -> Iterator[tuple[str, ...]]:
    """The n-grams that give an item away: of 13 words, or the whole item."""
    listed = words(item)
    n = min(13, len(listed))
    yield from (tuple(listed[at : at + n]) for at in range(len(listed) - n + 1) if n >= 4)


def plain(texts: list[str], items: list[str]) -> set[int]:
    """Numbers of the texts that hold an n-gram of an item: words, tuples, a set for each length."""
    wanted: dict[int, set[str]] = {}
    for gram in (gram for item in items for gram in grams(item)):
        wanted.setdefault(len(gram), set()).add(" ".join(gram))
    found = set()
    for number, text in enumerate(texts):
        listed = re.findall(r"[^\W_]+", text.casefold())
        for n, some in wanted.items():
            if any(" ".join(listed[at : at + n]) in some for at in range(len(listed) - n + 1)):
                found.add(number)
                break
    return found


def with_datatrove(texts: list[str], items: list[str]) -> set[int]:
    """Numbers of the texts that its filter would drop."""
    from datatrove.data import Document
    from datatrove.pipeline.decont import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.text import TextNormConfig, ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=13, norm_config=TextNormConfig())
    decont = NGramsDecontFilter("/nonexistent", config=config, language=words_at_white_space())
    decont.hash_func = lambda text: hash(text)  # its own passes a str, which xxhash 4 refuses
    decont._index_hashes = {
        hash(" ".join(gram)): "made"
        for item in items
        for gram in ngrams(simplify_text(item, config.norm_config).split(), 13)
    }
    return {n for n, text in enumerate(texts) if decont.filter(Document(text=text, id=str(n))) is not True}


def main() -> None:
    chosen = options(__doc__, megabytes=32.0, items=1000)
    texts, items, planted = corpus(chosen.megabytes, chosen.items)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    indices = {"openafm": NgramIndex(), "openafm, every n": NgramIndex(every=True)}
    for index in indices.values():
        for number, item in enumerate(items):
            index.add("made", str(number), item)
    runs = {name: lambda index=index: hits(index, texts) for name, index in indices.items()}
    runs |= {"set of n-grams": lambda: plain(texts, items), "datatrove": lambda: with_datatrove(texts, items)}
    contestants = {name: lambda run=run: megabytes / timed(run) for name, run in runs.items()}
    figures = alternate(contestants, chosen.repeats)
    long = {number for number in planted if number in hits(long_only(items), texts)}
    detail = {name: _found(run(), planted, long) for name, run in runs.items()}
    detail["planted"] = {"texts": len(planted), "of 13 words or more": len(long), "ngrams": len(indices["openafm"])}
    for name, row in detail.items():
        print(name, row)
    stream = np.frombuffer("".join(texts).encode(), np.uint8)
    limit = len(stream) / 1e6 / min(timed(lambda: (stream * np.uint64(0x9E3779B97F4A7C15)) >> 42) for _ in range(5))
    limit_is = "hashing every byte once"
    show("decontamination", "MB/s", figures, limit=limit, limit_is=limit_is, detail=detail, as_json=chosen.json)


def hits(index: NgramIndex, texts: list[str]) -> set[int]:
    """Numbers of the texts that hold an n-gram, a thousand texts at a time as in the step."""
    found: set[int] = set()
    for start in range(0, len(texts), 1024):
        found |= {start + at for at, ngrams in enumerate(index.find(texts[start : start + 1024])) if ngrams}
    return found


def long_only(items: list[str]) -> NgramIndex:
    """The items that datatrove can find."""
    index = NgramIndex(min_n=13)
    for number, item in enumerate(items):
        index.add("made", str(number), item, whole=False)
    return index


def _found(found: set[int], planted: set[int], long: set[int]) -> dict[str, int]:
    return {
        "found": len(found & planted),
        "found of 13 words or more": len(found & long),
        "others": len(found - planted),
    }


if __name__ == "__main__":
    main()
