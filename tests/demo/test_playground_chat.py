"""The chat of the playground in Chromium: real requests to the gateway of `bff demo`."""

import json
import re
from collections.abc import Iterator

import pytest
from demo.test_playground import opened, started
from playwright.sync_api import Browser, expect
from support.clients import ConsolePage


@pytest.fixture(scope="module")
def page(chromium: Browser) -> Iterator[ConsolePage]:
    with started() as demo, opened(chromium, demo) as page:
        expect(page.locator("body")).to_have_attribute("data-chat", "ready")
        yield page


def press(page: ConsolePage, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def test_answer_streams_beside_what_upstream_sent(page: ConsolePage) -> None:
    state = page.locator("#chats button", has_text="chat-live").locator("small")
    expect(state).to_have_text("open")
    page.get_by_label("Message").fill("How are you?")  # the answer takes five seconds
    press(page, "Send")

    expect(state).to_have_text("answering")
    answer = page.locator("#talk .agent").last
    expect(answer).to_contain_text("You said")
    assert "gateways" not in answer.inner_text(), "it arrives word by word"
    expect(answer).to_contain_text("I know about gateways.")
    removed = page.locator("#sent del")
    expect(removed.first).to_contain_text("public-access-token: eyJ")
    assert not any("text-delta" in line for line in removed.all_inner_texts())
    expect(page.locator("#sent")).to_contain_text("trigger-control: turn-complete")
    expect(state).to_have_text("open")
    assert page.console == []


def test_stop_and_reload_act_on_the_answer(page: ConsolePage) -> None:
    page.get_by_label("Message").fill("a b " * 50)  # an answer of more than 15 seconds
    press(page, "Send")
    expect(page.locator("#talk .agent").last).to_contain_text('said: "a b')
    page.reload()
    answer = page.locator("#talk .agent").last
    expect(answer).to_contain_text('You said: "a b')

    press(page, "Stop")

    expect(answer).to_contain_text("(stopped)")
    expect(page.locator("#chat-result")).to_contain_text("200")
    assert "gateways" not in answer.inner_text()


def test_forgeries_are_refused_or_have_no_effect(page: ConsolePage) -> None:
    press(page, "Pose as Bob")
    expect(page.locator("#speaker")).to_contain_text("ann speaks")
    received = json.loads(page.locator("#received").inner_text())
    assert received["payload"]["metadata"]["user"] == "bob", "a claim that no agent believes"
    answer = page.locator("#talk .agent").last
    expect(answer).to_contain_text("I know about gateways.")
    count = page.locator("#talk .user").count()

    for button, text in (
        ("Bob's token", "403 unauthorized"),
        ("A forged chatId", "400 foreign_chat: The message's chatId is not this session's id"),
    ):
        press(page, button)
        expect(page.locator("#chat-result")).to_contain_text(text)
    assert page.locator("#talk .user").count() == count
    refusal = re.compile(r"Failed to load resource")
    assert [text for text in page.console if not refusal.search(text)] == []
