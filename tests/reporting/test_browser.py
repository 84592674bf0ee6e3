"""The report in a real browser: at three widths and on paper, of a whole run and of one that failed."""

import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from tests.browser import needs_chromium, watched

from openafm.reporting.report import write_report

WIDTHS = (360, 820, 1400)
"""A phone, a tablet, a desk."""


def failed(run, tmp_path):
    """A copy of the run in which one step failed, one was broken off, and what follows them is missing."""
    folder = tmp_path / "failed"
    shutil.copytree(run, folder)
    for step in ("committee", "committee_2", "compress", "recovery", "recovery_8", "summariser", "mdloo", "report"):
        shutil.rmtree(folder / step, ignore_errors=True)
    (folder / ".mdloo.partial").mkdir()
    (folder / ".mdloo.partial/error.txt").write_text(
        "Traceback\n  File\nValueError: <b>no</b> step had a finite loss\n"
    )
    (folder / ".compress.partial").mkdir()
    return folder


@needs_chromium
@pytest.mark.parametrize("which", ["whole", "failed"])
def test_the_report_is_readable_at_every_width(which, run, browser, tmp_path):
    folder = run if which == "whole" else failed(run, tmp_path)
    url, asked = write_report(folder).as_uri(), []
    for scheme, widths in (("light", WIDTHS), ("dark", WIDTHS[:1])) if which == "whole" else (("light", WIDTHS[:1]),):
        for width in widths:
            page = watched(browser, url, asked, viewport={"width": width, "height": 900}, color_scheme=scheme)
            found = Axe().run(page).response["violations"]
            assert not [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), width
            drawn = "() => [...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().width)"
            assert 0 < max(page.evaluate(drawn)) <= width
            if which == "failed":
                told = page.locator(".gaps").inner_text()
                assert "mdloo failed: ValueError: <b>no</b> step" in told and "compress was broken off" in told
                assert "Not run yet: " in told and "committee" in told
            page.context.close()
    assert set(asked) == {url}, asked  # one file, no request, nothing on the console


@needs_chromium
def test_every_figure_and_table_names_its_files_and_command(run, browser):
    page = watched(browser, write_report(run).as_uri(), [])
    sources = "() => [...document.querySelectorAll('figure')].map(e => e.querySelector('.source')?.innerText ?? '')"
    found = page.evaluate(sources)
    assert len(found) > 40
    assert all(source.startswith("From ") and "openafm " in source for source in found), found
    assert page.evaluate("() => [...document.querySelectorAll('figure svg')].every(e => e.ariaLabel)")
    assert page.pdf()[:4] == b"%PDF"
