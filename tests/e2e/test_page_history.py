"""The chat page in headless Chromium: what the browser keeps, exports and deletes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser_samples import ENTER, Page
from page_samples import PageServer, begin_and_wait

pytestmark = [pytest.mark.e2e, pytest.mark.browser]


def test_conversations_are_there_after_a_reload(page: Page) -> None:
    page.settings(system="Be brief.")
    page.ask("About ponds")
    page.press("#new-chat")
    page.ask("About frogs")
    page.browser.refresh()
    assert [each.text for each in page.all("#conversations .open")] == ["About frogs", "About ponds"]
    assert page.messages() == ["About frogs", "Hello there"]
    assert page.text(".stats").startswith("2 tokens")
    page.press("#conversations li:last-child .open")
    assert page.messages() == ["About ponds", "Hello there"]
    assert page.run("return document.getElementById('system').value") == "Be brief."


def test_a_page_that_closes_mid_answer_keeps_its_part(page: Page, page_server: PageServer) -> None:
    page_server.answer = begin_and_wait
    page.type("Hi", ENTER)
    page.shows(".assistant .text", "Begun")
    page.browser.refresh()
    assert page.messages() == ["Hi", "Begun"]
    assert page.text(".stats") == "stopped"


def test_a_conversation_is_deleted_on_the_second_press(page: Page) -> None:
    page.ask("About ponds")
    page.press("#conversations .delete")
    assert page.text("#conversations .delete") == "Delete?"
    page.press("#conversations .delete")
    assert page.all("#conversations li") == []
    page.browser.refresh()
    assert page.messages() == []


def test_a_conversation_deleted_while_it_is_answered_stays_deleted(
    page: Page, page_server: PageServer
) -> None:
    page_server.answer = begin_and_wait
    page.type("Hi", ENTER)
    page.shows(".assistant .text", "Begun")
    page.press("#conversations .delete")
    page.press("#conversations .delete")
    assert page_server.gone.wait(30)
    page_server.release.set()
    page.ask("Other")
    assert [each.text for each in page.all("#conversations .open")] == ["Other"]


def test_another_conversation_stops_the_answer_and_keeps_its_part(
    page: Page, page_server: PageServer
) -> None:
    page_server.answer = begin_and_wait
    page.type("Hi", ENTER)
    page.shows(".assistant .text", "Begun")
    page.press("#new-chat")
    assert page_server.gone.wait(30)
    assert page.messages() == []
    page.until(lambda: "Begun" in page.run("return JSON.stringify(localStorage)"))
    page.press("#conversations .open")
    assert page.messages() == ["Hi", "Begun"]


def test_conversations_are_exported_as_json(page: Page, tmp_path: Path) -> None:
    page.ask("About ponds")
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.press("#export")
    page.until(lambda: list(tmp_path.glob("*.json")))
    (conversation,) = json.loads((tmp_path / "conversations.json").read_text())["conversations"]
    assert [each["content"] for each in conversation["messages"]] == ["About ponds", "Hello there"]


def test_a_full_storage_is_a_sentence(page: Page) -> None:
    page.run("localStorage.setItem('filler', 'x'.repeat(5 * 1024 * 1024 - 200))")
    page.ask("x" * 500)
    page.shows("#notice", "The browser has no room to keep this")


def test_a_damaged_conversation_is_named(page: Page) -> None:
    page.run("localStorage.setItem('gguf-engine.chat.x', '{\"messages\": 3}')")
    page.browser.refresh()
    page.shows("#notice", "A stored conversation is damaged")
    page.ask("Hi")
    assert page.messages() == ["Hi", "Hello there"]
