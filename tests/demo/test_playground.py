"""The page of `bff demo` in Chromium: what it shows, and that everyone can use it."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import pytest
from playwright.sync_api import Browser, Page, expect
from support.clients import SDK, open_page
from support.world import http

PHONE = {"width": 375, "height": 812}
DESK = {"width": 1280, "height": 1000}


@contextmanager
def started() -> Iterator[str]:
    """`bff demo` in a process of its own: its address."""
    command = [sys.executable, "-u", "-m", "bff", "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = None
        while address is None:
            address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        yield address[0]
        process.send_signal(signal.SIGINT)


@contextmanager
def opened(chromium: Browser, demo: str, **options: object) -> Iterator[Page]:
    page = open_page(chromium, demo, **{"viewport": DESK, **options})
    expect(page.locator("#shown")).to_contain_text("chat-live")
    yield page
    page.context.close()


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """For the few who ask for little: all pages share a rate limit."""
    with started() as demo:
        yield demo


@pytest.fixture
def page(chromium: Browser, demo: str) -> Iterator[Page]:
    with opened(chromium, demo) as page:
        yield page


@pytest.fixture
def first_page(chromium: Browser) -> Iterator[Page]:
    """Of a demo that nobody has used."""
    with started() as demo, opened(chromium, demo) as page:
        yield page


def test_one_sees_what_the_browser_gets_and_what_it_does_not(page: Page) -> None:
    expect(page.locator("#chats button")).to_have_count(3)
    removed = page.locator("#held del").all_inner_texts()
    kept = page.locator("#held span").all_inner_texts()

    assert any("basePayload" in line for line in removed)
    assert any("org:acme" in line for line in removed)
    assert any("costCents" in line for line in removed)
    assert any("public:beta" in line for line in kept)
    assert any("progress" in line for line in kept)
    shown = page.locator("#shown").inner_text()
    assert not any(hidden in shown for hidden in ("basePayload", "org:acme", "costCents"))
    assert page.console == []


def test_it_is_live_and_tells_how_old_each_answer_is(first_page: Page) -> None:
    expect(first_page.locator("#answers")).to_contain_text("fwd=miss")
    before = first_page.locator("#shown").inner_text()

    expect(first_page.locator("#answers tr")).not_to_have_count(2)
    expect(first_page.locator("#shown")).not_to_have_text(before)
    expect(first_page.locator("#how")).to_have_text(re.compile(r"(hit|fwd).*, \d+ s old"))
    assert first_page.console == []


def test_the_rate_limit_runs_down_and_tells_when_it_returns(first_page: Page) -> None:
    expect(first_page.locator("#left")).to_have_text(re.compile(r"\d+ of 60 left, all .* in \d+ s"))
    before = first_page.locator("#meter").evaluate("meter => meter.value")

    first_page.get_by_role("button", name="20 at once").click()

    expect(first_page.get_by_role("status")).to_contain_text("of 20 answered")
    assert first_page.locator("#meter").evaluate("meter => meter.value") <= max(0, before - 20)


def test_each_button_shows_what_it_says(page: Page) -> None:
    for button, said in (
        ("A wrong token", "401 token_invalid"),
        ("An expired token", "401 token_expired"),
        ("A chat of someone else", "403 unauthorized"),
        ("Another origin", "Blocked"),
    ):
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("status")).to_contain_text(said)
    # What the browser itself says of a refusal; nothing of ours.
    ours = re.compile(r"Failed to load resource|blocked by CORS policy")
    assert [said for said in page.console if not ours.search(said)] == []


def test_an_outage_ages_the_copies_and_ends(first_page: Page) -> None:
    button = first_page.get_by_role("button", name="Upstream outage")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")

    how, seconds = first_page.locator("#how"), 20_000  # a copy is fresh, then stale, for seven
    expect(how).to_have_text(re.compile(r"stale-if-error, \d+ s old"), timeout=seconds)

    button.click()
    expect(how).not_to_contain_text("stale-if-error")


def test_the_keyboard_is_enough(page: Page) -> None:
    page.locator("body").press("Tab")
    first = page.evaluate("document.activeElement.textContent")
    for _ in range(3):
        page.keyboard.press("Tab")
    on = page.evaluate("document.activeElement.id")
    page.keyboard.press("Space")

    assert first.startswith("chat-live")
    assert on == "poll"
    expect(page.locator("#poll")).to_have_attribute("aria-pressed", "false")
    page.locator("#chats button").nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text("chat-done")
    expect(page.locator("#shown")).to_contain_text("the user left")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "one sees where one is"


def test_axe_finds_nothing_and_nothing_overflows(chromium: Browser) -> None:
    axe = (SDK / "node_modules/axe-core/axe.min.js").read_text()
    with started() as demo:
        for scheme, viewport in product(("light", "dark"), (PHONE, DESK)):
            with opened(chromium, demo, viewport=viewport, color_scheme=scheme) as page:
                page.get_by_role("button", name="A wrong token").click()
                expect(page.get_by_role("status")).to_contain_text("token_invalid")
                page.evaluate(axe)

                found = page.evaluate("axe.run()")

                broken = [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]]
                assert broken == [], (scheme, viewport)
                assert len(found["passes"]) > 15
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= viewport["width"]


def test_nothing_but_the_page_itself_may_run(demo: str) -> None:
    response = http.get(demo)

    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    names = ("html", "css", "js", "svg")
    files = [response.text, *(http.get(f"{demo}/demo/playground.{n}").text for n in names[1:])]
    addresses = {a for text in files for a in re.findall(r"(?:https?:)?//[\w.]+", text)}
    assert addresses <= {"http://www.w3.org"}, "the name of a file format, asked of nobody"
