import mailbox
from email.message import EmailMessage

import pytest

from openafm.synthesis.ready.mailbox import rows


def message(number, text, answers=None, **heads):
    mail = EmailMessage()
    mail["From"], mail["Subject"] = f"Pat {number} <p{number}@x.example>", "=?utf-8?q?Gr=C3=BC=C3=9Fe?="
    mail["Date"], mail["Message-ID"] = f"Mon, 0{number} May 2021 10:00:00 +0000", f"<{number}@x>"
    if answers is not None:
        mail["In-Reply-To"], mail["References"] = f"<{answers}@x>", f"<{answers}@x>"
    mail.set_content(text)
    return mail


@pytest.fixture
def box(tmp_path):
    made = mailbox.mbox(str(tmp_path / "in.mbox"))
    texts = [(3, "Fine.\n\nPat 1 wrote:\n> Lunch?\n", 1), (1, "Lunch?", None), (2, "Alone.", None)]
    for number, text, answers in texts:
        made.add(message(number, text, answers))
    html = EmailMessage()
    html.set_content("<p>no plain text</p>", subtype="html")
    made.add(html)
    made.close()
    return tmp_path / "in.mbox"


def test_threads_and_replies(box):
    threads = [row for row, _ in rows(box, "summaries")]
    assert [[mail["body"] for mail in thread["mails"]] for thread in threads] == [
        ["Lunch?", "Fine.\n\nPat 1 wrote:\n> Lunch?"], ["Alone."],
    ]  # fmt: skip
    assert threads[0]["mails"][0]["subject"] == "Grüße" and threads[0]["mails"][0]["from"].startswith("Pat 1")
    ((reply, place),) = rows(box, "replies")
    assert reply["answer"] == "Fine." and len(reply["mails"]) == 1 and place == f"{box}, thread 1"


def test_what_an_mbox_cannot_give(box, tmp_path):
    with pytest.raises(ValueError, match="JSON Lines file for tags"):
        rows(box, "tags")
    (tmp_path / "none.mbox").write_text("no mails here\n")
    with pytest.raises(ValueError, match="no mail with a plain text"):
        rows(tmp_path / "none.mbox", "summaries")
