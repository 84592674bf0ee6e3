"""Whether a request in a model's own words asks for one given call of a small tool: phrase, arguments and their order.

A request that merely names the arguments, or the tool's verb about other things, asks for anything: "How much can I
subtract from 8 and 2?" is no `subtract(8, 2)`. Each tool has its phrases (`intents.yaml`), and a request is one of them
with no more around it than politeness and the words that begin a question.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

_KILOMETERS = "(?:km|kms|kilometers?|kilometres?)"
_FILLER = r"(?:the )?(?:word |text |string |number |numbers )?"
_POLITE = (
    r"(?:please |(?:can|could|would|will) you |i (?:need|want|would like) (?:you )?to |(?:tell|show|give) me |"
    r"help me (?:to )?|let us |let's |hey,? |hello,? |so,? |now,? )*"
)
_BEGIN = (
    r"(?:(?:what|whats|how much|how many|which|calculate|compute|find|work out|get|count|check|determine|convert)"
    r"(?: (?:is|are|was|do|does|you|i|we|get|would|will|be|the|answer|result|number|one|makes?|if|when|of|to|a))* )?"
)
_TAIL = r"(?:,? please| for me| now| in total| together| altogether| have| has| contain| there| in it| is it)*"


@lru_cache(maxsize=1)
def phrases() -> dict[str, list[str]]:
    """The expressions of each tool."""
    found: dict[str, list[str]] = yaml.safe_load((Path(__file__).parent / "intents.yaml").read_text())
    return found


def asks_for(request: str, tool: str, arguments: dict[str, Any]) -> bool:
    """Whether a request, whole, asks for `tool` with these arguments."""
    said = " ".join(re.sub(r"[\"'`“”‘’]", "", request.casefold()).split())
    return any(re.fullmatch(f"{_POLITE}{_BEGIN}{phrase}{_TAIL}[.?!]*", said) for phrase in _filled(tool, arguments))


def _filled(tool: str, arguments: dict[str, Any]) -> Iterator[str]:
    """The tool's phrases with the values in their places, the two of `{x}` and `{y}` in both orders."""
    values = {name: _FILLER + re.escape(str(value).casefold()) for name, value in arguments.items()}
    for phrase in phrases()[tool]:
        for x, y in permutations(values.values(), 2) if "{x}" in phrase else [("", "")]:
            yield phrase.format(**values, x=x, y=y, kilometers=_KILOMETERS)
