"""The documentation as a site: it builds offline, every link leads somewhere, and a browser asks no other host."""

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from axe_playwright_python.sync_playwright import Axe
from tests.browser import needs_chromium, watched
from tests.docs.commands import ROOT

SITE = ROOT / "build/docs/site"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *arguments):
        pass


@pytest.fixture(scope="module")
def site():
    """The address of the built site; the build itself fails on links to nothing and on outside requests."""
    done = subprocess.run(
        [sys.executable, "docs/site/build.py"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_page_and_module_is_there(site):
    pages = {str(path.relative_to(SITE)) for path in SITE.rglob("*.html")}
    assert {"index.html", "tour.html", "pretraining.html", "reference/openafm.training.loop.html"} <= pages
    text = (SITE / "reference/openafm.training.losses.html").read_text()
    assert "top1_distillation" in text and "z_loss" in text


@needs_chromium
@pytest.mark.parametrize("page", ["index.html", "committee.html", "reference/openafm.training.losses.html"])
def test_a_browser_asks_no_other_host(site, browser, page):
    for width in (360, 1400):
        asked: list[str] = []
        shown = watched(browser, f"{site}/{page}", asked, viewport={"width": width, "height": 900})
        shown.wait_for_load_state("networkidle")
        assert asked and all(entry.startswith((site, "data:", "blob:")) for entry in asked), asked
        grave = [v for v in Axe().run(shown).response["violations"] if v["impact"] in ("serious", "critical")]
        assert not [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in grave]
        assert shown.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        shown.context.close()
