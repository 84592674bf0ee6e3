"""What a run will take, said before its first step (`openafm run RECIPE`): steps, time, disk.

A recipe's seconds were planned on a machine of `PLANNED_SPEED`. This machine's pace is what its finished steps took
against their plan; before there are any, it follows from the probe's speed, which says little of downloads.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openafm.recipe.progress import clock
from openafm.recipe.recipe import Recipe
from openafm.recipe.status import State

PLANNED_SPEED = 190_000.0
"""Tokens a second of the probe's block on the machine whose times the recipes plan with."""
EXPONENT = 0.6
"""A run is not all matrices: at 1/5.6 of that speed nano took 2.7 times its plan, where 5.6 ** 0.6 is 2.8."""
ENOUGH_SECONDS = 60.0
"""So much finished work, as planned, tells this machine's pace better than the probe does."""
SLOWEST, FASTEST = 10.0, 0.5
"""A probe taken in a busy moment exaggerates, and no machine makes downloads much faster."""
ALMOST_FULL = 64 * 1024
"""Bytes: with less room than that, a library may have cut off what it wrote without a word."""


def announce(folder: Path, recipe: Recipe, found: Sequence[State], settings: dict[str, Any]) -> str:
    """One line: how many of the steps `found` will run, about how long they take, and the disk they need."""
    waiting = [state for state in found if state.state != "current"]
    if not waiting:
        return ""
    seconds = sum(state.step.seconds for state in waiting)
    factor, reason = pace(found, settings)
    current = f" ({len(found) - len(waiting)} more are current)" if len(waiting) < len(found) else ""
    return (
        f"{len(waiting)} step{'s' * (len(waiting) != 1)} to run{current}: about {clock(seconds * factor)}, planned "
        f"{clock(seconds)}, {reason}; up to {missing_mb(folder, recipe):,.0f} MB more disk in {folder}, "
        f"{free_mb(folder):,.0f} MB are free"
    )


def pace(found: Sequence[State], settings: dict[str, Any]) -> tuple[float, str]:
    """Seconds this machine takes for one planned second, and what that rests on."""
    finished = [state for state in found if state.manifest is not None and state.state != "corrupt"]
    planned = sum(state.manifest.planned_seconds for state in finished if state.manifest)
    if planned >= ENOUGH_SECONDS:
        factor = sum(state.manifest.times["seconds"] for state in finished if state.manifest) / planned
        return factor, f"at the pace of the {len(finished)} finished steps ({factor:.2f} of the plan)"
    precision = settings["hardware"]["precision"]
    speed = settings.get("probe", {}).get(f"{precision}_tokens_per_second")
    if not speed:
        return 1.0, "as this machine was not probed"
    factor = min(SLOWEST, max(FASTEST, (PLANNED_SPEED / speed) ** EXPONENT))
    return factor, f"as the probe did {speed:,} tokens/s and the plan is for {PLANNED_SPEED:,.0f}"


def missing_mb(folder: Path, recipe: Recipe) -> float:
    """Megabytes that the run will still write, by the recipe's `disk_mb`."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return max(0.0, recipe.disk_mb - there)


def free_mb(folder: Path) -> float:
    """Megabytes that this user may still write."""
    return shutil.disk_usage(folder).free / 1e6
