"""A headless Chromium (Debian's chromium and chromium-driver) that reads and presses as a person does."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

HANG_S = 30.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ENTER, ESCAPE = "\ue007", "\ue00c"  # as the WebDriver standard writes keys
SHIFT, CONTROL, NONE = "\ue008", "\ue009", "\ue000"


def missing_browser() -> str:
    """Return what these tests lack here, "" where nothing is."""
    missing = [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]
    if importlib.util.find_spec("selenium") is None:
        missing.append("the Python package selenium")
    return " and ".join(missing)


def start_chromium(folder: Path) -> Chrome:
    """Start it with an empty profile in `folder`; the caller quits it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


class Page:
    """The chat page in a browser: every wait is for what a person would see."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser = browser
        self.url = url
        self._log("browser")
        self._log("performance")
        self.resize(1280, 800)
        self.command("Emulation.setEmulatedMedia", features=[])
        self.browser.get(url)

    def command(self, name: str, **arguments: Any) -> Any:
        return self.browser.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """Return the text of the last element, "" where there is none."""
        return str(
            self.run(
                "return [...document.querySelectorAll(arguments[0])].at(-1)?.textContent ?? ''", selector
            )
        )

    def until(self, condition: Callable[[], object]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, HANG_S, poll_frequency=0.03).until(lambda _: condition())

    def shows(self, selector: str, text: str) -> None:
        """Wait until the last such element holds the text."""
        self.until(lambda: text in self.text(selector))

    def type(self, *keys: str) -> None:
        self.one("#prompt").send_keys(*keys)

    def press(self, selector: str, label: str = "") -> None:
        """Press the last such button on screen, of those with this label."""
        buttons = [each for each in self.all(selector) if label in (each.text, "")]
        buttons[-1].click()

    def ask(self, text: str) -> None:
        """Send a message and wait for its answer to end, well or not."""
        self.type(text, ENTER)
        self.ended()

    def ended(self) -> None:
        done = "#messages[aria-busy=false] > .assistant:last-child .actions"
        self.until(lambda: self.all(done))

    def settings(self, **values: str) -> None:
        """Write fields of the settings by their ids, and close them."""
        self.press("#open-settings")
        for name, value in values.items():
            self.one(f"#{name}").clear()
            self.one(f"#{name}").send_keys(value)
        self.press("#close-settings")

    def messages(self) -> list[str]:
        return list(
            self.run("return [...document.querySelectorAll('.message .text')].map((e) => e.textContent)")
        )

    def complaints(self) -> list[str]:
        """Return what the browser logged since it was last asked: policy violations, script errors."""
        return [str(entry["message"]) for entry in self._log("browser")]

    def requested(self) -> list[str]:
        """Return the address of every request since last asked."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
        return [str(event["params"]["request"]["url"]) for event in sent]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.browser.get_log(kind)  # type: ignore[no-untyped-call]
        return entries
