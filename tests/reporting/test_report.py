import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from openafm.reporting.report import ENTRY, TIMES, ReportConfig, report, with_times, write_report
from openafm.stage import Context

HOSTILE = '<script>alert(1)</script><img src="https://evil.example/x">{{ 7*7 }}'
VOID = {"meta", "br", "img", "link", "path", "use", "rect"}


class Checker(HTMLParser):
    """Tags that are opened and not closed, ids, headings, and the page's visible text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.tags, self.text = [], [], set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(html):
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    return checker


def split(run):
    folders = {path.parent.name: path.parent for path in sorted(run.glob("*/manifest.json"))}
    evaluations = {name: folder for name, folder in folders.items() if name.startswith("evaluate_")}
    return evaluations, {name: folder for name, folder in folders.items() if name not in evaluations}


def test_the_page_is_whole_and_shows_every_chapter(run):
    html = write_report(run).read_text()
    checker = checked(html)
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings[:2] == ["In short", "After each stage"] and headings[-2:] == ["Notes", "Time and machine"]
    assert len(headings) == 21
    assert "Left out" not in html
    text = " ".join(checker.text)
    for wanted in (
        "planned s",
        "SmolLM2-135M-Instruct",
        "Q4_1",
        "dpo (best)",
        "95.0",
        "77%",
        "cpu_count",
        "2.13.0",
        "no apt-get here",
    ):
        assert wanted in text


def test_hostile_text_stays_text_and_nothing_is_requested(run):
    html = write_report(run).read_text()
    checker = checked(html)
    assert not checker.tags & {"script", "img", "iframe", "link", "object", "form", "base"}
    assert HOSTILE in "".join(checker.text)
    assert "49" not in re.findall(r"evil.example/x&#34;&gt;(.{0,12})", html)[0]
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert not re.search(r'(src|href)\s*=\s*"(?!#)', outside)
    assert "@import" not in html and "default-src 'none'" in html


def test_the_artifact_holds_no_times_and_is_the_same_for_other_times(run, tmp_path):
    pages = []
    for seconds in (10.0, 99.0):
        for path in run.glob("*/manifest.json"):
            manifest = json.loads(path.read_text())
            path.write_text(
                json.dumps(manifest | {"times": {"started": seconds, "seconds": seconds}, "notes": {"x": seconds}})
            )
        evaluations, artifacts = split(run)
        out = tmp_path / str(seconds)
        out.mkdir()
        metrics = report(ReportConfig(), Context(out, out), evaluations=evaluations, artifacts=artifacts)
        assert metrics == {"sections": 20, "left_out": []}
        pages.append((out / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert ENTRY.encode() in pages[0] and TIMES.encode() in pages[0] and b"planned s" not in pages[0]


@pytest.mark.parametrize("gone", [("distil", "compress", "committee", "fetch"), ("evaluate_",)])
def test_what_has_not_run_is_named_and_the_rest_is_shown(run, gone):
    for folder in run.iterdir():
        if folder.is_dir() and folder.name.startswith(gone):
            shutil.rmtree(folder)
    html = write_report(run).read_text()
    checked(html)
    if "distil" in gone:
        assert "not run: Distillation (distil);" in html
    if "compress" in gone:
        assert "Bits by layer (compress)" in html and 'id="committee-round"' not in html
    assert 'id="time-and-machine"' in html


def test_every_single_step_alone_makes_a_page(run, tmp_path):
    for folder in [path for path in run.iterdir() if path.is_dir()]:
        alone = tmp_path / "alone" / folder.name
        shutil.copytree(folder, alone / folder.name)
        checked(write_report(alone).read_text())


def test_with_times_adds_planned_and_spent(run):
    html = with_times(f"<ul>{ENTRY}</ul>{TIMES}", {"fetch": {"times": {"seconds": 61.5}, "planned_seconds": 60}}, {})
    assert "61.5" in html and ">60<" in html and "Time and machine" in html


def test_a_folder_without_steps_is_an_error_and_a_damaged_artifact_is_named(run, tmp_path):
    with pytest.raises(ValueError, match="holds no finished step"):
        write_report(tmp_path)
    (run / "evaluate_distil" / "windows.jsonl").write_text("{")
    with pytest.raises(ValueError):
        write_report(run)
