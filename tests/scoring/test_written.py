import json

import pytest

from openafm.scoring.written import SCORES, edit_score, edits, field_score, invented, reply_score, tone_score

TEXT = "Anna moved the meeting of PyTorch users to Friday at 10:30. Two people cannot come."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The meeting moves to Friday", []),
        ("Meeting moves to 10:30 on Friday, says Anna", []),
        ("meeting of 2 people", []),
        ("PyTorch users meet with Bob", ["Bob"]),
        ("moved to 11:30", ["11:30"]),
        ("Anna's meeting moves", []),
        ("NumPy users meet Friday", ["NumPy"]),
        ("Sunday is fine. Really, Peter?", ["Peter"]),
    ],
)
def test_names_and_numbers_that_the_source_lacks(text, found):
    assert invented(TEXT, text) == found


def correction(faulty, right):
    return {"answer": right, "check": {"kind": "edits", "source": faulty}}


def test_corrections_weigh_precision_double():
    example = correction("he go to teh school", "he goes to the school")
    assert edits("a b c", "a x c d") == {(1, 2, ("x",)): 1, (3, 3, ("d",)): 1}
    assert edit_score(example, "he goes to the school") == 1.0
    assert edit_score(example, "he go to teh school") == 0.0
    # one of two right, nothing wrong: P 1, R 1/2; then one wrong beside it: P 1/2, R 1/2
    assert edit_score(example, "he goes to teh school") == pytest.approx(1.25 * 0.5 / (0.25 + 0.5))
    assert edit_score(example, "he goes to teh schools") == pytest.approx(0.5)
    assert edit_score(correction("all right", "all right"), "all right") == 1.0
    assert edit_score(correction("all right", "all right"), "all write") == 0.0


def test_fields_are_compared_as_pairs():
    example = {"check": {"kind": "fields", "fields": {"kind": "bill", "days": ["Monday", "Friday"], "people": []}}}
    assert field_score(example, json.dumps(example["check"]["fields"])) == 1.0
    assert field_score(example, '{"kind": "BILL", "days": ["Friday"]}') == pytest.approx(2 * 2 / 5)
    assert field_score(example, "no JSON") == field_score(example, "[1]") == field_score(example, "3") == 0.0


def test_tone_and_reply():
    formal = {"answer": "I cannot come on Friday.", "check": {"tone": "formal", "source": "I can't come on Friday."}}
    assert tone_score(formal, "I cannot come on Friday.") == 1.0
    assert tone_score(formal, "I can't come on Friday.") == tone_score(formal, "I am afraid not.") == 0.0
    casual = {"answer": "I can't come.", "check": {"tone": "casual", "source": "I cannot come."}}
    assert tone_score(casual, "I can't come.") == 1.0 and tone_score(casual, "I cannot come.") == 0.0
    assert tone_score(casual, "I can't come, Bob.") == 0.0  # a name that nobody mentioned
    reply = {"check": {"kind": "reply", "source": "From: Ann\n\nLunch on Friday?", "max_words": 8}}
    assert reply_score(reply, "Yes, Friday is fine.\nAnn") == 1.0
    assert reply_score(reply, "Yes, Sunday is fine, Friday not") == reply_score(reply, "Yes") == 0.0
    assert reply_score(reply, "Friday is fine, and then we could also") == reply_score(reply, "Friday is fine,") == 0.0


def test_every_score_has_a_name():
    assert set(SCORES) == {"edits", "fields", "tone", "reply"} and all(name for name, _ in SCORES.values())
