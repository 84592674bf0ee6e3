"""A recipe on two processes: the second takes part in steps that train, and keeps nothing."""

import io

from rich.console import Console
from tests.processes import processes
from tests.recipe.conftest import HARDWARE, artifact_bytes, bring_up, recipe

from openafm.recipe import artifacts, runner
from openafm.recipe import processes as ranks


def _rank(rank, runs):
    made, call = {}, ranks._call

    def called(step, hardware, folder):
        call(step, hardware, folder)
        own = artifacts.partial(folder, step.name) / "scratch" / f"rank-{rank}" / "out"
        made[step.name] = (own / "place.txt").read_text()

    ranks._call = called
    if ranks.join():
        ranks.take_part(recipe(), runs / "toy")
        assert made == {"walk": (runs / "toy" / "walk" / "place.txt").read_text()}
    else:
        runner.run(recipe(), runs, hardware=HARDWARE, console=Console(file=io.StringIO()))


def test_the_others_take_part_in_training_alone_and_keep_nothing(tmp_path, monkeypatch, toys):
    monkeypatch.setattr(ranks, "TRAINING", frozenset({"walk"}))
    bring_up(tmp_path / "one", recipe())
    (tmp_path / "two").mkdir()
    processes(2, _rank, tmp_path / "two")
    assert artifact_bytes(tmp_path / "two") == artifact_bytes(tmp_path / "one")
