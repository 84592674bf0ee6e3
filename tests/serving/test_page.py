"""The web page in a real browser, and what keeps it shut."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright
from tests.serving.conftest import listening

from openafm.serving.opening import open_model

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT = 60_000
needs_chromium = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason=f"no {CHROMIUM}: apt-get install chromium (.ci/setup dev does it)"
)


@pytest.fixture(scope="module")
def server(run):
    with listening(open_model(run / "recovery")) as url:
        yield url


@pytest.fixture
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=WAIT)
        yield browser
        browser.close()


def watched(browser, url, asked, **options):
    """An opened page; all it asks for lands in `asked`, and what goes wrong in it."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: asked.append(f"error {error}"))
    page.on("console", lambda message: asked.append(f"console {message.text}"))
    page.goto(url)
    return page


def test_the_page_runs_nothing_but_its_own_script(server):
    response = httpx.get(server)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src 'self'" in policy
    outside = re.findall(r"https?://[^\s'\"]*", response.text)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", response.text)


@needs_chromium
def test_a_message_is_answered_and_the_adapter_switched(server, browser):
    asked = []
    page = watched(browser, server, asked)
    expect(page.locator("#greeting")).to_have_text("Talk to toy-recovery:recovery", timeout=WAIT)
    page.click("summary")
    page.fill("#longest", "20")
    page.fill("#temperature", "1.5")
    page.keyboard.press("Escape")
    page.fill("#say", "<b>some</b> words")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .how")).to_have_count(1, timeout=WAIT)
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
    expect(page.locator(".answer .how")).to_have_count(2, timeout=WAIT)
    expect(page.locator(".answer .who").last).to_have_text("toy-recovery:summary")
    page.click("#anew")
    expect(page.locator("article")).to_have_count(0)
    assert all(entry.startswith((server, "data:")) for entry in asked), asked


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
