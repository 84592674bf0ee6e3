"""Data of ready tasks made by rule, whose answers are right by construction: no model and no person wrote them.

Proofreading: mistakes put into right text. Tone: contractions and the words of letters, exchanged. Summaries and tags:
messages drawn from `notices`, laid out as mails, chats and bundles of notifications.
"""

import json
import random
import re
from collections.abc import Callable

from openafm.synthesis.notices import DAYS, Notice, draw
from openafm.synthesis.ready.layouts import Mail, Notification, Said
from openafm.synthesis.ready.tasks import Proofreading, Row, Summaries, Tags, Tone

CONFUSED = (
    ("their", "there"), ("its", "it's"), ("your", "you're"), ("then", "than"), ("to", "too"), ("were", "where"),
    ("affect", "effect"), ("lose", "loose"), ("who's", "whose"), ("quite", "quiet"), ("accept", "except"),
)  # fmt: skip
"""Words that writers take for each other."""
LONG_FORMS = {
    "do not": "don't", "does not": "doesn't", "did not": "didn't", "cannot": "can't", "can not": "can't",
    "will not": "won't", "is not": "isn't", "are not": "aren't", "was not": "wasn't", "were not": "weren't",
    "have not": "haven't", "has not": "hasn't", "had not": "hadn't", "should not": "shouldn't", "would not": "wouldn't",
    "could not": "couldn't", "I am": "I'm", "it is": "it's", "that is": "that's", "there is": "there's",
    "we are": "we're", "you are": "you're", "they are": "they're", "I have": "I've", "we have": "we've",
    "you have": "you've", "they have": "they've", "I will": "I'll", "we will": "we'll", "you will": "you'll",
    "it will": "it'll", "let us": "let's", "Dear": "Hi", "Kind regards": "Cheers", "Yours sincerely": "Cheers",
    "therefore": "so", "however": "but", "in order to": "to", "purchase": "buy", "assist": "help", "require": "need",
    "obtain": "get", "additional": "more", "regarding": "about",
}  # fmt: skip
"""What formal writing says, and what casual writing says for it."""
APPS = ("Mail", "Messages", "Calendar", "Notes", "Reminders")
URGENT = ("bill", "cancelled")
"""Kinds of notices that are marked as urgent in bundles."""
Made = tuple[Row, str]
"""What is asked, and the answer."""


# ---------------------------------------------------------------- proofreading


def mistakes(text: str, rng: random.Random, share: float = 0.08) -> str:
    """Put a mistake into about `share` of a text's words, at least one: a typist's, or a writer's."""
    words = text.split(" ")
    left = max(1, round(share * len(words)))
    for place in rng.sample(range(len(words)), len(words)):
        spoiled = [spoil(words[place], rng) for spoil in SPOILS]
        options = [changed for changed in spoiled if changed not in (None, words[place])]
        if options:
            words[place], left = rng.choice(options) or "", left - 1
        if not left:
            break
    return " ".join(word for word in words if word)


def _swapped(word: str, rng: random.Random) -> str | None:
    places = [
        i for i in range(1, len(word) - 2) if word[i].isalpha() and word[i + 1].isalpha() and word[i] != word[i + 1]
    ]
    if not places:
        return None
    i = rng.choice(places)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _dropped(word: str, rng: random.Random) -> str | None:
    places = [i for i in range(1, len(word) - 1) if word[i].isalpha()]
    return None if len(word) < 4 or not places else word[: (i := rng.choice(places))] + word[i + 1 :]


def _doubled_letter(word: str, rng: random.Random) -> str | None:
    places = [i for i in range(1, len(word)) if word[i].isalpha()]
    return None if len(word) < 4 or not places else word[: (i := rng.choice(places))] + word[i] + word[i:]


def _confused(word: str, rng: random.Random) -> str | None:
    for one, other in CONFUSED:
        if word in (one, other):
            return other if word == one else one
    return None


def _doubled_word(word: str, rng: random.Random) -> str | None:
    return f"{word} {word}" if word.isalpha() and word.islower() and len(word) < 5 else None


def _lower(word: str, rng: random.Random) -> str | None:
    return word[0].lower() + word[1:] if word[:1].isupper() and word[1:].islower() else None


def _article(word: str, rng: random.Random) -> str | None:
    """An article is left out or is the other one."""
    return rng.choice({"a": ("an", ""), "an": ("a", ""), "the": ("",)}[word]) if word in ("a", "an", "the") else None


def _comma(word: str, rng: random.Random) -> str | None:
    return word[:-1] if word.endswith((",", ".")) and len(word) > 2 else None


Spoil = Callable[[str, random.Random], str | None]
SPOILS: tuple[Spoil, ...] = (
    _swapped, _dropped, _doubled_letter, _confused, _doubled_word, _lower, _article, _comma,
)  # fmt: skip
"""Each makes one kind of mistake in a word, or None where it cannot; an empty text leaves the word out."""


# ---------------------------------------------------------------- tone


SHORT_FORMS = {formal.casefold(): short for formal, short in LONG_FORMS.items()}
FORMAL = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, LONG_FORMS), key=len, reverse=True))})\b(?!['’])", re.I)


def casual(text: str) -> str:
    """The text with contractions and casual words in the place of formal ones, capitals kept."""
    return FORMAL.sub(lambda match: _like(match[0], SHORT_FORMS[match[0].casefold()]), text)


def _like(found: str, instead: str) -> str:
    """With a capital where the replaced words had one."""
    return instead[0].upper() + instead[1:] if found[0].isupper() else instead


# ---------------------------------------------------------------- answers to a line


def by_rule(row: Row, seed: str) -> Made | None:
    """Answer a line that has text alone; None where its task, or its tone, has no rule.

    The text of a line is taken to be right (proofreading), and to be formal (tone): it is the answer where the task is
    to correct it or to make it formal.
    """
    if isinstance(row, Proofreading):
        right = row.laid_out()
        return Proofreading(text=mistakes(right, random.Random(seed))), right
    if isinstance(row, Tone) and row.tone == "casual":
        return row, casual(row.laid_out())
    if isinstance(row, Tone) and row.tone == "formal":
        right = row.laid_out()
        return Tone(text=casual(right), tone="formal"), right
    return None


# ---------------------------------------------------------------- made from nothing


def _layouts(notice: Notice, rng: random.Random) -> Row:
    """A notice as a mail, in a chat, or as a text."""
    sender = notice.facts.get("other") or notice.facts.get("name") or "Reception"
    form = rng.randrange(3)
    if form == 0:
        date = f"{rng.choice(DAYS)[:3]}, {rng.randint(8, 18)}:05"
        return Summaries(mails=(Mail.model_validate({"from": sender, "date": date, "body": notice.text}),))
    if form == 1:
        thanks = {"from": "Me", "text": rng.choice(("Thanks, noted.", "All right!", "Good to know."))}
        said = {"from": sender, "time": f"{rng.randint(8, 18)}:12", "text": notice.text}
        return Summaries(chat=(Said.model_validate(said), Said.model_validate(thanks)))
    return Summaries(text=notice.text)


def _bundle(rng: random.Random) -> Made:
    """Two to four notices as notifications; the summary tells them in the bundle's order, the urgent ones first."""
    drawn = [draw(rng) for _ in range(rng.randint(2, 3))]
    drawn.sort(key=lambda notice: notice.kind not in URGENT)
    parts = tuple(
        Notification(
            app=rng.choice(APPS), title=notice.facts.get("name", ""), body=notice.text, time=f"{rng.randint(8, 18)}:30",
            urgency="critical" if notice.kind in URGENT else "normal",
        )
        for notice in drawn
    )  # fmt: skip
    told = "; ".join(notice.summary for notice in drawn)
    return Summaries(notifications=parts), f"Urgent: {told}" if drawn[0].kind in URGENT else told


def made_summaries(count: int, seed: int) -> list[Made]:
    """Mails, chats, texts, and every third time a bundle of notifications."""
    rng = random.Random(f"{seed}/ready/summaries")
    rows: list[Made] = []
    for number in range(count):
        notice = draw(rng)
        rows.append(_bundle(rng) if number % 3 == 0 else (_layouts(notice, rng), notice.summary))
    return rows


def fields(notice: Notice) -> dict[str, str | list[str]]:
    """What a notice tells, by the fields of the task tags."""
    told = notice.facts

    def pick(*names: str) -> list[str]:
        """The facts of these names, in the order in which they are told."""
        return [told[name] for name in told if name in names]

    return {
        "kind": notice.kind,
        "people": pick("name", "other"),
        "days": pick("day", "later"),
        "times": pick("hour"),
        "places": pick("place"),
        "amounts": pick("money", "number"),
    }


def made_tags(count: int, seed: int) -> list[Made]:
    """Notices with their fields as JSON."""
    rng = random.Random(f"{seed}/ready/tags")
    drawn = (draw(rng) for _ in range(count))
    return [(Tags(text=notice.text), json.dumps(fields(notice))) for notice in drawn]


MADE: dict[str, Callable[[int, int], list[Made]]] = {"summaries": made_summaries, "tags": made_tags}
"""Task to what makes so many rows of it from a seed."""
