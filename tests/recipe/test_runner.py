"""The runner with toy stages: what is stale, what survives a kill, what a user is told."""

import contextlib
import errno
import io
import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests.recipe.conftest import HARDWARE, TOYS, artifact_bytes, bring_up, forget, recipe

from openafm.recipe import runner
from openafm.recipe.status import states
from openafm.stage import Hardware

CATALOGUED = """class ScaleConfig(Config):
    def files(self):
        return [Path({path!r})]
"""


ALL = ["count", "other", "double", "triple", "walk"]


def test_runs_in_order_and_a_second_run_finds_all_current(toys, tmp_path):
    assert bring_up(tmp_path, recipe())[0] == ALL
    manifest = json.loads((tmp_path / "toy/triple/manifest.json").read_text())
    assert manifest["inputs"]["extra"]["step"] == "other/deep"
    assert manifest["outputs"].keys() == {"scaled.json"}
    assert not list((tmp_path / "toy").glob(".*.partial"))
    assert bring_up(tmp_path, recipe())[0] == []


def test_a_change_of_config_runs_the_step_and_its_followers(toys, tmp_path):
    bring_up(tmp_path, recipe())
    changed = recipe(by=("by: 3", "by: 4"))
    found = {state.step.name: (state.state, state.why) for state in states(tmp_path / "toy", changed, HARDWARE)}
    assert found["triple"] == ("stale", "config by: 3 -> 4")
    assert found["walk"] == ("behind", "after triple")
    executed, text = bring_up(tmp_path, changed)
    assert executed == ["triple", "walk"]
    assert "triple again: config by: 3 -> 4" in text
    assert "walk again: input parts.three changed" in text


def test_equal_bytes_made_anew_cut_the_rerun_short(toys, tmp_path):
    even = recipe(upto=("upto: 5}", "upto: 6, parity: true}"))
    bring_up(tmp_path, even)
    assert bring_up(tmp_path, recipe(upto=("upto: 5}", "upto: 8, parity: true}")))[0] == ["count"]


def test_a_follower_of_a_part_ignores_the_other_parts(toys, tmp_path):
    part = recipe(extra=("other/deep", "other/note.txt"))
    bring_up(tmp_path, part)
    changed = recipe(extra=("other/deep", "other/note.txt"), upto=("upto: 3", "upto: 2"))
    assert bring_up(tmp_path, changed)[0] == ["other"]


def test_what_a_run_beside_has_made_is_taken_over(toys, tmp_path):
    """Another run in the folder with the very same step lends its bytes; another key, or a damaged file, is no loan."""
    bring_up(tmp_path, recipe())
    mine = recipe(name=("name: toy", "name: mine"), upto=("upto: 5", "upto: 6"))
    executed, text = bring_up(tmp_path, mine)
    assert executed == ["count", "double", "triple", "walk"]
    assert "other                taken over from the run toy" in text
    assert (tmp_path / "mine/other/note.txt").stat().st_ino == (tmp_path / "toy/other/note.txt").stat().st_ino
    assert bring_up(tmp_path, mine)[0] == []
    other = recipe(name=("name: toy", "name: third"))
    note = tmp_path / "toy/count/note.txt"
    note.unlink()
    note.write_text("damaged")
    executed, _ = bring_up(tmp_path, other)
    assert executed == ["count"] and artifact_bytes(tmp_path / "third/walk") == artifact_bytes(tmp_path / "toy/walk")
    assert bring_up(tmp_path, other, start="other")[0] == ["other", "triple", "walk"], "--from makes it anew"


def test_a_step_has_a_seed_of_its_own(toys, tmp_path):
    bring_up(tmp_path, recipe())
    changed = recipe(walk=("{run: walk, ", "{run: walk, seed: 4, "))
    assert bring_up(tmp_path, changed)[0] == ["walk"]
    same = recipe(seed=("seed: 3", "seed: 4"), name=("name: toy", "name: all-four"))
    bring_up(tmp_path, same)
    places = [(tmp_path / run / "walk/place.txt").read_text() for run in ("toy", "all-four")]
    assert places[0] == places[1] and json.loads((tmp_path / "toy/walk/manifest.json").read_text())["seed"] == 4


def test_a_change_of_code_makes_stale_but_not_a_comment(toys, tmp_path):
    bring_up(tmp_path, recipe())
    toys.write_text(TOYS.replace("Toy stages.", "Stages, toys.") + "\n# a comment\n")
    forget()
    assert bring_up(tmp_path, recipe())[0] == []
    toys.write_text(TOYS.replace("config.by * n", "config.by * n + 0"))
    forget()
    found = {state.step.name: state.why for state in states(tmp_path / "toy", recipe(), HARDWARE)}
    assert found["double"] == "code changed"
    assert bring_up(tmp_path, recipe())[0] == ALL, "all of them are in the changed module"


def test_files_that_a_config_names_belong_to_the_key(toys, tmp_path):
    bring_up(tmp_path, recipe())
    listed = tmp_path / "catalogue.yaml"
    listed.write_text("first")
    toys.write_text(TOYS.replace("class ScaleConfig(Config):", CATALOGUED.format(path=str(listed))))
    forget()
    assert bring_up(tmp_path, recipe())[0] == ALL
    listed.write_text("second")
    found = {state.step.name: state.why for state in states(tmp_path / "toy", recipe(), HARDWARE)}
    assert found["double"] == "input catalogue.yaml changed" and found["count"] == ""


def test_seed_and_hardware_belong_to_the_key_and_hardware_is_kept(toys, tmp_path):
    bring_up(tmp_path, recipe())
    runner.run(recipe(), tmp_path, hardware=Hardware(threads=2), console=Console(quiet=True))
    assert json.loads((tmp_path / "toy/run.json").read_text())["hardware"]["threads"] == 1
    assert bring_up(tmp_path, recipe(seed=("seed: 3", "seed: 4")))[0] == ALL


def test_only_from_until(toys, tmp_path):
    with pytest.raises(runner.RunError, match="count: not run yet; make it with `openafm run toy --only count`"):
        bring_up(tmp_path, recipe(), only="double")
    assert bring_up(tmp_path, recipe(), until="double")[0] == ALL[:3]
    changed = recipe(upto=("upto: 5", "upto: 7"), by=("by: 3", "by: 4"))
    executed, text = bring_up(tmp_path, changed, only="triple")
    assert executed == ["triple"] and "warning: triple reads count, which is stale (config upto: 5 -> 7)" in text
    bring_up(tmp_path, changed)
    assert bring_up(tmp_path, changed, start="triple")[0] == ["triple", "walk"]
    with pytest.raises(ValueError, match="did you mean 'triple'"):
        bring_up(tmp_path, changed, start="tripel")


def test_a_corrupt_artifact_is_named_and_made_again(toys, tmp_path):
    bring_up(tmp_path, recipe())
    whole = artifact_bytes(tmp_path / "toy")
    (tmp_path / "toy/double/scaled.json").write_text("[0]")
    with pytest.raises(runner.RunError, match=r"double: .*scaled\.json differs from its manifest"):
        bring_up(tmp_path, recipe(), only="walk")
    executed, text = bring_up(tmp_path, recipe())
    assert executed == ["double"] and "scaled.json differs from its manifest: the artifact of double is corrupt" in text
    assert artifact_bytes(tmp_path / "toy") == whole
    (tmp_path / "toy/count/note.txt").unlink()
    (tmp_path / "toy/other/manifest.json").write_text("{")
    executed, text = bring_up(tmp_path, recipe())
    assert executed == ["count", "other"] and "note.txt is missing" in text and "manifest.json is corrupt" in text
    assert artifact_bytes(tmp_path / "toy") == whole


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("value", r"step triple: numbers.json:3: a bad number; remove it .*Finished steps are kept"),
        ("nan", r"step triple: its metrics or notes are not plain JSON .*nan"),
        ("nospace", r"step triple: the disk of .* is full .*make room, then the same command goes on"),
    ],
)
def test_a_failing_step_leaves_the_others_whole(toys, tmp_path, fail, message):
    with pytest.raises(runner.RunError, match=message):
        bring_up(tmp_path, recipe(by=("by: 3", f"by: 3, fail: {fail}")))
    assert (tmp_path / "toy/double/scaled.json").exists() and not (tmp_path / "toy/triple").exists()
    assert bring_up(tmp_path, recipe())[0] == ["triple", "walk"]


def test_ctrl_c_goes_up_and_says_how_to_go_on(toys, tmp_path):
    console = Console(record=True, file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        runner.run(recipe(by=("by: 3", "by: 3, fail: interrupt")), tmp_path, hardware=HARDWARE, console=console)
    assert "interrupted in step triple: the same command goes on from there" in console.export_text()


def test_too_little_disk_is_told_before_the_start(toys, tmp_path):
    with pytest.raises(runner.RunError, match=r"needs about 9\d+ MB more in .*--runs-dir"):
        bring_up(tmp_path, recipe(disk=("seed: 3", "seed: 3\ndisk_mb: 999_999_999_999")))


def test_a_second_process_is_turned_away(toys, tmp_path):
    (tmp_path / "toy").mkdir()
    with runner._lock(tmp_path / "toy"), pytest.raises(runner.RunError, match="is being run by another process"):
        bring_up(tmp_path, recipe())


def test_a_full_disk_while_sealing(toys, tmp_path, monkeypatch):
    def full(path: Path, value: object) -> None:
        if path.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text(json.dumps(value))

    with monkeypatch.context() as patch:
        patch.setattr("openafm.recipe.artifacts.write_json", full)
        with pytest.raises(runner.RunError, match=r"disk of .* is full"):
            bring_up(tmp_path, recipe())
    assert bring_up(tmp_path, recipe())[0] == ALL


def test_killed_at_random_moments_it_ends_with_the_bytes_of_an_unbroken_run(toys, tmp_path):
    slow = recipe(walk=("three: triple}}", "three: triple}}, with: {steps: 60, pause: 0.004}"))
    bring_up(tmp_path / "unbroken", slow)
    expected = artifact_bytes(tmp_path / "unbroken/toy")
    rng, fork = random.Random(1), multiprocessing.get_context("fork")
    kills = 0
    for attempt in range(60):
        child = fork.Process(target=bring_up, args=(tmp_path / "broken", slow))
        child.start()
        child.join(rng.uniform(0.0, 0.25) * 1.1**attempt)  # longer and longer, for a busy machine
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        if child.exitcode == 0:
            break
    assert child.exitcode == 0 and kills >= 2
    assert artifact_bytes(tmp_path / "broken/toy") == expected
    resumed = json.loads((tmp_path / "broken/toy/walk/manifest.json").read_text())["notes"]["resumed_at"]
    assert resumed > 0, "the walk went on from its checkpoint"


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_while_publishing(toys, tmp_path, monkeypatch, moment):
    """Every prefix of the renames and removals leaves the old or the new artifact, and the next run puts it right."""
    bring_up(tmp_path, recipe())
    changed = recipe(by=("by: 3", "by: 4"))
    calls = 0

    def counted(original):
        def wrapper(*arguments):
            nonlocal calls
            calls += 1
            if calls > moment and sys._getframe(1).f_code.co_name == "publish":
                raise SystemExit("killed")
            return original(*arguments)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr("openafm.recipe.artifacts.remove", counted(runner.artifacts.remove))
        with contextlib.suppress(SystemExit):
            bring_up(tmp_path, changed)
    bring_up(tmp_path, changed)
    assert json.loads((tmp_path / "toy/triple/scaled.json").read_text()) == [0, 4, 8, 12, 16]
    assert not list((tmp_path / "toy").glob(".*.old")) + list((tmp_path / "toy").glob(".*.partial"))


def test_a_flipped_bit_anywhere_in_a_manifest_is_seen(toys, tmp_path):
    bring_up(tmp_path, recipe())
    path = tmp_path / "toy/double/manifest.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert runner.artifacts.read_manifest(path.parent) == runner.artifacts.Manifest(**json.loads(whole))
        except ValueError as error:
            assert str(path) in str(error)
    path.write_bytes(whole.replace(b'"total": 10.0', b'"total": 18.0'))
    executed, text = bring_up(tmp_path, recipe())
    assert executed == ["double"] and "its checksum is wrong" in text


def test_a_corrupt_run_json_is_named(toys, tmp_path):
    bring_up(tmp_path, recipe())
    (tmp_path / "toy/run.json").write_text('{"hardware": {"thr')
    with pytest.raises(ValueError, match=r"run\.json is corrupt .*delete it"):
        bring_up(tmp_path, recipe())


def test_a_disk_without_room_after_a_step_is_full_although_nothing_was_raised(toys, tmp_path, monkeypatch):
    """Some libraries cut off what they write and say nothing."""
    real = runner.shutil.disk_usage
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda path: real(path)._replace(free=0))
    monkeypatch.setattr(runner, "free_mb", lambda folder: 1e9)
    with pytest.raises(runner.RunError, match=r"step count: the disk of .* is full"):
        bring_up(tmp_path, recipe())


def test_a_folder_that_cannot_be_written_names_the_remedy(toys, tmp_path, monkeypatch):
    def refuse(path, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(runner.RunError, match=r"cannot write in .*--runs-dir"):
        bring_up(tmp_path, recipe())
