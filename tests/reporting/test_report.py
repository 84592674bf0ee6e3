import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from openafm.reporting.document import Artifacts
from openafm.reporting.findings import disappointments
from openafm.reporting.learning import distilled_pairs
from openafm.reporting.report import PARTS, ReportConfig, report, write_report
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


def folders(run):
    return {path.parent.name: path.parent for path in sorted(run.glob("*/manifest.json"))}


def text_of(html):
    return " ".join(" ".join(checked(html).text).split())


def change(run, step, **values):
    path = run / step / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | values))


def test_the_page_is_whole_and_shows_every_chapter_in_the_papers_order(run):
    html = write_report(run).read_text()
    checked(html)
    titles = [chapter.title for chapters in PARTS.values() for chapter in chapters]
    assert re.findall(r"<h2>(.*?)</h2>", html) == titles
    assert "Left out" not in html
    entries = re.findall(r'<li><a href="#([^"]+)">', html)
    assert entries == re.findall(r'<section id="([^"]+)">', html)[1:]
    text = text_of(html)
    for wanted in (
        "planned, s",
        "SmolLM2-135M-Instruct stands in",
        "Q4_1",
        "dpo (best)",
        "independent programmatic checks, not from people: margin 1",
        "77 70 to 84",
        "machine: cpu_count",
        "2.13.0",
        "no apt-get here",
        "regained share of the lost log-loss, %",
        "70.0% synthetic, of 9,000 training examples",
        "recall on planted, %",
        "precision on real, %",
        "clean: email 30 30 – 100.0 89 to 100 31 20 90.0 70 to 97",
        "clean: card 20 19 – 95.0 76 to 99 2 0 –",
        "clean: repetitive – – – – 7 6 50.0 19 to 81",
        "Precision on real pages: 80.8% of 26 hits read",
    ):
        assert wanted in text, wanted


def test_hostile_text_stays_text_and_nothing_is_requested(run):
    html = write_report(run).read_text()
    checker = checked(html)
    assert not checker.tags & {"script", "img", "iframe", "link", "object", "form", "base", "image", "a:href"}
    assert HOSTILE in "".join(checker.text)
    assert "49" not in re.findall(r"evil.example/x&#34;&gt;(.{0,12})", html)[0]
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert not re.search(r'(src|href|srcset|action|data)\s*=\s*["\'](?!#)', outside)
    assert not re.search(r"url\((?!#)", outside)
    assert "@import" not in html and "default-src 'none'" in html


def test_names_out_of_artifacts_are_escaped_in_figures_too(run):
    table = json.loads((run / "committee" / "committee.json").read_text())
    table["members"][HOSTILE] = table["members"].pop("sft")
    (run / "committee" / "committee.json").write_text(json.dumps(table))
    evaluation = json.loads((run / "evaluate_long" / "evaluation.json").read_text())
    (run / "evaluate_long" / "evaluation.json").write_text(json.dumps(evaluation | {"model": HOSTILE}))
    checker = checked(write_report(run).read_text())
    assert not checker.tags & {"script", "img"}


def test_the_artifact_holds_no_times_and_is_the_same_for_other_times(run, tmp_path):
    pages = []
    for seconds in (10.0, 99.0):
        for step in folders(run):
            change(run, step, times={"started": seconds, "seconds": seconds}, notes={"x": seconds})
        out = tmp_path / str(seconds)
        out.mkdir()
        metrics = report(ReportConfig(), Context(out, out), artifacts=folders(run))
        assert metrics["left_out"] == []
        pages.append((out / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert b"planned, s" not in pages[0] and b"Time spent" not in pages[0] and b"cpu_count" not in pages[0]


@pytest.mark.parametrize("gone", [("distil", "compress", "committee", "fetch"), ("evaluate_",)])
def test_what_has_not_run_is_named_and_the_rest_is_shown(run, gone):
    for folder in run.iterdir():
        if folder.is_dir() and folder.name.startswith(gone):
            shutil.rmtree(folder)
    html = write_report(run).read_text()
    text = text_of(html)
    if "distil" in gone:
        assert "Committee rounds (committee)" in text and "Bits per layer (compress)" in text
        assert 'id="committee-rounds"' not in html and 'id="bits-per-layer"' not in html
    else:
        assert "After each stage (evaluate)" in text and 'id="distillation"' not in html
    assert 'id="planned-and-spent-time"' in html and 'id="data-funnel"' in html


def test_every_single_step_alone_makes_a_page(run, tmp_path):
    for folder in folders(run).values():
        alone = tmp_path / "alone" / folder.name
        shutil.copytree(folder, alone / folder.name)
        checked(write_report(alone).read_text())


def test_steps_may_have_any_names(run):
    """Chapters go by stages and inputs, so a recipe's own names change nothing but the names shown."""
    before = re.findall(r"<h2>(.*?)</h2>", write_report(run).read_text())
    renamed = {step: f"x{i}" for i, step in enumerate(folders(run))}
    record = json.loads((run / "run.json").read_text())
    for step, name in renamed.items():
        manifest = json.loads((run / step / "manifest.json").read_text())
        for given in manifest["inputs"].values():
            given["step"] = renamed.get(given["step"], given["step"])
        (run / step / "manifest.json").write_text(json.dumps(manifest | {"step": name}))
        (run / step).rename(run / name)
    record["steps"] = [step | {"name": renamed[step["name"]]} for step in record["steps"]]
    (run / "run.json").write_text(json.dumps(record))
    assert re.findall(r"<h2>(.*?)</h2>", write_report(run).read_text()) == before


def test_every_committee_round_is_shown_beside_its_control(run):
    text = text_of(write_report(run).read_text())
    for wanted in ("round 1: dpo (best)", "round 2: mdloo (best)", "round 2: control", "The round of step committee_2"):
        assert wanted in text
    assert "Best committee member right, % 62.5" in text  # the last round's, 160 of 256
    shutil.rmtree(run / "committee_2")
    text = text_of(write_report(run).read_text())
    assert "round 1" not in text and "Best committee member right, % 50.8" in text  # 130 of 256


def test_calibration_checks_and_methods_are_shown_where_they_were_measured(run):
    before = text_of(write_report(run).read_text())
    assert "Expected calibration error" not in before and "Entropy of the policy" not in before
    found = json.loads((run / "reward" / "heldout.json").read_text())
    curve = [{"probability": 0.55, "passed": 5, "n": 10, "rate": 0.5, "low": 0.2, "high": 0.8},
             {"probability": 0.92, "passed": 9, "n": 10, "rate": 0.9, "low": 0.6, "high": 1.0}]  # fmt: skip
    (run / "reward" / "heldout.json").write_text(json.dumps(found | {"calibration": {"error": 0.035, "curve": curve}}))
    rows = [{"iteration": i, "reward": 0.5, "kl_reference": 0.1 * i, "entropy": 1.5 - 0.1 * i} for i in range(4)]
    (run / "mdloo" / "iterations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rated = {"passed": 30, "n": 40, "rate": 0.75, "low": 0.6, "high": 0.86}
    table = {
        "rloo": rated | {"reward": 1.0, "tokens": 3.0, "tasks": {"add": rated}, "sampled": rated | {"rate": 0.654}}
    }
    (run / "compared").mkdir()
    (run / "compared" / "methods.json").write_text(json.dumps(table))
    manifest = json.loads((run / "mdloo" / "manifest.json").read_text())
    inputs = {"members.rloo": {"step": "mdloo", "digest": ""}}
    (run / "compared" / "manifest.json").write_text(
        json.dumps(manifest | {"step": "compared", "stage": "methods", "inputs": inputs})
    )
    (run / "people").mkdir()
    judges = {"labels": {"ada": 20, "bob": 12}, "pairs": 20, "pairs_of_several": 12, "alpha": {"strength": 0.61}}
    (run / "people" / "manifest.json").write_text(
        json.dumps(manifest | {"step": "people", "stage": "labels", "metrics": {"judges": judges}, "inputs": {}})
    )
    text = text_of(write_report(run).read_text())
    for wanted in ("Expected calibration error: 3.5 points", "Entropy of the policy, by iteration", "rloo", "65.4",
                   "labelled by ada 20, bob 12; 12 by several", "strength 0.61"):  # fmt: skip
        assert wanted in text, wanted


def test_recovery_adapters_of_several_ranks_stand_side_by_side(run):
    text = text_of(write_report(run).read_text())
    assert "recovery_8, rank 8 recovery, rank 16" in text or "recovery, rank 16 recovery_8, rank 8" in text


def test_summaries_stand_side_by_side_with_gains_and_the_judges_checks(run):
    text = text_of(write_report(run).read_text())
    assert "Summaries of 40 mails from 21 held-out source packages" in text
    for line in ("quantized plain 25.1 20.8 to 29.4 25.1 20.8 to 29.4 –", "adapter, by people 25.1 20.8 to 29.4 25.1",
                 "91 51 to 143 25 10 to 40", "(check of the judge) 25 10 to 40"):  # fmt: skip
        assert line in text, line


def test_distillation_is_found_by_what_was_read(run):
    pairs = distilled_pairs(Artifacts(folders(run)))
    assert pairs == [("distil", "scratch"), ("continued", "scratch_continued")]
    change(run, "scratch_continued", config={"tokens": 1})
    assert distilled_pairs(Artifacts(folders(run))) == [("distil", "scratch")]


def test_numbers_follow_the_artifacts(run):
    """Change a number in an artifact, and the page shows the new one."""
    metrics = json.loads((run / "compress" / "manifest.json").read_text())["metrics"]
    change(run, "compress", metrics=metrics | {"projection_bits_per_weight": 2.7183, "kl": 0.4567})
    change(run, "fetch", times={"seconds": 3600.0 * 5}, planned_seconds=7.0)
    found = json.loads((run / "reward" / "heldout.json").read_text())
    found["by_strength"]["slight"] |= {"rate": 0.123, "n": 4321}
    (run / "reward" / "heldout.json").write_text(json.dumps(found))
    text = text_of(write_report(run).read_text())
    for wanted in ("Bits a projection weight 2.72", "0.4567", "5 h", "n = 4321", "fetch 18000 s instead of 7"):
        assert wanted in text, wanted


def test_disappointments_speak_only_where_the_artifacts_bear_them_out(run):
    read = Artifacts(folders(run))
    found = " ".join(disappointments(read))
    assert "no member is ahead of the control" in found and "`summariser`" not in found
    table = json.loads((run / "committee_2" / "committee.json").read_text())
    table["members"]["mdloo"]["heldout"] |= {"rate": 0.99, "low": 0.95, "high": 1.0}
    for step in ("committee", "committee_2"):
        (run / step / "committee.json").write_text(json.dumps(table))
    metrics = json.loads((run / "summariser" / "manifest.json").read_text())["metrics"]
    change(run, "summariser", metrics=metrics | {"gain_over_lead_1_interval": [-0.3, -0.1], "rouge_lead_1": 0.31})
    found = " ".join(disappointments(Artifacts(folders(run))))
    assert "no member is ahead" not in found
    assert "`summariser` is worse than copying the text's first sentence: ROUGE-L 20.0% against 31.0%" in found


def test_a_folder_without_steps_is_an_error_and_a_damaged_artifact_is_named(run, tmp_path):
    with pytest.raises(ValueError, match="holds no finished step"):
        write_report(tmp_path)
    (run / "evaluate_distil" / "windows.jsonl").write_text("{")
    with pytest.raises(ValueError):
        write_report(run)


def test_markdown_says_what_the_page_says_and_hostile_text_stays_text(run, tmp_path):
    from markdown_it import MarkdownIt

    path = write_report(run, tmp_path / "report.md")
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(path.read_text())
    assert "<script" not in html and "<img" not in html  # even where a renderer would let markup through
    assert HOSTILE in "".join(checked(html).text)
    page = write_report(run).read_text()
    assert html.count("<td") + html.count("<th") > page.count("<td") + page.count("<th") > 100  # key figures on top
    titles = [chapter.title for chapters in PARTS.values() for chapter in chapters]
    assert [title for title in titles if title in text_of(html)] == [t for t in titles if t in text_of(page)]
