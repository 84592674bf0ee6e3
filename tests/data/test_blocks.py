import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resiliparse.parse.html import HTMLTree

from openafm.data import blocks
from openafm.data.blocks import Boxes, read_blocks, read_blocks_portable

MARKUP = [
    *"<>/=\"'& \n\t\x1e\xa0\u2003é好",
    *("<p>", "</p>", '<div class="nav2 Nav" id="a-3">', "</div>", "</section>", "<x-y>", "</x-y>"),
    *('<section hidden="">', '<p itemprop="x" role=\'y\' class="z">', '<div style="display: none">'),
    *("<table>", "</table>", "<tr>", "</tr>", "<td>", "</td>", "<th>", "</th>", '<td class="postbody">', "<caption>"),
    *("<ul>", "</ul>", "<ol>", "</ol>", "<li>", "</li>", "<h2>", "</h2>", "<pre>", "</pre>", "<dl>", "<dt>", "<dd>"),
    *('<a href="/">', "</a>", "#", "[edit]", "¶", "<br>", "<hr>", '<img class="latex" alt="\\alpha &lt; Ω">', "<img>"),
    *("<script>", "</script>", '<script x="1">if (a <b) </p>', "<noscript>", "</noscript>", "<svg>", "</svg>"),
    *("<!--", "-->", "<!-->", "<!doctype html>", "</caption>", "&nbsp;", "&lt;", "&amp;lt;", "&"),
    *('<span class="LineNos">', '<b href="lineno" id="x-lineno">', '<i class="a" STYLE="DISPLAY: NONE">', "</span>"),
    *("two words", "Some words of a sentence, long enough to be a paragraph. " * 3),
]  # fmt: skip
page = st.lists(st.sampled_from(MARKUP), max_size=60).map("".join)


def same(html: str) -> bool:
    (ours, boxes), (theirs, others) = read_blocks(html), read_blocks_portable(html)
    assert ours == theirs
    return columns(boxes) == columns(others)


def columns(boxes: Boxes) -> tuple[list[int], list[str], list[float]]:
    return boxes.parent, boxes.tag, boxes.weight


@pytest.mark.skipif(blocks._blocks is None, reason="installed without a compiler")
@settings(max_examples=400, deadline=None)
@given(page, st.text(max_size=20))
def test_the_native_sweep_gives_what_the_portable_one_gives(html: str, rest: str) -> None:
    assert same(html + rest)
    tree = HTMLTree.parse(html + rest)
    assert tree.body is None or same(tree.body.html)


def test_a_page_is_read_up_to_the_limit_of_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MAX_TOKENS", 5)
    html = "<body><p>one</p><p>two</p><p>three</p></body>"
    assert [block.text for block in read_blocks(html)[0]] == ["one", "two"]
    assert same(html)


def test_a_failing_callback_is_an_error_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> str:
        raise ValueError("broken")

    monkeypatch.setattr(blocks, "image_formula", fail)
    with pytest.raises(ValueError, match="broken"):
        read_blocks('<p>text<img class="latex"></p>')


def test_cells_deep_within_a_table_cost_no_climb() -> None:
    depth = 20_000
    html = "<table><tr><td>" + "<div>x" * depth + "</div>" * depth + "</td><td>y</td></tr></table>"
    found, boxes = read_blocks(html)
    assert [block.kind for block in found][:1] == ["p"] and len(found) == depth + 1 and len(boxes) == depth + 5
    assert same(html)
