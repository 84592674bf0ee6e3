"""A reader of short sums in plain words: what a writer model posed is kept where this program can solve it too.

It reads what it knows, whole, or nothing: sums (`What is 8 plus 3?`), sums turned round (`I add 3 to a number and get
11. What was the number?`), and stories of one owner and one thing that comes and goes (`Sam has 8 books, buys 3 more
and gives away 2. How many books are left?`).
"""

import re
from fractions import Fraction

GAINS = (
    "gets? on|gets?|buys?|finds?|receives?|picks?|collects?|earns?|adds?|wins?|bakes?|makes?|come back|comes? in|join|"
    "arrive|land|(?:is|are) given|(?:is|are) added"
)
LOSSES = (
    "gets? off|loses?|sells?|gives? away|gives?|eats?|spends?|uses?|throws? away|breaks?|drops?|fly away|leaves?|"
    "go away|run away|(?:is|are) (?:eaten|sold|lost|taken away|used)"
)
_N = r"(\d+)"
_OPENING = re.compile(rf"(there|[a-z]+(?: [a-z]+)?) (?:are|were|has|have|had) {_N} ((?:[a-z]+ )?[a-z]+)")
_JOINT = re.compile(r",? and then |, then |,? and |, ")
_SUMS = (
    (
        rf"(?:what is|what's|how much is) (?:the sum of )?{_N} (?:plus|and|\+|added to) {_N}(?: together| in all)?\?",
        lambda a, b: a + b,
    ),
    (rf"(?:what is|what's|how much is) {_N} (?:minus|-|less) {_N}\?", lambda a, b: a - b),
    (rf"(?:what is|what's) the difference (?:between|of) {_N} and {_N}\?", lambda a, b: abs(a - b)),
    # one of the two is asked for, the result given
    (rf"i add {_N} to a number and get {_N}\. what (?:was|is) the number\?", lambda b, c: c - b),
    (rf"i (?:take|subtract) {_N} from a number and get {_N}\. what (?:was|is) the number\?", lambda b, c: c + b),
    (rf"i (?:take|subtract) a number from {_N} and get {_N}\. what (?:was|is) the number\?", lambda a, c: a - c),
    (rf"i add a number to {_N} and get {_N}\. what (?:was|is) the number\?", lambda a, c: c - a),
    (rf"what number plus {_N} (?:is|gives|makes) {_N}\?", lambda b, c: c - b),
    (rf"what number minus {_N} (?:is|gives|makes) {_N}\?", lambda b, c: c + b),
    (rf"{_N} plus what number (?:is|gives|makes) {_N}\?", lambda a, c: c - a),
    (rf"{_N} minus what number (?:is|gives|makes) {_N}\?", lambda a, c: a - c),
)


def read(text: str) -> Fraction | None:
    """The answer to a problem, or None where it is not of a kind that is known."""
    said = " ".join(text.casefold().replace("’", "'").split())
    for pattern, solve in _SUMS:
        if found := re.fullmatch(pattern, said):
            return Fraction(solve(*map(int, found.groups())))
    return _story(said)


def _story(said: str) -> Fraction | None:
    """Read a story from its opening, change by change, to its question; None where any word is left over."""
    *told, question = re.split(r"(?<=\.) ", said)
    clauses = [clause for sentence in told for clause in _JOINT.split(sentence.removesuffix("."))]
    opening = _OPENING.fullmatch(clauses[0]) if clauses else None
    if not opening or len(clauses) < 2:
        return None
    owner, thing = opening[1], opening[3]
    total = int(opening[2])
    for clause in clauses[1:]:
        noun = thing.split()[-1]
        if other := re.fullmatch(rf"{_N} [a-z]+ {noun}", clause):  # 6 red cars and 2 blue cars: asked for cars
            total, thing = total + int(other[1]), noun
            continue
        change = _change(clause, owner, thing)
        if change is None or total + change < 0:
            return None
        total += change
    return Fraction(total) if _asks(question, owner, thing) else None


def _change(clause: str, owner: str, thing: str) -> int | None:
    """By how much a clause changes the owner's number of the thing: `buys 3 more`, `4 of them fly away`."""
    who = "(?:)" if owner == "there" else rf"(?:(?:then )?(?:he|she|they|it|i|you|{owner})(?: then)? )?"
    what = rf"(?: more| others| of them)?(?: {thing}| {thing.split()[-1]})?"
    for verbs, sign in ((GAINS, 1), (LOSSES, -1)):
        for form in (rf"{who}(?:{verbs}) {_N}{what}", rf"(?:then )?{_N}{what} (?:{verbs})"):
            if found := re.fullmatch(form, clause):
                return sign * int(found[1])
    return None


def _asks(question: str, owner: str, thing: str) -> bool:
    """Whether a question is for the number that the story ends with."""
    what = rf"how many (?:{thing} |{thing.split()[-1]} )?"
    end = "(?:left|now|in all|altogether|in total|have|have left|have now|have in all|have altogether|have in total)"
    place = "(?:there|left|there now|left now|there in all|on it|in it)"
    forms = (
        rf"{what}now\?",
        rf"{what}(?:do|does) (?:he|she|they|it|i|you|{owner}) {end}\?",
        rf"{what}are {place}\?",
        rf"{what}are (?:left )?(?:on|in|with) {owner}\?",
        rf"{what}are (?:on|in) the {owner.split()[-1]}(?: now)?\?",
    )
    return any(re.fullmatch(form, question) for form in forms)
