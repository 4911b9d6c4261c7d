"""The chat page in headless Chromium: what it shows, to whom, and from where."""

from __future__ import annotations

import pytest
from browser_samples import CONTROL, ENTER, ESCAPE, NONE, SHIFT, Page
from page_samples import PageServer

pytestmark = [pytest.mark.e2e, pytest.mark.browser]


ATTACK = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script><b>bold</b>"


def test_text_stays_text(page: Page, page_server: PageServer) -> None:
    page_server.answer = lambda handler: handler.stream(
        f"{ATTACK}\n\n```{ATTACK}\n{ATTACK}\n```\n**{ATTACK}**"
    )
    page.settings(system=ATTACK)
    page.ask(ATTACK)
    page_server.answer = lambda handler: handler.refuse(400, ATTACK)
    page.ask("Again")
    page.browser.refresh()
    assert page.messages()[0] == ATTACK
    assert page.messages()[1].count(ATTACK) == 3
    assert ATTACK in page.text(".message .problem")
    assert page.text("#conversations .open") == ATTACK[:80]
    assert page.all("img") + page.all("b") + page.all("body script") == []
    assert page.run("return window.hacked ?? null") is None


def test_nothing_comes_from_elsewhere_and_no_rule_is_broken(page: Page, page_server: PageServer) -> None:
    page.shows("#model", "haiku")
    page.ask("Hi")
    page.press("#theme")
    page.settings(temperature="1")
    requested = page.requested()
    assert f"{page_server.url}v1/chat/completions" in requested
    assert [url for url in requested if not url.startswith((page_server.url, "data:"))] == []
    assert page.complaints() == []


def test_the_policy_forbids_what_the_page_does_not_need(page: Page) -> None:
    page.run(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))"
    )
    page.run("document.body.insertAdjacentHTML('beforeend', '<p style=\"color:red\">')")
    assert page.run("return window.hacked ?? null") is None
    broken = [line for line in page.complaints() if "Content Security Policy" in line]
    assert any("script-src 'self'" in line for line in broken)
    assert any("style-src 'self'" in line for line in broken)


def test_code_and_paragraphs_lose_no_line(page: Page, page_server: PageServer) -> None:
    answer = "One `x` **y**\nline\n\n```python\na = 1\n\n  b\n```\nTwo\n~\n``` three ``` four\n```\nopen"
    page_server.answer = lambda handler: handler.stream(*answer)
    page.ask("Hi")
    blocks = page.run(
        "return [...document.querySelector('.assistant .text').children].map((e) => e.textContent)"
    )
    assert blocks == ["One x y\nline", "a = 1\n\n  b", "Two\n~\n``` three ``` four", "open"]
    assert [each.text for each in page.all(".assistant strong, .assistant p code")] == ["x", "y"]


@pytest.mark.parametrize("width", [360, 1280])
def test_no_width_scrolls_sideways(page: Page, page_server: PageServer, width: int) -> None:
    page.resize(width, 700)
    page_server.answer = lambda handler: handler.stream("w" * 300, "\n\n```\n" + "c" * 300 + "\n```")
    page.ask("u" * 300)
    wide = (
        "return ['html', '#log', '#composer', '.message.user', '.assistant', 'header'].filter((each) => {"
    )
    wide += "const e = document.querySelector(each); return e.scrollWidth > e.clientWidth })"
    assert page.run(wide) == []
    assert page.run("return document.documentElement.scrollWidth") == width
    page.press("#open-settings")
    assert (
        page.run("const e = document.getElementById('settings'); return e.scrollWidth - e.clientWidth") == 0
    )


def test_a_narrow_page_has_its_conversations_in_a_menu(page: Page) -> None:
    page.resize(360, 700)
    page.ask("About ponds")
    assert not page.one("#sidebar").is_displayed()
    page.press("#menu")
    page.until(lambda: page.one("#conversations .open").is_displayed())
    assert page.one("#menu").get_attribute("aria-expanded") == "true"
    assert page.run("return document.activeElement.id") == "new-chat"
    page.one("#new-chat").send_keys(ESCAPE)
    assert not page.one("#sidebar").is_displayed()
    assert page.run("return document.activeElement.id") == "menu"


def test_light_and_dark_follow_the_system_until_chosen(page: Page) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    features = [{"name": "prefers-color-scheme", "value": "light"}]
    page.command("Emulation.setEmulatedMedia", features=features)
    light = page.run(colour)
    features[0]["value"] = "dark"
    page.command("Emulation.setEmulatedMedia", features=features)
    dark = page.run(colour)
    assert light != dark
    page.press("#theme")
    assert page.run(colour) == light
    page.browser.refresh()
    assert page.run(colour) == light


def test_shift_enter_is_a_new_line_and_enter_sends(page: Page, page_server: PageServer) -> None:
    page.type("One", SHIFT, ENTER, NONE, "two")
    assert page_server.asked == []
    page.ask("")
    assert page_server.asked[0]["messages"] == [{"role": "user", "content": "One\ntwo"}]


def test_enter_that_ends_a_word_of_an_input_method_does_not_send(
    page: Page, page_server: PageServer
) -> None:
    page.type("word")
    event = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true})"
    page.run(f"document.getElementById('prompt').dispatchEvent({event})")
    assert page.messages() == []
    assert page_server.asked == []


def test_every_control_is_reached_with_tab_and_named(page: Page) -> None:
    page.ask("Hi")
    page.run("document.getElementById('new-chat').focus()")
    seen = "const e = document.activeElement; return [e.ariaLabel || e.textContent.trim() || e.id, "
    seen += "getComputedStyle(e).outline.match(/solid 2px/)?.[0]]"
    reached = []
    for _ in range(11):
        page.command(
            "Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9
        )
        reached.append(page.run(seen))
    names = ["Hi", "Delete Hi", "Export", "Switch between light and dark", "Settings"]
    names += ["Copy", "Edit", "Copy", "Regenerate"]
    assert reached == [[name, "solid 2px"] for name in names] + [["prompt", None], ["Send", "solid 2px"]]


def test_a_finished_answer_is_announced(page: Page) -> None:
    assert page.one("#announcer").get_attribute("aria-live") == "polite"
    page.ask("Hi")
    assert page.text("#announcer") == "Hello there"


def test_copy_puts_the_answer_on_the_clipboard(page: Page) -> None:
    page.ask("Hi")
    page.press(".actions button", "Copy")
    page.shows(".assistant .actions", "Copied")
    page.type(CONTROL, "v", NONE)
    page.until(lambda: page.run("return document.getElementById('prompt').value") == "Hello there")
