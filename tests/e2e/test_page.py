"""The chat page in headless Chromium: asking, stopping, settings, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_samples import CONTROL, ENTER, ESCAPE, NONE, Page
from page_samples import Answers, Handler, PageServer, begin_and_wait

pytestmark = [pytest.mark.e2e, pytest.mark.browser]


def breaks_off(handler: Handler) -> None:
    handler.begin()
    handler.pieces("Half an")
    handler.event({"error": {"message": "the engine died (signal 9) and is being started again"}})


def is_cut(handler: Handler) -> None:
    handler.begin()
    handler.pieces("Half an")


def says_no_json(handler: Handler) -> None:
    handler.begin()
    handler.event("<html>")


def test_an_answer_is_shown_while_it_is_written(page: Page, page_server: PageServer) -> None:
    page_server.answer = begin_and_wait
    page.type("Hi", ENTER)
    page.shows(".assistant .text", "Begun")
    assert page.one("#stop").is_displayed()
    assert not page_server.release.is_set()
    page_server.release.set()
    page.ended()
    assert page.messages() == ["Hi", "Begun"]
    assert page.one("#send").is_displayed()


def test_counts_and_speed_stand_under_an_answer(page: Page) -> None:
    page.ask("Hi")
    wanted = "2 tokens · 42.5 tokens/s · 7 in the prompt (3 cached) · first after 0.25 s"
    assert page.text(".stats") == wanted


def test_the_request_holds_what_was_set_and_nothing_else(page: Page, page_server: PageServer) -> None:
    page.settings(system="Be brief.", temperature="0.5", top_k="40", seed="7")
    page.ask("Hi")
    page.ask("More")
    assert page_server.asked[-1] == {
        "model": "haiku",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello there"},
            {"role": "user", "content": "More"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_k": 40,
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("field", "value"), [("top_k", "1.5"), ("min_p", "2"), ("seed", "-1"), ("seed", "e")]
)
def test_a_wrong_setting_is_named_and_not_sent(
    page: Page, page_server: PageServer, field: str, value: str
) -> None:
    page.settings(**{field: value})
    page.type("Hi", ENTER)
    page.until(lambda: page.one(f"#{field}-problem").is_displayed())
    assert page.text(f"#{field}-problem")
    assert page.run("return document.activeElement.id") == field
    assert page_server.asked == []


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_keeps_what_came_and_leaves_the_server(page: Page, page_server: PageServer, how: str) -> None:
    page_server.answer = begin_and_wait
    page.type("Hi", ENTER)
    page.shows(".assistant .text", "Begun")
    if how == "button":
        page.press("#stop")
    else:
        page.type(ESCAPE)
    page.ended()
    assert page_server.gone.wait(30)
    assert page.messages() == ["Hi", "Begun"]
    assert page.text(".stats") == "stopped"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda handler: handler.refuse(429, "full", retry_after="3"),
            "The server is busy: its queue is full. Try again in 3 seconds.",
        ),
        (
            lambda handler: handler.refuse(400, "top_k is -1; allowed is an integer >= 0"),
            "top_k is -1; allowed is an integer >= 0.",
        ),
        (
            lambda handler: handler.send(b"oops", "text/plain", 500),
            "The server answered with status 500 and gave no reason.",
        ),
        (breaks_off, "The answer broke off. The engine died (signal 9) and is being started again."),
        (is_cut, "The connection ended before the answer was complete."),
        (says_no_json, "The server sent an answer that cannot be read: it is not JSON."),
    ],
    ids=["busy", "refused", "no reason", "engine died", "cut", "not JSON"],
)
def test_an_error_is_a_sentence(
    page: Page, page_server: PageServer, answer: Callable[[Handler], None], said: str
) -> None:
    page_server.answer = answer
    page.ask("Hi")
    assert page.text(".message .problem") == said
    assert page.text("#announcer") == said
    page_server.answer = lambda handler: handler.stream("Well")
    page.press(".actions button", "Try again")
    page.shows(".assistant .text", "Well")
    page.ended()
    assert page.messages() == ["Hi", "Well"]


def test_what_came_before_an_error_stays(page: Page, page_server: PageServer) -> None:
    page_server.answer = breaks_off
    page.ask("Hi")
    assert page.messages() == ["Hi", "Half an"]


def test_a_server_that_is_gone_is_a_sentence(page: Page, page_server: PageServer) -> None:
    page.shows("#model", "haiku")
    page_server.shutdown()
    page_server.server_close()
    page.ask("Hi")
    said = "The server cannot be reached. See that it is running, then try again."
    assert page.text(".message .problem") == said
    page.shows("#status", said)


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(page: Page, page_server: PageServer) -> None:
    page_server.api_key = "secret"
    page.browser.refresh()
    page.shows("#key-problem", "The server asks for an API key.")
    page.until(lambda: page.run("return document.activeElement.id") == "key")
    page.one("#seed").send_keys("1")
    assert page.one("#key-problem").is_displayed()
    page.one("#key").send_keys("wrong", ENTER)
    page.shows("#key-problem", "The server does not accept this API key.")
    page.one("#key").send_keys(CONTROL, "a", NONE, "secret", ENTER)
    page.until(lambda: not page.one("#settings").is_displayed())
    page.ask("Hi")
    assert page.messages() == ["Hi", "Hello there"]
    assert "secret" not in page.run("return JSON.stringify(localStorage)")
    page.browser.refresh()
    page.shows("#model", "haiku")


def test_regenerate_replaces_the_answer(page: Page, page_server: PageServer) -> None:
    page_server.answer = Answers([lambda h: h.stream("One"), lambda h: h.stream("Two")])
    page.ask("Hi")
    page.press(".actions button", "Regenerate")
    page.shows(".assistant .text", "Two")
    page.ended()
    assert page.messages() == ["Hi", "Two"]
    assert page_server.asked[0] == page_server.asked[1]


def test_an_answer_stays_where_another_cannot_be_had(page: Page, page_server: PageServer) -> None:
    page_server.answer = Answers([lambda h: h.stream("One"), lambda h: h.refuse(429, "full")])
    page.ask("Hi")
    page.press(".actions button", "Regenerate")
    page.shows("#notice", "The server is busy: its queue is full. Try again in a moment.")
    assert page.messages() == ["Hi", "One"]


def test_an_edited_message_replaces_what_follows_it(page: Page, page_server: PageServer) -> None:
    page.ask("First")
    page.ask("Second")
    page.run("document.querySelectorAll('.user .actions button')[1].click()")
    assert page.run("return document.getElementById('prompt').value") == "First"
    page.ask(" again")
    assert page.messages() == ["First again", "Hello there"]
    assert [each["content"] for each in page_server.asked[-1]["messages"]] == ["First again"]


def test_escape_takes_an_edit_back(page: Page) -> None:
    page.ask("First")
    page.run("document.querySelectorAll('.user .actions button')[1].click()")
    page.type(ESCAPE)
    assert page.run("return document.getElementById('prompt').value") == ""
    page.ask("Second")
    assert page.messages() == ["First", "Hello there", "Second", "Hello there"]
