import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.synthesis.ready import layouts
from openafm.synthesis.ready.layouts import Mail, Notification, Said
from openafm.synthesis.ready.tasks import READY, Summaries, answer_text

QUOTED = (
    "I agree.\n\nOn Mon, 3 May 2021, Ann Lee <ann@x.example> wrote:\n> one\n> two\n> three\n> four\n> five\n-- \nBob\n"
)


def test_a_thread_as_a_reader_sees_it():
    mails = [
        Mail(sender="Ann Lee <ann@x.example>", subject="Lunch", date="Mon, 3 May 2021", body="one\ntwo\nthree"),
        Mail(sender="bob@y.example", subject="Re: Lunch", body=QUOTED),
    ]
    assert layouts.thread(mails, 60) == (
        "From: Ann Lee\nDate: Mon, 3 May 2021\nSubject: Lunch\n\none\ntwo\nthree\n\n---\n\n"
        "From: bob\nSubject: Re: Lunch\n\nI agree.\n\nOn Mon, 3 May 2021, Ann Lee <ann@x.example> wrote:\n"
        "> one\n> two\n> three\n> …"
    )
    assert layouts.unquoted(QUOTED) == "I agree."


def test_of_a_long_thread_the_newest_mails_stay():
    mails = [Mail(sender=f"p{i}", body=f"word{i} " * 50) for i in range(8)]
    laid = layouts.thread(mails, 100)
    assert "word7" in laid and "word0" not in laid and laid.index("word6") < laid.index("word7")
    assert laid.count("word7") >= 40


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=200), min_size=1, max_size=5), st.integers(8, 80))
def test_no_layout_is_much_longer_than_its_room(bodies, room):
    heads = 12  # From, Date, Subject with their values, and the ellipses
    thread = layouts.thread([Mail(sender="a", body=body) for body in bodies], room)
    chat = layouts.chat([Said(sender="a", text=body) for body in bodies], room)
    bundle = layouts.bundle([Notification(app="a", body=body) for body in bodies], room)
    assert len(chat.split()) <= room + 1 and len(bundle.split()) <= room + 1
    assert len(thread.split()) <= room + heads * len(bodies)


def test_notifications_urgent_ones_first():
    bundle = [
        Notification(app="Calendar", time="9:00", title="Lesson", body="in ten minutes", urgency="low"),
        Notification(app="Bank", title="Payment failed", urgency="critical"),
        Notification(app="Mail", body="Ann\nwrote"),
    ]
    assert layouts.bundle(bundle, 50).split("\n") == [
        "[Bank] (urgent) Payment failed", "[Mail] Ann wrote", "[Calendar, 9:00] Lesson: in ten minutes",
    ]  # fmt: skip


def test_a_chat_keeps_its_end():
    said = [Said(sender="Ann", time="9:01", text="first words here"), Said(sender="Bo", text="last")]
    assert layouts.chat(said, 50) == "Ann (9:01): first words here\nBo: last"
    assert layouts.chat(said, 4) == "Bo: last"


def test_a_summary_reads_one_layout():
    with pytest.raises(ValueError, match="one of mails, chat, notifications and text"):
        Summaries(text="x", chat=(Said(sender="a", text="b"),))
    with pytest.raises(ValueError, match="one of mails"):
        Summaries(text="  ")
    row = Summaries(mails=(Mail(sender="Ann", subject="S", body="Only this. And that."),))
    assert row.prompt() == "Sum up: From: Ann\nSubject: S\n\nOnly this. And that."
    assert row.check("x")["source"] == "Only this. And that."


def test_answers_of_tags_are_objects():
    assert answer_text("tags", {"kind": "bill", "days": []}) == '{"kind": "bill", "days": []}'
    for wrong in ("words", {"colour": "red"}, [1]):
        with pytest.raises(ValueError):
            answer_text("tags", wrong)
    with pytest.raises(ValueError, match="empty or no text"):
        answer_text("summaries", " ")
    assert set(READY) == {"summaries", "replies", "tone", "proofreading", "tags"}
