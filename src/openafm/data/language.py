"""The language a document is written in, by fastText's `lid.176` (Joulin et al. 2016); part of the `clean` step."""

import re
from pathlib import Path

import fasttext

MIN_LETTERS = 60
"""With fewer letters of prose there is nothing to go by."""
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|\$\$?[^$\n]{1,400}\$\$?|<[A-Z]+>|https?://\S+|[`|#*_\d]+", re.S)


def prose(text: str, characters: int = 2000) -> str:
    """Return the beginning of a text on one line without listings, formulas, placeholders, URLs and digits."""
    return " ".join(_NOT_PROSE.sub(" ", text[: 4 * characters]).split())[:characters]


class LanguageModel:
    """The identification model in a file; 176 languages, about 50 microseconds a document."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} is missing: `openafm fetch` brings the language model, or name another one")
        self._model = fasttext.load_model(str(path))

    def detect(self, text: str) -> tuple[str, float, float]:
        """Return (language code, its probability, the runner-up's); ("", 0.0, 0.0) when there is too little prose."""
        sample = prose(text)
        if sum(map(str.isalpha, sample)) < MIN_LETTERS:
            return "", 0.0, 0.0
        labels, probabilities = self._model.predict(sample, k=2)
        first, second = (min(1.0, float(value)) for value in [*probabilities, 0.0][:2])
        return labels[0].removeprefix("__label__"), first, second
