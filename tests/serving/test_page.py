"""The web page in a real browser, and what keeps it shut."""

import random
import re
from importlib import resources

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from tests.browser import WAIT, needs_chromium, watched
from tests.serving.conftest import listening
from tests.serving.test_adapters import store_of

from openafm.serving.opening import open_model


@pytest.fixture(scope="module")
def server(run):
    with listening(open_model(run / "recovery")) as url:
        yield url


def ready(browser, server, **options):
    """A page that has its models, and what it asked for."""
    asked = []
    page = watched(browser, server, asked, **options)
    expect(page.locator("#greeting")).to_have_text("Talk to toy-recovery:recovery", timeout=WAIT)
    return page, asked


def settings(page, **values):
    page.click("#settings summary")
    for name, value in values.items():
        page.fill(f"#{name}", str(value))
    page.keyboard.press("Escape")


def view(page, name):
    page.click(f"nav button[data-view={name}]")


def answered(page, place, count):
    expect(page.locator(f"{place} .answer .how")).to_have_count(count, timeout=WAIT)


FILES = [path.name for path in resources.files("openafm.serving").joinpath("page").iterdir()]


@pytest.mark.parametrize("name", FILES)
def test_the_page_runs_nothing_but_its_own_files(server, name):
    response = httpx.get(f"{server}/{name}" if name != "page.html" else server)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src 'self'" in policy
    outside = re.findall(r"https?://[^\s'\"]+", response.text)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", response.text)
    if name == "page.html":
        assert not re.search(r"<style|<script>| style=| on[a-z]+=", response.text)
    assert response.headers["content-type"].split(";")[0].rpartition("/")[2] in ("html", "css", "javascript")


@needs_chromium
def test_a_message_is_answered_and_the_adapter_switched(server, browser):
    page, asked = ready(browser, server)
    settings(page, longest=20, temperature=1.5)
    page.fill("#say", "<b>some</b> words")
    page.keyboard.press("Enter")
    answered(page, "#talk", 1)
    assert page.locator(".mine .text").text_content() == "<b>some</b> words"  # shown, not obeyed
    told = page.locator(".answer .how").text_content() or ""
    assert page.locator(".answer .text").text_content() or "empty answer" in told  # random weights may end at once
    expect(page.locator(".answer .who")).to_have_text("toy-recovery:recovery")
    page.select_option("#model", "toy-recovery:summary")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.fill("#say", "again")
        page.click("#send")
    body = sent.value.post_data_json
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("toy-recovery:summary", 20, 1.5)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    answered(page, "#talk", 2)
    expect(page.locator(".answer .who").last).to_have_text("toy-recovery:summary")
    page.click("#anew")
    expect(page.locator("article")).to_have_count(0)
    assert all(entry.startswith((server, "data:")) for entry in asked), asked


@needs_chromium
def test_the_adapters_size_and_swap_and_the_servers_memory_are_shown(run, browser, tmp_path):
    store = store_of(tmp_path, ["mail"])
    with listening(open_model(run / "recovery"), adapters=tmp_path) as url:
        page, _ = ready(browser, url)
        expect(page.locator("#memory")).to_contain_text("MB", timeout=WAIT)
        size = f"{store.card('mail')['bytes'] / 1e6:.2f} MB"
        expect(page.locator("#model option", has_text="mail")).to_have_text(f"mail · {size}")
        page.select_option("#model", "toy-recovery:mail")
        expect(page.locator("#size")).to_have_text(f"{size}, on disk")
        expect(page.locator("#swap")).to_have_text("not measured yet")
        page.fill("#say", "words")
        with page.expect_response("**/v1/chat/completions") as got:
            page.keyboard.press("Enter")
        took = float(re.search(r"adapter;dur=([\d.]+)", got.value.headers["server-timing"])[1])
        answered(page, "#talk", 1)
        expect(page.locator("#size")).to_have_text(f"{size}, in memory")
        shown = page.locator("#swap").text_content()
        assert shown == "under 0.1 ms" if took < 0.1 else float(shown.split()[0]) == pytest.approx(took, rel=0.06)
        expect(page.locator(".answer .how")).to_contain_text(f"adapter ready in {shown}")
        page.select_option("#model", "toy-recovery")
        expect(page.locator("#size")).to_have_text("none")


@needs_chromium
def test_settings_are_sent_and_kept(server, opened, browser):
    page, _ = ready(browser, server)
    settings(page, seed=7, longest=5, system="Be brief.")
    native = "top_p" in opened.engine.options
    if native:
        settings(page, top_p=0.9, top_k=20, min_p=0.01, repetition_penalty=1.1)
    for name in ("top_p", "top_k", "min_p", "repetition_penalty"):  # where they are not carried out they are greyed
        assert page.locator(f"#{name}").is_enabled() == native
    page.reload()
    expect(page.locator("#greeting")).to_have_text("Talk to toy-recovery:recovery", timeout=WAIT)
    with page.expect_request("**/v1/chat/completions") as sent:
        page.fill("#say", "words")
        page.keyboard.press("Enter")
    body = sent.value.post_data_json
    assert (body["seed"], body["max_tokens"], body["messages"][0]["content"]) == (7, 5, "Be brief.")
    if native:
        assert [body[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty")] == [0.9, 20, 0.01, 1.1]
    answered(page, "#talk", 1)


@needs_chromium
def test_chats_are_kept_in_the_browser_until_deleted(server, browser):
    page, _ = ready(browser, server)
    settings(page, longest=5)
    for count, text in enumerate(("first words", "<i>second</i> words"), 1):
        page.fill("#say", text)
        page.keyboard.press("Enter")
        answered(page, "#talk", 1)
        page.click("#anew")
        expect(page.locator("#past .past")).to_have_count(count)
    page.reload()
    page.click("#history summary")
    assert page.locator("#past .past").all_text_contents() == ["<i>second</i> words", "first words"]
    page.click("#past .past >> nth=1")
    assert page.locator(".mine .text").all_text_contents() == ["first words"]
    with page.expect_request("**/v1/chat/completions") as sent:
        page.fill("#say", "more")
        page.keyboard.press("Enter")
    assert [message["role"] for message in sent.value.post_data_json["messages"]] == ["user", "assistant", "user"]
    answered(page, "#talk", 2)
    page.click("#history summary")
    expect(page.locator("#past .past").first).to_have_text("first words")  # the one used last
    page.click("#past .gone >> nth=0")
    assert page.locator("#past .past").all_text_contents() == ["<i>second</i> words"]
    page.click("#forget")
    assert page.evaluate("() => localStorage.getItem('openafm-history')") is None


@needs_chromium
def test_models_answer_side_by_side(server, browser):
    page, _ = ready(browser, server)
    settings(page, longest=8)
    view(page, "compare")
    assert [select.input_value() for select in page.locator("#rivals select").all()] == [
        "toy-recovery", "toy-recovery:recovery", "toy-recovery:summary"
    ]  # fmt: skip
    page.fill("#say", "some words")
    page.keyboard.press("Enter")
    answered(page, "#rounds", 3)
    shown = page.locator(".round .who").all_text_contents()
    assert shown == ["toy-recovery", "toy-recovery:recovery", "toy-recovery:summary"]
    page.select_option("#rivals select >> nth=2", "")
    page.fill("#say", "again")
    page.keyboard.press("Enter")
    answered(page, "#rounds", 5)


@needs_chromium
def test_where_there_is_one_model_compare_says_so(run, browser):
    with listening(open_model(run / "sft")) as url:
        page = watched(browser, url, [])
        expect(page.locator("#greeting")).to_have_text("Talk to toy-sft", timeout=WAIT)
        view(page, "compare")
        expect(page.locator("#contest")).to_contain_text("one model only")
        expect(page.locator("#rivals")).to_be_hidden()
        page.fill("#say", "words")
        expect(page.locator("#send")).to_be_disabled()


@needs_chromium
def test_a_mail_is_summed_up(server, browser):
    page, _ = ready(browser, server)
    settings(page, longest=8)
    view(page, "mail")
    page.select_option("#model", "toy-recovery:summary")
    expect(page.locator("#reader")).to_have_text("toy-recovery:summary")
    mail = page.locator("#letter").input_value()
    assert mail.startswith("From: ") and "\nSubject: " in mail
    with page.expect_request("**/v1/chat/completions") as sent:
        page.click("#sum")
    assert sent.value.post_data_json["messages"][-1]["content"] == f"Sum up: {mail}"
    answered(page, "#gist", 1)
    page.click("#sample")
    assert page.locator("#letter").input_value() != mail


MARKDOWN = {
    "a **b** *c* ~~d~~ `e*f*`": "<p>a <strong>b</strong> <em>c</em> <del>d</del> <code>e*f*</code></p>",
    "***both*** and snake_case_name": "<p><strong><em>both</em></strong> and snake_case_name</p>",
    "2 * 3 * 4 and \\*no\\*": "<p>2 * 3 * 4 and *no*</p>",
    "# One\n## Two\ntext\n---": "<h3>One</h3><h3>Two</h3><p>text</p><hr>",
    "- a\n- b\n  1. c\n  2. d\n\nend": "<ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li></ul><p>end</p>",
    "3. three\n4. four": '<ol start="3"><li>three</li><li>four</li></ol>',
    "> said\n> twice": "<blockquote><p>said<br>twice</p></blockquote>",
    "<img src=x onerror=alert(1)>": "<p>&lt;img src=x onerror=alert(1)&gt;</p>",
    "[a](javascript:alert(1)) ![b](data:text/html,x)": "<p>[a](javascript:alert(1)) ![b](data:text/html,x)</p>",
    "a &amp; b": "<p>a &amp;amp; b</p>",
}


@needs_chromium
def test_markdown_becomes_elements_and_never_markup(server, browser):
    page, asked = ready(browser, server)
    render = """async text => {
        const {show} = await import('/markdown.js'), place = document.createElement('div');
        show(place, text);
        return place.innerHTML;
    }"""
    for text, html in MARKDOWN.items():
        assert page.evaluate(render, text) == html
    code = page.evaluate(render, "```html\n<b>x</b>\n\n# no heading\n```\nafter")
    assert "<code>&lt;b&gt;x&lt;/b&gt;\n\n# no heading</code>" in code and code.endswith("<p>after</p>")
    assert "<code>still open" in page.evaluate(render, "```\nstill open")
    link = page.evaluate(render, "see [it](https://example.org/a) or https://example.org/b.")
    assert link.count('rel="noopener noreferrer nofollow"') == 2 and 'href="https://example.org/b"' in link
    table = page.evaluate(render, "| a | b |\n|---|:-:|\n| 1 | `2` |")
    assert "<th>a</th><th>b</th>" in table and "<td>1</td><td><code>2</code></td>" in table
    assert all(entry.startswith((server, "data:")) for entry in asked), asked


@needs_chromium
def test_markdown_takes_any_text_and_grows_as_if_shown_at_once(server, browser):
    page, asked = ready(browser, server)
    draw = random.Random(4)
    pieces = "** * _ ` ``` ~~ --- \\ [ ]( ) |---| <script> &lt; https://e.org a".split()
    pieces += ["b c", "\n", "\n\n", "- ", "1. ", "> ", "# ", "| ", "  ", "    "]
    texts = ["".join(draw.choices(pieces, k=draw.randrange(1, 40))) for _ in range(300)]
    texts += [piece * 20_000 for piece in ("**a ", "> ", "- ", "[", "`", "_a", "* a\n", "|-")]
    bad = page.evaluate(
        """async texts => {
        const {show} = await import('/markdown.js'), bad = [];
        const tags = 'P H3 H4 H5 UL OL LI BLOCKQUOTE HR BR PRE CODE FIGURE FIGCAPTION BUTTON STRONG EM DEL A DIV '
            + 'TABLE THEAD TBODY TR TH TD';
        for (const text of texts) {
            const whole = document.createElement('div'), grown = document.createElement('div');
            show(whole, text);
            for (let end = 1; text.length < 1000 && end <= text.length; end += 7) show(grown, text.slice(0, end));
            show(grown, text);
            const alien = [...whole.querySelectorAll('*')].some(one => !tags.split(' ').includes(one.tagName));
            if (alien || whole.innerHTML !== grown.innerHTML) bad.push(text);
        }
        return bad;
    }""",
        texts,
    )
    assert not bad and not any(entry.startswith("error") for entry in asked)


@needs_chromium
@pytest.mark.parametrize(
    "options",
    [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}],
    ids=["light", "dark", "phone"],
)
def test_every_view_is_accessible(server, browser, options):
    page, _ = ready(browser, server, **options)
    settings(page, longest=8)
    found = []
    for name, act in (("chat", "#send"), ("compare", "#send"), ("mail", "#sum")):
        view(page, name)
        if act == "#send":
            page.fill("#say", "words")
        page.click(act)
        expect(page.locator(f"main > section#{name} .how").first).to_be_visible(timeout=WAIT)
        expect(page.locator(".working")).to_have_count(0)
        found += Axe().run(page).response["violations"]
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    for panel in ("#history", "#settings"):
        page.click(f"{panel} summary")
        found += Axe().run(page).response["violations"]
        page.keyboard.press("Escape")
    assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]


@needs_chromium
def test_the_keyboard_reaches_everything(server, browser):
    page, _ = ready(browser, server)
    settings(page, longest=4)
    page.focus("#say")
    seen = []
    for _ in range(10):  # once around, the browser's own controls between
        page.keyboard.press("Tab")
        seen.append(page.evaluate("() => document.activeElement.id || document.activeElement.textContent.trim()"))
    assert seen[1:] == "Skip to the conversation,Chat,Compare,Mail,model,anew,History,Settings,say".split(",")
    page.keyboard.type("words")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    answered(page, "#talk", 1)
    assert page.locator(".answer").get_attribute("aria-busy") is None
    expect(page.locator("#status")).to_have_text("Answer finished")


@needs_chromium
def test_text_appears_while_it_is_made_and_escape_stops_it(gated, browser):
    engine, url = gated
    page = watched(browser, url, [])
    expect(page.locator("#greeting")).to_have_text("Talk to toy-sft", timeout=WAIT)
    page.fill("#say", "words")
    page.keyboard.press("Enter")
    expect(page.locator(".working")).to_have_count(1)
    seen = 0
    while not (seen := len(page.locator(".answer .text").text_content() or "")):
        engine.permits.release()
    assert page.locator(".working").count() == 1 and page.locator(".how").count() == 0
    page.keyboard.press("Escape")
    expect(page.locator(".answer .how")).to_contain_text("stopped", timeout=WAIT)
    assert len(page.locator(".answer .text").text_content() or "") >= seen
    expect(page.locator("#send")).to_have_attribute("aria-label", "Send")


@needs_chromium
def test_a_key_is_asked_for_and_the_page_fits_a_phone(run, browser):
    with listening(open_model(run / "teacher"), key="s3cret") as url:
        page = watched(browser, url, [], viewport={"width": 390, "height": 844}, color_scheme="dark")
        expect(page.locator("#greeting")).to_have_text("This server asks for a key", timeout=WAIT)
        page.fill("#key", "s3cret")
        page.keyboard.press("Enter")
        expect(page.locator("#greeting")).to_have_text("Give toy-teacher a beginning", timeout=WAIT)
        with page.expect_request("**/v1/completions"):  # a base model continues text
            page.fill("#say", "some words")
            page.click("#send")
        expect(page.locator(".answer .how")).to_have_count(1, timeout=WAIT)
        assert page.evaluate("() => document.documentElement.scrollWidth") == 390
