import dataclasses

import pytest

from openafm.evaluation.suite import memory, programs, retrieval
from openafm.evaluation.suite import run as running
from openafm.evaluation.suite.items import Item, NotMeasuredError
from openafm.evaluation.suite.run import ALL, Listener, run
from openafm.evaluation.suite.sheet import cells, lines, markdown, reasons, told
from openafm.evaluation.suite.task import Size, Task

SMALL = Size(2, lengths=(420, 9999))


def task(name, measure, **more):
    return Task(name, "what", measure, SMALL, SMALL, **more)


def measured(subject, bench):
    yield from (Item("part", str(i), float(i == 0)) for i in range(bench.size.items))


def small(tasks):
    return [dataclasses.replace(one, nano=SMALL) for one in tasks]


@pytest.fixture
def go(subject, material, tmp_path):
    def run_(tasks, code="1", model=subject, **more):
        return run(
            model, tasks, "nano", material=material, folder=tmp_path / "kept", code_of=lambda module: code, **more
        )

    return run_


def test_the_whole_suite_on_an_untrained_model(go, monkeypatch):
    monkeypatch.setattr(programs, "LIMITS", programs.Limits(wall_seconds=20))
    tasks = small([one for one in ALL if not one.name.startswith("harness/")])
    sheet = go(tasks)
    assert set(sheet.missing) == {"summaries", "extracted", "wins_over_reference"}
    assert "cannot be had" in sheet.missing["summaries"] and "--judge" in sheet.missing["wins_over_reference"]
    rows = lines(tasks, [sheet])
    for row in rows:
        (value,) = row["values"]
        if row["task"] not in sheet.missing:
            if value["n"] == 1 and value["low"] is None:  # one item has no interval
                continue
            assert value["n"] >= 1 and value["low"] <= value["value"] <= value["high"], row
            assert "[" in told(value, row["unit"])
    named = {(row["task"], row["part"]) for row in rows}
    assert {
        ("tools", "irrelevance"),
        ("text", "code"),
        ("order", "human_eval"),
        ("long", "420"),
        ("code", "pass@1"),
    } <= named
    assert len(reasons([sheet])) == 3 and markdown(rows, [sheet]).count("| not measured |") == 3


def test_what_was_measured_is_kept_until_code_size_data_or_model_change(go, subject, catalogue):
    calls = []

    def counted(subject, bench):
        calls.append(1)
        return measured(subject, bench)

    first = go([task("a", counted, data=("mmlu",))])
    assert go([task("a", counted, data=("mmlu",))]).items == first.items and len(calls) == 1
    assert first.seconds and not go([task("a", counted, data=("mmlu",))]).seconds
    go([task("a", counted, data=("mmlu",))], code="2")
    go([dataclasses.replace(task("a", counted, data=("mmlu",)), nano=Size(3))])
    go([task("a", counted, data=("squad",))])
    go([task("a", counted, data=("mmlu",))], model=dataclasses.replace(subject, talks=False))
    assert len(calls) == 5


def test_a_killed_suite_goes_on_with_the_task_it_was_in(go):
    begun = []

    def killed(subject, bench):
        yield Item("", "0", 1.0)
        if len(begun) < 3:
            raise KeyboardInterrupt

    tasks, listener = [task("first", measured), task("second", killed)], Listener(begin=begun.append)
    with pytest.raises(KeyboardInterrupt):
        go(tasks, listener=listener)
    begun.append("killed")
    sheet = go(tasks, listener=listener)
    assert list(sheet.seconds) == ["second"] and len(sheet.items["second"]) == 1


def test_what_cannot_be_measured_is_said_and_tried_again(go):
    def absent(subject, bench):
        raise NotMeasuredError("no data: get it")

    assert go([task("a", absent)]).missing == {"a": "no data: get it"}
    assert go([task("a", measured)]).items["a"]


def test_two_models_are_compared_item_by_item(go, subject):
    other = dataclasses.replace(subject, name="other", talks=False)
    all_right = [task("a", lambda subject, bench: [Item("", str(i), 1.0) for i in range(30)])]
    all_wrong = [task("a", lambda subject, bench: [Item("", str(i), 0.0) for i in range(30)])]
    (row,) = lines(all_right, [go(all_right), go(all_wrong, model=other)])
    assert row["values"][1]["difference"] == {"value": -1.0, "low": -1.0, "high": -1.0, "n": 30}
    assert cells(row)[3].endswith("*") and cells(row)[0] == "30"


def test_the_digest_is_of_what_computes(world, subject, tmp_path):
    import shutil

    copy = tmp_path / "elsewhere"
    shutil.copytree(world / "model", copy)
    (copy / "manifest.json").write_text("{}")
    moved = dataclasses.replace(subject, path=copy)
    assert moved.digest == subject.digest
    (copy / "tokenizer_config.json").write_text((copy / "tokenizer_config.json").read_text() + " ")
    assert dataclasses.replace(subject, path=copy).digest != subject.digest


def test_names_are_unique_and_every_target_is_in_the_catalogue():
    from openafm.data.catalogue import load

    assert len({one.name for one in ALL}) == len(ALL)
    targets = {source.target for source in load("evaluation")[0].sources}
    assert {target for one in ALL for target in one.data} <= targets
    assert running.ALL is ALL and memory.TASKS and retrieval.TASKS
