import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.scoring.checks import faithful
from openafm.scoring.written import CONTRACTION, edit_score, edits, field_score, invented, tone_score
from openafm.synthesis.notices import draw
from openafm.synthesis.ready import rules
from openafm.synthesis.ready.tasks import Proofreading, Summaries, Tone, ready_example

TEXT = (
    "Dear Anna, I am sorry that the meeting of Friday cannot take place. However, it is only moved, and their room "
    "stays as it was."
)
KNOWN = {"id": "x", "source": "x"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_mistakes_are_in_the_text_and_can_all_be_undone(seed):
    faulty = rules.mistakes(TEXT, random.Random(seed))
    assert faulty != TEXT and 0.5 < len(faulty.split()) / len(TEXT.split()) < 1.5
    asked, right = rules.by_rule(Proofreading(text=TEXT), str(seed))
    assert right == TEXT and edits(asked.text, TEXT)
    example = ready_example("proofreading", asked, KNOWN, right, "synthetic", "rule")
    assert edit_score(example, TEXT) == 1.0 and edit_score(example, asked.text) == 0.0


def test_every_kind_of_mistake_happens():
    rng = random.Random(0)
    words = TEXT.split() * 3
    made = {spoil.__name__ for spoil in rules.SPOILS for word in words if spoil(word, rng) not in (None, word)}
    assert made == {spoil.__name__ for spoil in rules.SPOILS}


def test_tone_both_ways():
    assert rules.casual("Do not worry. It is fine, therefore I cannot complain.") == (
        "Don't worry. It's fine, so I can't complain."
    )
    assert rules.casual("nothing to change") == "nothing to change"
    for tone, answer in (("casual", rules.casual(TEXT)), ("formal", TEXT)):
        asked, right = rules.by_rule(Tone(text=TEXT, tone=tone), "0")
        assert right == answer and asked.tone == tone and asked.text != right
        assert tone_score(ready_example("tone", asked, KNOWN, right, "synthetic", "rule"), right) == 1.0
    assert not CONTRACTION.search(TEXT) and rules.by_rule(Tone(text=TEXT, tone="concise"), "0") is None


def test_made_summaries_say_what_their_texts_say():
    rows = rules.made_summaries(60, 1)
    assert rows == rules.made_summaries(60, 1) and rows != rules.made_summaries(60, 2)
    layouts = {name for row, _ in rows for name in ("mails", "chat", "notifications", "text") if getattr(row, name)}
    assert layouts == {"mails", "chat", "notifications", "text"}
    for row, answer in rows:
        assert isinstance(row, Summaries) and not invented(row.laid_out(), answer.removeprefix("Urgent: "))
        assert faithful(row.laid_out(), answer) > 0.3
        assert answer.startswith("Urgent: ") == ("(urgent)" in row.laid_out())


def test_made_tags_are_what_the_text_tells():
    for row, answer in rules.made_tags(60, 1):
        told = json.loads(answer)
        values = [value for name, held in told.items() if name != "kind" for value in held]
        assert all(value in row.laid_out() for value in values)
        assert field_score({"check": row.check(answer)}, answer) == 1.0
    notice = draw(random.Random(3))
    assert set(rules.fields(notice)) == {"kind", "people", "days", "times", "places", "amounts"}
