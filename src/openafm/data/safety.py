"""Profanity, sexually explicit and unsafe text: word rules that see through obfuscation, and a model learned from them.

Part of the `clean` step. The rules weigh words and phrases against the length of the text. The model is a small
fastText classifier on character n-grams. Nobody labelled its training data: chunks that the rules hit are its positive
examples (half of the hits blanked, so that it learns their company too) and chunks of unhit documents the negative
ones. It therefore knows no more than the rules' neighbourhood, and its agreement with held-out rule labels, which the
step reports, says nothing about text that the rules cannot see.
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

import fasttext

CATEGORIES = ("profanity", "adult", "unsafe")
LISTED_WEIGHT = 0.4
"""Weight of a word of a foreign list beside 1 for our own: such lists hold many words with harmless uses."""
_HARMLESS = frozenset(
    "balls beaver breasts crack crotch damn dummy enlargement fat fatal foobar gay god guido hell hump kill"
    " lesbian loin lust master meth murder nad naked nazi nimrod nude organ pantie paki pawn pcp pot prod"
    " queer racy rum screw screwed screwing scrot sex sexual slave slope snuff strip stroke stupid suck sucked"
    " sucks tampon tard teste thrust thug ugly urine virgin vomit wang weed xx xxx".split()
)
"""Words of foreign lists that technical and plain prose uses; found by counting hits on documentation."""

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_DISGUISED = re.compile(r"[0-9@$!*+|][a-z0-9@$!*+|]*(?![\w@])")
_WITHIN = re.compile(r"[\w/.:@-]")
_DRAWN_OUT = re.compile(r"(?<!\w)[a-z]*?([a-z])\1\1[a-z]*(?!\w)")
_TRIPLE = re.compile(r"([a-z])\1\1")
_TRIPLE_RUN = re.compile(r"([a-z])\1{2,}")
_SPACED = re.compile(r"(?<![a-z])(?:[a-z][ .*_-]){3,12}[a-z](?![a-z])")
_LEET = str.maketrans("013457@$!|+", "oieastasiit")
_LOOKALIKES = str.maketrans("аеорсухікмтвԁѕ", "aeopcyxikmtbds")
_NON_ASCII = re.compile(r"[^\x00-\x7f]+")
_ZERO_WIDTH = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


@dataclass(frozen=True)
class Words:
    """Weighted terms by category: single words, and phrases under their first word."""

    single: dict[str, tuple[str, float]]
    phrases: dict[str, tuple[tuple[tuple[str, ...], str, float], ...]]
    by_length: dict[int, tuple[str, ...]]


@dataclass(frozen=True)
class Finding:
    """What the rules say: the heaviest category ("" for none to speak of) and its terms, most frequent first."""

    category: str
    weight: float
    terms: tuple[str, ...]


def _lines(text: str) -> list[str]:
    return [line.strip().lower() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@cache
def load_words(folder: Path | None = None) -> Words:
    """Read our lists, and below them `profanity.txt` and the like of a folder from outside (see `LISTED_WEIGHT`)."""
    terms: dict[str, tuple[str, float]] = {}
    own = files("openafm.data") / "words"
    for path in sorted(folder.glob("*.txt")) if folder is not None and folder.is_dir() else []:
        category = path.stem if path.stem in CATEGORIES else "profanity"
        terms |= {term: (category, LISTED_WEIGHT) for term in _lines(path.read_text("utf-8")) if term not in _HARMLESS}
    for category in CATEGORIES:
        terms |= dict.fromkeys(_lines((own / f"{category}.txt").read_text("utf-8")), (category, 1.0))
    single = {term: known for term, known in terms.items() if _WORD.fullmatch(term)}
    phrases: dict[str, list[tuple[tuple[str, ...], str, float]]] = {}
    for term, (category, weight) in terms.items():
        parts = tuple(_WORD.findall(term))
        if len(parts) > 1:
            phrases.setdefault(parts[0], []).append((parts, category, weight))
    by_length = {size: tuple(sorted(term for term in single if len(term) == size)) for size in range(2, 25)}
    return Words(single, {first: tuple(found) for first, found in phrases.items()}, by_length)


def fold(text: str) -> str:
    """Lower-case a text, with compatibility forms, accents, zero-width characters and look-alike letters made plain."""
    text = text.lower()
    if text.isascii():
        return text
    return _NON_ASCII.sub(lambda run: _plain(run[0]), text)


@lru_cache(maxsize=16_384)
def _plain(run: str) -> str:
    plain = unicodedata.normalize("NFKD", run.translate(_ZERO_WIDTH)).translate(_LOOKALIKES)
    return "".join(character for character in plain.lower() if not unicodedata.combining(character))


def _disguised(folded: str) -> Iterable[str]:
    """Yield the words with digits or signs in them, read from the sign back: most words have none."""
    at = 0
    while match := _DISGUISED.search(folded, at):
        start = match.start()
        while start and "a" <= folded[start - 1] <= "z":
            start -= 1
        inside = start > 0 and _WITHIN.match(folded, start - 1)
        at = match.start() + 1 if inside else match.end()
        if not inside:
            yield folded[start : match.end()]


def _undisguised(folded: str, words: Words) -> Iterable[str]:
    """Yield the terms behind leet (`sh1t`), stars (`f*ck`), drawn-out (`fuuuck`) and spaced (`f u c k`) spellings."""
    for token in {token.strip("!|+*") for token in _disguised(folded)}:
        letters = sum(map(str.isalpha, token))
        if not 4 <= len(token) <= 24 or letters < 2 or letters == len(token):
            continue
        if "*" in token:
            pattern = re.compile(re.escape(token).replace(r"\*", "[a-z]"))
            yield from sorted(term for term in words.by_length.get(len(token), ()) if pattern.fullmatch(term))
        elif (plain := token.translate(_LEET)) in words.single:
            yield plain
    drawn = _DRAWN_OUT.finditer(folded) if _TRIPLE.search(folded) else ()
    for match in drawn:
        if (plain := _TRIPLE_RUN.sub(r"\1", match[0])) in words.single:
            yield plain
    for match in _SPACED.finditer(folded):
        joined = re.sub("[^a-z]", "", match[0])
        if joined in words.single:
            yield joined


def _count(text: str, words: Words, disguised: bool) -> Counter[str]:
    folded = fold(text)
    tokens = _WORD.findall(folded)
    present = set(tokens)
    known = words.single.keys() & present
    hits = Counter(token for token in tokens if token in known) if known else Counter()
    likely = [
        parts
        for first in words.phrases.keys() & present
        for parts, _, _ in words.phrases[first]
        if present.issuperset(parts)
    ]
    if likely:
        joined = f" {' '.join(tokens)} "
        hits.update({" ".join(parts): count for parts in likely if (count := joined.count(f" {' '.join(parts)} "))})
    if disguised:
        hits.update(sorted(_undisguised(folded, words))[:1000])
    return hits


def judge_words(text: str, words: Words, disguised: bool = True) -> Finding:
    """Weigh the text's rude, explicit and unsafe words; a category counts from two hits at one in 200 words.

    A text of few words needs one hit in 60. `disguised=False` reads words as they stand: code and formulas are full of
    what looks like leet, and one odd name in them means nothing. One term counts three times at most.
    """
    hits = _count(text, words, disguised)
    if not hits:
        return Finding("", 0.0, ())
    weights: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)
    categories: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for term, count in sorted(hits.items(), key=lambda item: (-item[1], item[0])):
        category, weight = _term(term, words)
        weights[category] += weight * min(3, count)
        categories[category].append(term)
    category, weight = max(weights.items(), key=lambda item: (item[1], item[0]))
    size = text.count(" ") + text.count("\n") + 1
    heavy = (weight >= 2 and weight * 200 >= size) or (weight >= 0.8 and weight * 60 >= size)
    heavy = heavy and (disguised or len(categories[category]) > 1)
    return Finding(category if heavy else "", weight, tuple(categories[category][:5]))


def _term(term: str, words: Words) -> tuple[str, float]:
    if term in words.single:
        return words.single[term]
    parts = tuple(term.split(" "))
    return next((category, weight) for known, category, weight in words.phrases[parts[0]] if known == parts)


def chunks(text: str, size: int = 60) -> list[str]:
    """Cut a text into pieces of about `size` words, folded to letters and single spaces, as the model reads it."""
    words = re.sub(r"[^a-z' ]+", " ", fold(text)).split()
    return [" ".join(words[at : at + size]) for at in range(0, max(1, len(words) - size // 3), size)]


Example = tuple[bool, tuple[str, ...]]
"""Whether a chunk is unsafe by the rules, and its variants for training."""


def examples(
    hit: Sequence[str], clean: Sequence[str], words: Words, draw: random.Random, negatives: int = 4
) -> list[Example]:
    """Label the chunks of rule-hit and of clean documents; at most `negatives` clean chunks to one that is hit."""
    found: list[Example] = []
    for chunk in (chunk for text in hit for chunk in chunks(text)):
        terms = _count(chunk, words, disguised=False)
        if sum(_term(term, words)[1] * count for term, count in terms.items()) >= 1:
            blank = [re.escape(term) for term in sorted(terms) if draw.random() < 0.5]
            blanked = re.sub(rf"\b(?:{'|'.join(blank)})\b", "", chunk) if blank else chunk
            found.append((True, (chunk, " ".join(blanked.split()))))
    spare: list[Example] = []
    for text in draw.sample(clean, min(len(clean), negatives * len(found))):
        pieces = [chunk for chunk in chunks(text) if chunk]
        spare += [(False, (chunk,)) for chunk in draw.sample(pieces, min(3, len(pieces)))]
    found += draw.sample(spare, min(len(spare), negatives * len(found)))
    draw.shuffle(found)
    return found


@dataclass(frozen=True)
class Agreement:
    """The model against the rules' labels on the fifth of the chunks that it was not trained on."""

    chunks: int
    accuracy: float
    unsafe_found: float
    safe_kept: float


class SafetyModel:
    """The learned classifier; probabilities are those of a chunk of about 60 words being unsafe."""

    def __init__(self, path: Path) -> None:
        self._model = fasttext.load_model(str(path))

    def probabilities(self, pieces: Sequence[str]) -> list[float]:
        """Return each chunk's probability to be unsafe."""
        labels, values = self._model.predict(list(pieces), k=2)
        return [
            min(1.0, float(dict(zip(names, row, strict=True)).get("__label__unsafe", 0.0)))
            for names, row in zip(labels, values, strict=True)
        ]

    def score(self, text: str) -> tuple[float, str]:
        """Return a document's mean probability over its three worst chunks, and the beginning of the worst."""
        pieces = [piece for piece in chunks(text[:60_000]) if piece]
        if not pieces:
            return 0.0, ""
        worst = sorted(zip(self.probabilities(pieces), pieces, strict=True), reverse=True)[:3]
        return sum(value for value, _ in worst) / len(worst), worst[0][1][:60]


def _fit(labelled: Sequence[Example], folder: Path, seed: int) -> Path:
    lines = [f"__label__{'unsafe' if bad else 'safe'} {text}\n" for bad, variants in labelled for text in variants]
    source, path = folder / "safety.txt", folder / "safety.bin"
    source.write_text("".join(lines), "utf-8")
    model = fasttext.train_supervised(
        str(source),
        dim=16,
        epoch=12,
        lr=0.4,
        minn=2,
        maxn=5,
        wordNgrams=2,
        bucket=50_000,
        thread=1,
        seed=seed,
        verbose=0,
    )
    model.save_model(str(path))
    return path


def train(labelled: Sequence[Example], folder: Path, seed: int) -> tuple[Path, Agreement]:
    """Learn the classifier twice: on four fifths to measure it, then on everything; one thread, so bytes repeat."""
    cut = len(labelled) // 5
    model = SafetyModel(_fit(labelled[cut:], folder, seed))
    truth = [bad for bad, _ in labelled[:cut]]
    said = [value >= 0.5 for value in model.probabilities([variants[0] for _, variants in labelled[:cut]])]
    right = Counter((bad, bad == guess) for bad, guess in zip(truth, said, strict=True))
    measured = Agreement(
        cut,
        round((right[True, True] + right[False, True]) / max(1, cut), 4),
        round(right[True, True] / max(1, sum(truth)), 4),
        round(right[False, True] / max(1, cut - sum(truth)), 4),
    )
    return _fit(labelled, folder, seed), measured
