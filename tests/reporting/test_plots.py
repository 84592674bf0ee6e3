import re
import xml.etree.ElementTree as ET

from openafm.reporting.plots import SERIES, Dot, Line, bars, grid, lines, points, ridges, sprinkle

CURVES = {"a $x$ <b>": Line([1, 2, 3], [3.0, 2.0, 1.5], [2.9, 1.9, 1.4], [3.1, 2.1, 1.6]), "_b": Line([1, 2], [1, 2])}


HOSTILE = '"><script>'


def figures():
    yield lines(CURVES, "tokens", "nats", name="one", alt=HOSTILE, chance=2.0)
    dots = {"all": Dot(0.5, 0.4, 0.6), "few": Dot(0.2), "control": Dot(0.3, 0.2, 0.4, control=True)}
    yield points(dots, "share", name="two", alt=HOSTILE, mark=0)
    yield bars({"first": {"web": 2.0, "code": 1.0}, "second": {"web": 1.0}}, "MB", name="three", alt=HOSTILE)
    yield bars({"first": {"planned": 2.0, "spent": 1.0}}, "s", name="four", alt=HOSTILE, stacked=False)
    yield ridges({"layer 0": [1.0, 0.5, 0.0]}, [0, 30, 60, 100], "rank", name="five", alt=HOSTILE, mark=50)
    yield grid({"layer 0": {"q": 4, "k": 2}, "layer 1": {"q": 4}}, name="six", alt=HOSTILE)
    yield sprinkle({"q": [(0.1, 4), (0.01, 2)], "k": [(0.0, 2)]}, "KL", "bits", name="seven", alt=HOSTILE)


def test_the_same_data_give_the_same_bytes():
    assert list(figures()) == list(figures())


def test_figures_are_valid_svg_in_the_pages_colours_with_ids_of_their_own():
    seen: set[str] = set()
    for svg in figures():
        root = ET.fromstring(svg)
        assert root.tag.endswith("svg") and root.get("viewBox") and root.get("role") == "img"
        assert root.get("aria-label") == HOSTILE
        assert not root.get("width") and not root.get("height")
        ids = {element.get("id") for element in root.iter() if element.get("id")}
        assert not ids & seen
        seen |= ids
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
        assert {a or b for a, b in used} <= ids
        assert "var(--c0)" in svg and "currentColor" in svg
        assert not any(colour in svg for colour in SERIES)
        assert "<metadata" not in svg and "<!DOCTYPE" not in svg


def test_labels_are_text_and_escaped():
    svg = next(figures())
    assert "a $x$ &lt;b&gt;" in svg
    assert "<b>" not in svg
