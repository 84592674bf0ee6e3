"""Reading problems and requests in a writer model's own words, for `reverify`: apart from the makers' own readers.

A story is read piece by piece: the numbers in order, each added or taken by the one word of change beside it. Hidden
numbers are solved by sympy. A request for a short tool is held against the words that name it and the order in which
it names its arguments. What has a word too many for this is left unread.
"""

import re
from collections.abc import Callable
from typing import Any

import sympy

MORE = set(
    "buys buy gets get finds receives picks collects earns adds wins bakes makes come comes join arrive land "
    "given added".split()
)
LESS = set(
    "loses sells gives eats spends uses throws breaks drops fly leave leaves go run eaten sold lost taken "
    "used off".split()
)
PEOPLE = set("he she they it i you".split())
PLAIN = PEOPLE | set(
    "a an the there are were has have had is and then more others of them away back on in out up".split()
)
ASKING = PEOPLE | set("how many do does are is there left now in all altogether total have has on the with".split())
NUMBER = r"(?:\d+|a number|what number)"


def solved(prompt: str) -> Any:
    """What the problem's answer is by its words, or None where they are not understood."""
    said = prompt.casefold().strip()
    return next((value for read in (equation, direct, story) if (value := read(said)) is not None), None)


def equation(said: str) -> Any:
    """`I take 3 from a number and get 8. What was the number?`, `What number plus 3 is 8?`: solved for x."""
    asked = re.fullmatch(
        rf"i (add|take|subtract) ({NUMBER}) (?:to|from) ({NUMBER}) and get (\d+)\. what (?:was|is) the number\?", said
    )
    if asked:
        how, one, other, result = asked.groups()
        sign = 1 if how == "add" else -1
        return _unknown(lambda x: _value(other, x) + sign * _value(one, x) - int(result), (one, other))
    asked = re.fullmatch(rf"({NUMBER}) (plus|minus) ({NUMBER}) (?:is|gives|makes) (\d+)\?", said)
    if asked:
        one, how, other, result = asked.groups()
        sign = 1 if how == "plus" else -1
        return _unknown(lambda x: _value(one, x) + sign * _value(other, x) - int(result), (one, other))
    return None


def _value(text: str, x: sympy.Symbol) -> Any:
    return int(text) if text.isdigit() else x


def _unknown(left: Callable[[sympy.Symbol], Any], parts: tuple[str, str]) -> Any:
    x = sympy.Symbol("x")
    return sympy.solve(left(x), x)[0] if sum(not part.isdigit() for part in parts) == 1 else None


def direct(said: str) -> Any:
    """`What is the sum of 8 and 3?` and its like."""
    asked = re.fullmatch(r"(?:what is|what's|how much is) (.+?)(?: together)?\?", said)
    spoken = asked[1] if asked else ""
    if between := re.fullmatch(r"the (sum|difference) (?:of|between) (\d+) and (\d+)", spoken):
        a, b = int(between[2]), int(between[3])
        return a + b if between[1] == "sum" else abs(a - b)
    if plain := re.fullmatch(r"(?:the sum of )?(\d+) (plus|and|added to|\+|minus|less|-) (\d+)", spoken):
        a, b = int(plain[1]), int(plain[3])
        return a - b if plain[2] in ("minus", "less", "-") else a + b
    return None


def story(said: str) -> int | None:
    """Numbers that come and go, in order; None where a word is neither of change, nor plain, nor of the first piece."""
    *told, question = re.split(r"(?<=\.) ", said)
    pieces = [words for text in told for part in re.split(r"[.,]| and | then ", text) if (words := part.split())]
    known = {word for word in pieces[0] if not word.isdigit()} if pieces else set()
    asked = re.findall(r"[a-z]+", question)
    if len(pieces) < 2 or asked[:2] != ["how", "many"] or not set(asked) <= ASKING | known:
        return None
    total = 0
    for place, words in enumerate(pieces):
        numbers, rest = [int(word) for word in words if word.isdigit()], {w for w in words if not w.isdigit()}
        change = {1: rest & MORE, -1: rest & LESS}
        if len(numbers) != 1:
            return None
        if place and not change[1] and not change[-1] and words[-1] == pieces[0][-1] and words[-1] == asked[2]:
            total += numbers[0]  # 6 red cars and 2 blue cars: asked for cars
            continue
        if not rest <= known | MORE | LESS | PLAIN or (place and bool(change[1]) == bool(change[-1] - {"off"})):
            return None
        total += numbers[0] if not place or not change[-1] else -numbers[0]
    return total


REQUESTS = {
    "add": r"\b(?:add|plus|sum|total|together|added)\b|how much (?:is|are) \d+ and \d+",
    "subtract": r"\b(?:subtract|subtracted|take|taken|deduct|remove|minus|less)\b",
    "multiply": r"\b(?:multiply|times|multiplied|product)\b",
    "larger": r"\b(?:larger|bigger|greater|higher|largest|biggest|highest|maximum|more)\b",
    "upper": r"\b(?:capitals?|upper ?case|upper-case)\b",
    "reverse": r"\b(?:backwards?|reverse|reversed|other way a?round)\b",
    "length": r"\b(?:letters|characters|long|length)\b",
    "day_after": r"\bday\b.*\b(?:after|from|past|later)\b",
    "to_minutes": r"\bminutes\b.*\bhours?\b|\bhours?\b.*\bminutes\b",
    "to_meters": r"\bmet(?:er|re)s\b.*\b(?:km|kilomet)|\b(?:km|kilomet\w+)\b.*\bmet(?:er|re)s\b",
}


OWN = set(
    "please can could you would will i need want like to tell me what is are the word text letters letter "
    "characters how many in into with all capital capitals upper uppercase case write put make turn change "
    "convert set spell type print say read out backwards backward reverse reversed of order has have does do "
    "there contain count find number length long look it for let us give show other way round around a".split()
)


def call(request: str) -> tuple[str, list[str]] | None:
    """The one tool that a request's words name, and the values it must be called with, in the tool's order."""
    said = re.sub(r"[\"'`“”‘’?.,!]", "", request.casefold())
    named = [tool for tool, words in REQUESTS.items() if re.search(words, said)]
    numbers = re.findall(r"\d+", said)
    if "larger" in named and "subtract" not in named:
        named = ["larger"]
    if len(named) != 1:
        return None
    (tool,) = named
    if tool in ("add", "subtract", "multiply", "larger") and len(numbers) == 2:
        turned = tool == "subtract" and re.search(rf"{numbers[0]}\b.*\bfrom\b.*{numbers[1]}", said)
        return tool, numbers[::-1] if turned else numbers
    if tool in ("to_minutes", "to_meters") and len(numbers) == 1:
        return tool, numbers
    if tool == "day_after" and len(numbers) == 1 and (day := re.search(r"\b(?:after|from|past|than) (\w+day)\b", said)):
        return tool, [day[1].capitalize(), numbers[0]]
    about = [word for word in said.split() if word not in OWN]  # a text is the one word that is none of the request's
    if tool in ("upper", "reverse", "length") and len(about) == 1 and not numbers:
        return tool, about
    return None
