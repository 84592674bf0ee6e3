"""The labelling page in a real browser, by the keyboard alone, and what keeps it shut."""

import json
import re

import httpx
import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import expect
from tests.browser import WAIT, needs_chromium, watched
from tests.posttraining.conftest import examples, model  # noqa: F401
from tests.serving.conftest import serving
from typer.testing import CliRunner

from openafm import jsonl
from openafm.cli import app
from openafm.model.checkpoint import load_model
from openafm.posttraining.committee import RolloutsConfig, rollouts
from openafm.posttraining.labelling import Labels, LabelsConfig, Pair, labelled, labels, pairs_of_run
from openafm.posttraining.reward import RewardConfig, RewardModel, reward
from openafm.serving.labelling import Sitting, create_app
from openafm.stage import Context

PAIRS = [Pair(f"q{i}/x", "t", [{"role": "user", "content": f"Question {i}?"}], (f"a{i}", f"b{i}")) for i in range(4)]
GRADES = [[0, 1, 2, 0], [2, 2, 1, 1]]


def make(folder):
    """A context that writes into `folder`."""
    folder.mkdir()
    return Context(out=folder, scratch=folder.parent / f"{folder.name}-scratch", seed=0)


@pytest.fixture(scope="module")
def drawn(model, examples, tmp_path_factory):  # noqa: F811
    """A run with a step of real rollouts."""
    run = tmp_path_factory.mktemp("drawn")
    scorer = run / "reward"
    RewardModel(load_model(model)).save(scorer, tokenizer=model)
    config = RolloutsConfig(prompts=24, samples=3, max_tokens=6)
    rollouts(config, make(run / "rollouts"), members={"sft": model, "other": model}, reward=scorer, examples=examples)
    (run / "rollouts" / "manifest.json").write_text(json.dumps({"step": "rollouts", "stage": "rollouts"}))
    return run


@pytest.fixture
def sitting(tmp_path):
    book = Labels(tmp_path, "ada")
    yield Sitting(PAIRS, book, seed=0)
    book.close()


@pytest.fixture
def client(sitting):
    return TestClient(create_app(sitting), base_url="http://127.0.0.1")


def test_the_page_runs_nothing_but_its_own_script(client):
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src 'self'" in policy
    text = "".join(client.get(path).text for path in ("/", "/page.css", "/page.js"))
    assert "keydown" in text and "prefers-color-scheme" in text
    assert set(re.findall(r"https?://[^\s'\"]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_only_this_machine_may_ask(sitting, client):
    assert client.get("/state").status_code == 200
    elsewhere = TestClient(create_app(sitting), base_url="http://rebound.example")
    assert elsewhere.get("/state").status_code == 403
    assert client.post("/label", data={"id": "q0/x"}).status_code == 415  # what a form of another page could send


@pytest.mark.parametrize(
    "body",
    [{}, {"choice": 8}, {"choice": -1}, {"choice": "1"}, {"grades": [[0, 1, 2, 3], [0, 0, 0, 0]]}, {"grades": [[0]]},
     {"more": 1}],
)  # fmt: skip
def test_a_wrong_body_saves_nothing(client, sitting, body):
    whole = {"id": sitting.pending().id, "choice": 0, "grades": GRADES} | body
    if not body:
        whole.pop("grades")
    assert client.post("/label", json=whole).status_code == 400
    assert sitting.labels.current == {}


def test_each_choice_is_the_preference_it_names(client, sitting):
    """Of eight choices the first four prefer what is shown first, the outer ones most."""
    for choice, (strength, shown_first) in enumerate(
        [*((s, True) for s in (3, 2, 1, 0)), *((s, False) for s in range(4))]
    ):
        state = client.get("/state").json()
        first, second = state["pair"]["answers"]
        client.post("/label", json={"id": state["pair"]["id"], "choice": choice, "grades": GRADES})
        row = next(iter(sitting.labels.current.values()))
        assert (row["chosen"], row["rejected"]) == ((first, second) if shown_first else (second, first))
        assert row["strength"] == strength
        assert row["grades_chosen"] == GRADES[0 if shown_first else 1]
        assert row["grades_rejected"] == GRADES[1 if shown_first else 0]
        assert client.post("/undo", json={}).json()["pair"]["id"] == state["pair"]["id"]


def test_a_second_window_cannot_label_the_wrong_pair(client, sitting):
    first = client.get("/state").json()["pair"]["id"]
    assert client.post("/skip", json={"id": first}).json()["skipped"] == 1
    assert client.post("/label", json={"id": first, "choice": 0, "grades": GRADES}).status_code == 409


def test_sides_differ_between_labellers_and_not_between_visits(tmp_path):
    pairs = [Pair(f"p{i}", "t", [], ("a", "b")) for i in range(64)]
    books = [Labels(tmp_path, name) for name in ("ada", "bob")]
    ada, again, bob = ([Sitting(pairs, book, 0).swapped(p) for p in pairs] for book in (books[0], books[0], books[1]))
    assert ada == again != bob
    assert 16 < sum(ada) < 48
    for book in books:
        book.close()


@needs_chromium
def test_twenty_pairs_by_keyboard_feed_a_reward_model(drawn, model, browser, tmp_path):  # noqa: F811
    """Left: the shorter answer; grades: 1 for the longer one. Nothing but keys is pressed; the page is opened twice."""
    pairs = pairs_of_run(drawn, None, seed=0)
    assert len(pairs) >= 20
    book, asked = Labels(drawn, "ada"), []
    with serving(create_app(Sitting(pairs[:20], book, 0))) as url:
        page = watched(browser, url, asked)
        for number in range(20):
            expect(page.locator("#count")).to_have_text(f"{number + 1} of 20 · ada", timeout=WAIT)
            if number == 7:  # resumes where it was
                page.reload()
                expect(page.locator("#count")).to_have_text("8 of 20 · ada", timeout=WAIT)
            first, second = (len(text or "") for text in page.locator(".answer .text").all_text_contents())
            page.keyboard.press("2" if first <= second else "7")
            for key in ("3" if first <= second else "1", "1" if first <= second else "3") * 4:
                page.keyboard.press(key)
            if number == 3:  # a slip: the last label taken back, and given again
                expect(page.locator("#count")).to_have_text("5 of 20 · ada", timeout=WAIT)
                page.keyboard.press("Backspace")
                expect(page.locator("#count")).to_have_text("4 of 20 · ada", timeout=WAIT)
                page.keyboard.press("1")
                page.keyboard.press("Backspace")  # this one before it was saved
                page.keyboard.press("2" if first <= second else "7")
                for key in ("3" if first <= second else "1", "1" if first <= second else "3") * 4:
                    page.keyboard.press(key)
        expect(page.locator("#end")).to_have_text("All pairs are done", timeout=WAIT)
    book.close()
    assert not [line for line in asked if not line.startswith(url)]

    rows = labelled(drawn)
    assert len(rows) == 20 and {row["strength"] for row in rows} == {2}
    assert all(row["grades_chosen"] == [2] * 4 and row["grades_rejected"] == [0] * 4 for row in rows)
    shown = {
        text: text if text.strip() else "(an empty answer)" for row in rows for text in (row["chosen"], row["rejected"])
    }
    assert all(len(shown[row["chosen"]]) <= len(shown[row["rejected"]]) for row in rows)

    exported = tmp_path / "labels.jsonl"
    jsonl.write(exported, rows)
    people = make(tmp_path / "people")
    metrics = labels(LabelsConfig(data=str(exported)), people)
    assert metrics["train"]["pairs"] + metrics["heldout"]["pairs"] == 20
    judge = make(tmp_path / "judge")
    config = RewardConfig(epochs=4, pairs_per_batch=4, lr=0.01)
    assert reward(config, judge, model=model, preferences={"people": people.out})["pairs"] == metrics["train"]["pairs"]
    assert RewardModel.load(judge.out)


@needs_chromium
def test_the_page_fits_a_phone_in_the_dark_and_shows_texts_as_they_are(browser, tmp_path):
    hostile = "<img src=x onerror=alert(1)> " + "w" * 300
    pairs = [Pair("p", "t", [{"role": "system", "content": hostile}, *PAIRS[0].messages], (hostile, ""))]
    book, asked = Labels(tmp_path, "ada"), []
    with serving(create_app(Sitting(pairs, book, 0))) as url:
        page = watched(browser, url, asked, viewport={"width": 390, "height": 844}, color_scheme="dark")
        expect(page.locator(".answer")).to_have_count(2, timeout=WAIT)
        assert page.locator(".turn .text").first.text_content() == hostile
        assert page.evaluate("() => document.documentElement.scrollWidth") == 390
        page.click("#better [role=radio] >> nth=7")  # by touch too
        page.keyboard.press("s")
        expect(page.locator("#rest")).to_contain_text("0 labelled, 1 skipped", timeout=WAIT)
    book.close()
    assert not [line for line in asked if not line.startswith(url)]


def test_the_verb_asks_serves_and_exports(drawn, tmp_path):
    """What the command line puts together, over HTTP."""
    (drawn / "run.json").write_text("{}")
    book = Labels(drawn, "bob")
    sitting = Sitting(pairs_of_run(drawn, "rollouts", 0), book, 0)
    with serving(create_app(sitting)) as url:
        pair = httpx.get(f"{url}/state").json()["pair"]
        httpx.post(f"{url}/label", json={"id": pair["id"], "choice": 0, "grades": GRADES}).raise_for_status()
    book.close()
    out = tmp_path / "labels.jsonl"
    result = CliRunner().invoke(app, ["label", str(drawn), "--export", str(out)])
    assert result.exit_code == 0 and "bob 1" in result.output
    assert any(row["labeller"] == "bob" for row in jsonl.read(out))
    wrong = CliRunner().invoke(app, ["label", str(drawn), "--step", "sft"])
    assert wrong.exit_code == 2 and "there are: rollouts" in wrong.output
