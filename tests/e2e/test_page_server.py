"""The chat page in headless Chromium, against `gguf-engine serve` with the bundled model."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browser_samples import ENTER, Page
from page_samples import RealServer, serving

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.e2e, pytest.mark.browser]


@pytest.fixture(scope="module")
def real() -> Iterator[RealServer]:
    with serving("haiku") as server:
        yield server


def test_the_real_server_answers(chromium: Chrome, real: RealServer) -> None:
    page = Page(chromium, real.url)
    page.shows("#model", "haiku")
    page.settings(seed="1", max_tokens="40", top_p="0.9", min_p="0.01", top_k="40", repeat_penalty="1.1")
    page.ask("an old pond")
    page.ask("a frog")
    assert all(page.messages())
    assert re.match(
        r"\d+ tokens? · [\d.]+ tokens/s · \d+ in the prompt \(\d+ cached\)", page.text(".stats")
    )
    assert page.all(".message .problem") == []
    assert page.complaints() == []
    assert [url for url in page.requested() if not url.startswith((real.url, "data:"))] == []


def test_the_real_server_refuses_with_a_sentence(chromium: Chrome, real: RealServer) -> None:
    page = Page(chromium, real.url)
    page.shows("#model", "haiku")
    page.press("#new-chat")
    page.settings(top_p="0")
    page.ask("an old pond")
    page.settings(top_p="1")
    assert re.fullmatch(r"top_p is 0\b.*\.", page.text(".message .problem"))


@pytest.mark.skipif(sys.platform != "linux", reason="child processes are found in Linux's /proc")
def test_a_killed_engine_is_a_sentence_and_serves_again(chromium: Chrome, real: RealServer) -> None:
    page = Page(chromium, real.url)
    page.shows("#model", "haiku")
    page.press("#new-chat")
    (engine,) = real.children()
    os.kill(engine, signal.SIGSTOP)
    page.type("an old pond", ENTER)
    page.until(lambda: page.all(".assistant.waiting"))
    os.kill(engine, signal.SIGKILL)
    page.ended()
    assert "engine" in page.text(".message .problem")
    page.until(lambda: page.text("#status") == "")
    page.press(".actions button", "Try again")
    page.ended()
    page.until(lambda: page.all(".message .problem") == [])
    assert page.messages()[-1]
