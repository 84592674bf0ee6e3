"""Real text for benchmarks: what is installed beside this Python, cut into documents, and edited copies of it."""

import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".py", ".md", ".rst", ".txt", ".pyi", ".h", ".html")


def files(seed: int = 0) -> list[Path]:
    """Text files of the standard library and of installed packages, in a fixed shuffle."""
    folders = {Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")}
    found = {path.resolve() for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES}
    listed = sorted(path for path in found if 2_000 < path.stat().st_size < 400_000)
    random.Random(seed).shuffle(listed)
    return listed


def documents(count: int, seed: int = 0, words: int = 400) -> Iterator[str]:
    """Up to `count` different texts of `words` words, at most 6 of a file."""
    draw = random.Random(seed)
    for path in files(seed):
        listed = path.read_text("utf-8", "replace").split()
        pieces = [listed[at : at + words] for at in range(0, len(listed) - words * 3 // 4, words)]
        for piece in draw.sample(pieces, min(6, len(pieces), count)):
            count -= 1
            yield " ".join(piece)
        if not count:
            return


def edited(text: str, draw: random.Random, edits: int) -> str:
    """A copy of a text in which `edits` words are replaced by others of it."""
    listed = text.split()
    for _ in range(edits):
        listed[draw.randrange(len(listed))] = draw.choice(listed)
    return " ".join(listed)


def with_copies(count: int, seed: int = 0) -> list[str]:
    """`count` texts, a third of them copies of others with up to 14 edits, shuffled."""
    draw, originals = random.Random(seed), list(documents(count * 2 // 3, seed))
    if len(originals) < count * 2 // 3:
        raise ValueError(
            f"only {len(originals):,} texts are installed here: ask for at most {len(originals) * 3 // 2:,}"
        )
    copies = [edited(text, draw, draw.randint(0, 14)) for text in draw.choices(originals, k=count - len(originals))]
    listed = originals + copies
    draw.shuffle(listed)
    return listed


def words_at_white_space() -> Any:
    """A word tokenizer for datatrove that cuts at white space, as all peers are given words here."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class White(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    return White()
