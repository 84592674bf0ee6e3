"""Answers that share steps are those made alone, whenever they come and whatever else goes on."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.random_models import TEXT

from openafm.engine import NativeEngine, TorchEngine
from openafm.engine.guidance import regex
from openafm.engine.native_engine import missing
from openafm.engine.together import BESIDE, TOGETHER

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
REQUESTS = [
    {"prompt": TEXT[:9], "adapter": None, "temperature": 0.0},
    {"prompt": TEXT, "adapter": "mail", "temperature": 1.0, "seed": 5},
    {"prompt": [*TEXT[:40], 7], "adapter": "mail", "temperature": 0.7, "top_p": 0.9, "seed": 2},
    {"prompt": TEXT[:1], "adapter": "notes", "temperature": 0.0, "presence_penalty": 0.5},
    {"prompt": TEXT[3:50], "adapter": None, "temperature": 1.0, "seed": 1, "grammar": regex("[ab]{3,9}")},
]


@pytest.fixture(scope="module")
def engine(package):
    return NativeEngine.load(package, threads=2)


@pytest.fixture(scope="module")
def alone(engine):
    return [list(engine.generate(max_tokens=20, **request)) for request in REQUESTS]


def run(engine, requests, arrive, leave=()):
    """Add request i before step arrive[i]; those of `leave` go away after their third token."""
    batch, rows, made = engine.together(), {}, [[] for _ in requests]
    step = 0
    while len(rows) < len(requests) or any(not row.over for row in rows.values()):
        for i, request in enumerate(requests):
            if i not in rows and arrive[i] <= step:
                rows[i] = batch.add(max_tokens=20, **request)
        which = {id(row): i for i, row in rows.items()}
        for row, chosen in batch.step():
            made[which[id(row)]] += [choice.token for choice in chosen]
            if row.over:
                batch.remove(row)
        for i in leave:
            if i in rows and len(made[i]) >= 3 and not rows[i].over:
                batch.remove(rows[i])
                rows[i].over = True
        step += 1
        assert step < 500
    return made


@given(arrive=st.lists(st.integers(0, 12), min_size=len(REQUESTS), max_size=len(REQUESTS)))
@settings(max_examples=15, deadline=None)
def test_answers_do_not_depend_on_what_they_share_steps_with(engine, alone, arrive):
    assert run(engine, REQUESTS, arrive) == alone


def test_one_that_leaves_changes_nothing_for_the_others(engine, alone):
    made = run(engine, REQUESTS, [0] * len(REQUESTS), leave=[0, 3])
    assert [made[i] for i in (1, 2, 4)] == [alone[i] for i in (1, 2, 4)]
    assert 3 <= len(made[0]) < 20


def test_guesses_change_nothing_when_answers_come_and_go(package, alone):
    greedy = [i for i, request in enumerate(REQUESTS) if request["temperature"] == 0]
    for draft in ("lookup", NativeEngine.load(package, threads=1)):
        guessing = NativeEngine.load(package, threads=2, draft=draft)
        made = run(guessing, [REQUESTS[i] for i in greedy], [0, 7])
        assert made == [alone[i] for i in greedy]


def test_a_long_prompt_does_not_keep_the_others_waiting(engine):
    batch = engine.together()
    talking = batch.add([5, 6], max_tokens=60, temperature=0.0)
    while not batch.step():
        pass
    random_ = random.Random(0)
    late = batch.add([random_.randrange(3, 300) for _ in range(5 * BESIDE + 1)], max_tokens=3, temperature=0.0)
    for _ in range(5):
        assert [row for row, tokens in batch.step() if tokens] == [talking]
    assert [row for row, tokens in batch.step() if tokens] == [talking, late]
    batch.remove(talking)
    batch.remove(late)


def test_an_answer_that_cannot_be_guided_fails_alone(engine, alone, monkeypatch):
    from openafm.engine.guidance import Guide

    monkeypatch.setattr(Guide, "masks", lambda *_: (_ for _ in ()).throw(ValueError("a dead end")))
    batch = engine.together()
    rows = [batch.add(max_tokens=20, **request) for request in (REQUESTS[0], REQUESTS[4])]
    made = []
    while not rows[0].over:
        made += [choice.token for row, chosen in batch.step() for choice in chosen if row is rows[0]]
    assert made == alone[0]
    assert rows[1].over and str(rows[1].error) == "a dead end" and rows[0].error is None
    for row in rows:
        batch.remove(row)
    with pytest.raises(ValueError, match="a dead end"):
        list(engine.generate(max_tokens=20, **REQUESTS[4]))


def test_a_step_is_full_with_as_many_as_there_is_room_for(engine):
    answers = engine.batch([TEXT[: 2 + i % 7] for i in range(2 * TOGETHER + 3)], max_tokens=4, temperature=0.0)
    assert len(answers) == 2 * TOGETHER + 3 and all(answer.tokens for answer in answers)


def test_torch_makes_one_at_a_time(package):
    engine = TorchEngine.load(package)
    expected = list(engine.generate(TEXT, max_tokens=5, temperature=0.0))
    batch = engine.together()
    assert batch.room == 1
    for _ in range(2):
        row, made = batch.add(TEXT, max_tokens=5, temperature=0.0), []
        while not row.over:
            made += [choice.token for _, chosen in batch.step() for choice in chosen]
        batch.remove(row)
        assert made == expected
    with pytest.raises(ValueError, match="torch does not carry out top_p"):
        list(engine.generate(TEXT, max_tokens=5, top_p=0.5))
