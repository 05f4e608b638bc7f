"""The playground of `bff demo` in Chromium: its contents, its buttons, its accessibility."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect
from support.clients import SDK, ConsolePage, open_page
from support.world import http, until

PHONE = {"width": 375, "height": 812}
DESK = {"width": 1280, "height": 1000}
DESK_SMALL = {"width": 1280, "height": 800}


@contextmanager
def started() -> Iterator[str]:
    """Start `bff demo` as a process, and yield its address."""
    command = [sys.executable, "-u", "-m", "bff", "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = None
        while address is None:
            address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        try:
            yield address[0]
        finally:
            process.kill()
        process.kill()


@contextmanager
def opened(chromium: Browser, demo: str, **options: Any) -> Iterator[ConsolePage]:
    page = open_page(chromium, demo, **{"viewport": DESK, **options})
    expect(page.locator("#shown")).to_contain_text("chat-live")
    yield page
    page.context.close()


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """A demo for tests that send few requests: all its pages share one rate limit."""
    with started() as demo:
        yield demo


@pytest.fixture
def page(chromium: Browser, demo: str) -> Iterator[ConsolePage]:
    with opened(chromium, demo) as page:
        yield page


@pytest.fixture
def first_page(chromium: Browser) -> Iterator[ConsolePage]:
    """The page of a new demo."""
    with started() as demo, opened(chromium, demo) as page:
        yield page


def test_page_strikes_out_the_hidden_lines(page: ConsolePage) -> None:
    expect(page.locator("#chats button")).to_have_count(3)
    removed = page.locator("#upstream del").all_inner_texts()
    remaining = page.locator("#upstream span").all_inner_texts()

    assert any("basePayload" in line for line in removed)
    assert any("org:acme" in line for line in removed)
    assert any("costCents" in line for line in removed)
    assert any("public:beta" in line for line in remaining)
    assert any("progress" in line for line in remaining)
    shown = page.locator("#shown").inner_text()
    assert not any(hidden in shown for hidden in ("basePayload", "org:acme", "costCents"))
    assert page.console == []


def test_page_tells_first_what_the_gateway_is_for(first_page: ConsolePage) -> None:
    """The gateway and the upstream count the requests of all browsers."""

    def number(id_: str) -> int:
        text = first_page.locator(id_).inner_text()
        return int(text) if text.isdecimal() else 0

    expect(first_page.locator("#removed")).to_have_text(
        "triggerConfig, 2 of 3 tags, metadata.plan, metadata.internal"
    )
    expect(first_page.locator("#refused")).to_have_text("nobody yet")
    until(lambda: number("#browsers") >= 60)  # the first ones cost loads
    first_page.get_by_role("button", name="Polling").click()
    first_page.wait_for_timeout(500)
    totals = first_page.evaluate("fetch('/demo/totals').then((response) => response.json())")
    until(lambda: number("#browsers") == totals["browsers"])
    until(lambda: number("#calls") == totals["upstream"])
    assert 0 < 3 * number("#calls") < number("#browsers")

    url = first_page.url + "api/v1/sessions/chat-live"
    assert {http.get(url).status_code for _ in range(3)} == {401}
    until(lambda: number("#browsers") >= totals["browsers"] + 3)
    expect(first_page.locator("#refused")).to_have_text("3 (3 token_missing)")
    assert number("#calls") == totals["upstream"], "a refusal costs no call"


def test_comparison_is_on_the_first_screen(chromium: Browser, demo: str) -> None:
    for viewport in (PHONE, DESK_SMALL):
        with opened(chromium, demo, viewport=viewport) as page:
            for id_, least in (("#asked", 40), ("#upstream del", 10), ("#shown", 200)):
                assert top(page, id_) + least < viewport["height"], (id_, viewport)
            assert abs(top(page, "#upstream") - top(page, "#shown")) < 20, "side by side"


def top(page: ConsolePage, selector: str) -> float:
    """Measure in the page: its next poll replaces an element that a locator has found."""
    code = "selector => document.querySelector(selector).getBoundingClientRect().y"
    return float(page.evaluate(code, selector))


def test_words_of_a_copy_explain_themselves(first_page: ConsolePage) -> None:
    meaning = first_page.get_by_role("tooltip")
    expect(meaning).to_be_hidden()
    hit = first_page.locator("#how .word")
    expect(hit).to_have_text(re.compile("^hit"))
    rest(first_page)
    point_at_a_miss(first_page)
    expect(meaning).to_contain_text("waited until Trigger.dev had sent one")
    first_page.keyboard.press("Escape")
    expect(meaning).to_be_hidden()

    hit.focus()
    expect(meaning).to_contain_text("gateway")
    assert hit.get_attribute("aria-describedby") == meaning.get_attribute("id")
    first_page.keyboard.press("Tab")
    expect(meaning).to_be_hidden()


def test_new_rows_do_not_move_the_word_under_the_pointer(first_page: ConsolePage) -> None:
    meaning, answers = first_page.get_by_role("tooltip"), first_page.locator("#answers tr")
    expect(first_page.locator("#how .word")).to_have_text(re.compile("^hit"))
    rest(first_page)
    point_at_a_miss(first_page)
    expect(meaning).to_contain_text("waited until Trigger.dev had sent one")
    before = answers.all_inner_texts()

    left = first_page.locator("#meter").evaluate("meter => meter.value")
    for _ in range(2):
        first_page.locator("#again").evaluate("button => button.click()")
    until(lambda: first_page.locator("#meter").evaluate("meter => meter.value") == left - 2)
    assert answers.all_inner_texts() == before
    expect(meaning).to_be_visible()

    first_page.mouse.move(1, 1)
    expect(meaning).to_be_hidden()
    expect(answers).to_have_count(len(before) + 2)


def rest(page: ConsolePage) -> None:
    """Stop the polls, whose rows move the others, and wait for the answer to the last one."""
    page.get_by_role("button", name="Polling").click()
    turn = page.locator("body").get_attribute("data-turn") or ""
    expect(page.locator("body")).not_to_have_attribute("data-turn", turn)


def point_at_a_miss(page: ConsolePage) -> None:
    page.locator("#answers .word", has_text="fwd=miss").last.hover()


def test_page_polls_and_shows_the_age_of_each_answer(first_page: ConsolePage) -> None:
    expect(first_page.locator("#answers")).to_contain_text("fwd=miss")
    before = first_page.locator("#shown").inner_text()

    expect(first_page.locator("#answers tr")).not_to_have_count(2)
    expect(first_page.locator("#shown")).not_to_have_text(before)
    expect(first_page.locator("#how")).to_have_text(re.compile(r"(hit|fwd).*, \d+ s old"))
    # The list has no poll: its events come as its sessions change.
    how = first_page.locator("#list-how")
    expect(how).to_have_text(re.compile(r"event stream, last event at [\d:]+"))
    shown = how.inner_text()
    expect(how).not_to_have_text(shown)
    expect(first_page.locator("#answers tr", has_text="the chat list")).to_have_count(1)
    assert first_page.console == []


def test_page_shows_the_rate_limit_and_its_reset(first_page: ConsolePage) -> None:
    expect(first_page.locator("#left")).to_have_text(re.compile(r"\d+ of 60 left, reset in \d+ s"))
    before = first_page.locator("#meter").evaluate("meter => meter.value")

    first_page.get_by_role("button", name="20 at once").click()

    said = first_page.get_by_role("status")
    expect(said).to_contain_text("of 20 answered")
    counts = re.search(
        r"browsers asked (\d+) times, Trigger.dev was asked (once|\d+)", said.inner_text()
    )
    assert counts is not None
    assert int(counts[1]) >= 20
    expect(first_page.locator("#answers td:last-child").first).to_have_text(re.compile(r"\d+ ms"))
    assert first_page.locator("#meter").evaluate("meter => meter.value") <= max(0, before - 20)


def test_button_shows_its_refusal(page: ConsolePage) -> None:
    for button, text in (
        ("A wrong token", "401 token_invalid"),
        ("An expired token", "401 token_expired"),
        ("A chat of Bob", "403 unauthorized"),
        ("Another origin", "Blocked"),
    ):
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("status")).to_contain_text(text)
    # The browser logs each refusal; the page logs nothing.
    refusal = re.compile(r"Failed to load resource|blocked by CORS policy")
    assert [text for text in page.console if not refusal.search(text)] == []


def test_outage_button_makes_copies_stale_until_pressed_again(
    chromium: Browser, first_page: ConsolePage
) -> None:
    button = first_page.get_by_role("button", name="Upstream outage")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")

    how = first_page.locator("#how")
    # A copy is fresh, then stale, for seven seconds.
    expect(how).to_have_text(re.compile(r"stale-if-error, \d+ s old"))

    with opened(chromium, first_page.url) as other:  # another tab knows of the outage, and ends it
        others = other.get_by_role("button", name="Upstream outage")
        expect(others).to_have_attribute("aria-pressed", "true")
        others.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(how).not_to_contain_text("stale-if-error")


def test_page_outlives_its_tokens_and_the_demo(chromium: Browser, demo: str) -> None:
    def expire(route: Route) -> None:
        answer = route.fetch()
        tokens = answer.json()
        route.fulfill(response=answer, json=tokens | {"ann": tokens["expired"]})

    page = open_page(chromium, "about:blank", viewport=DESK)
    page.route("**/demo/tokens", expire, times=1)
    page.goto(demo)
    expect(page.locator("#shown")).to_contain_text('"externalId": "chat-live"')

    polls = re.compile("/api/v1/sessions/chat-live")
    page.route(polls, lambda route: route.abort())
    expect(page.get_by_role("status")).to_contain_text("No answer")
    page.unroute(polls)
    expect(page.get_by_role("status")).to_contain_text("answers again")
    page.context.close()


def test_page_works_with_the_keyboard_alone(page: ConsolePage) -> None:
    page.locator("body").press("Tab")
    first = page.evaluate("document.activeElement.textContent")
    expect(page.locator("#list-how")).to_contain_text("event stream")
    for _ in range(3):
        page.keyboard.press("Tab")
    fourth = page.evaluate("document.activeElement.id")
    page.keyboard.press("Space")

    assert first.startswith("chat-live")
    assert fourth == "poll"
    expect(page.locator("#poll")).to_have_attribute("aria-pressed", "false")
    page.locator("#chats button").nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text("chat-done")
    expect(page.locator("#shown")).to_contain_text("the user left")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is visible"


def test_page_passes_axe_and_does_not_overflow(chromium: Browser) -> None:
    axe = (SDK / "node_modules/axe-core/axe.min.js").read_text()
    with started() as demo:
        for scheme, viewport in product(("light", "dark"), (PHONE, DESK)):
            with opened(chromium, demo, viewport=viewport, color_scheme=scheme) as page:
                page.get_by_role("button", name="A wrong token").click()
                expect(page.get_by_role("status")).to_contain_text("token_invalid")
                page.evaluate(axe)

                results = page.evaluate("axe.run()")

                broken = [(v["id"], [n["html"] for n in v["nodes"]]) for v in results["violations"]]
                assert broken == [], (scheme, viewport)
                assert len(results["passes"]) > 15
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= viewport["width"]


def test_page_loads_and_runs_nothing_from_elsewhere(demo: str) -> None:
    response = http.get(demo)

    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    names = ("html", "css", "js", "svg")
    files = [response.text, *(http.get(f"{demo}/demo/playground.{n}").text for n in names[1:])]
    addresses = {a for text in files for a in re.findall(r"(?:https?:)?//[\w.]+", text)}
    assert addresses <= {"http://www.w3.org"}, "the name of a file format; no browser loads it"
