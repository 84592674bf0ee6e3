"""Progress: planned seconds weigh the steps; without a terminal it is a line now and then."""

import io

from rich.console import Console

from openafm.recipe import progress
from openafm.recipe.progress import Display, clock


def test_without_a_terminal_it_prints_lines_at_intervals(monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    text = io.StringIO()
    with Display(Console(file=text, width=120), {"a": 30.0, "b": 70.0}) as display:
        display.begin("a")
        display.report("half way", 5, 10)
        display.end("a", 12.0)
        display.begin("b")
        display.report("loss 2.1", 7, 14)
        monkeypatch.setattr(progress, "QUIET_SECONDS", 1e6)
        display.report("loss 2.0", 8, 14)
    assert text.getvalue() == "  a: half way 5/10  [15% of the run]\n  b: loss 2.1 7/14  [65% of the run]\n"


def test_on_a_terminal_it_draws_bars():
    text = io.StringIO()
    with Display(Console(file=text, width=120, force_terminal=True), {"a": 30.0}) as display:
        display.begin("a")
        display.report("half way", 5, 10)
        display.bars.refresh()
    assert "half way" in text.getvalue() and "50%" in text.getvalue() and "0:30 planned in all" in text.getvalue()


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 75, 3725)] == ["0:00", "1:00", "1:15", "1:02:05"]
