"""A clean environment, a cache of its own and no network beyond loopback, for every test."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from browser_samples import Page, missing_browser, start_chromium
from fakehub import FakeHub
from hub_samples import PHI3, TOKENIZER, WEIGHTS
from page_samples import PageServer, running

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# A shell that starts the tests in the background ignores Ctrl-C for them and all their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline would be a timed assertion, on machines that are shared.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_OURS = ("HF_", "HUGGING", "TRANSFORMERS_", "GGUF_ENGINE_", "XDG_", "LLAMA_", "GGML_")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Forget hub, proxy and engine settings, work in an empty folder; return the hub cache of this test.

    In the checkout a child process would import the sources there, not the installed package.
    """
    for name in list(os.environ):
        if name.upper().startswith(_OURS) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("hub-home")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HOME", str(home))  # what is remembered of model files lies in ~/.cache
    monkeypatch.chdir(home)
    return home / "hub"


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket
    host = address[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def other_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep fixtures that outlive a test out of the home of whoever runs the tests, and of the checkout."""
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("home")
    patch.setenv("HOME", str(home))
    patch.chdir(home)
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def loopback_only() -> Iterator[None]:
    """Fail a test that opens a connection to another machine or asks for another machine's address."""
    patch = pytest.MonkeyPatch()
    connect, connect_ex, lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, address: object) -> Any:
            if not _is_local(address):
                pytest.fail(f"the test connects to {address!r}")
            return original(self, address)

        return call

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not _is_local((name,)):
            pytest.fail(f"the test looks up {name!r}")
        return lookup(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", guarded(connect))
    patch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
    patch.setattr(socket, "getaddrinfo", guarded_lookup)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def make_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a small model, once for each set of options."""
    from make_gguf import write_tiny_model

    made: dict[tuple[tuple[str, Any], ...], Path] = {}

    def make(**options: Any) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_model(make_tiny_model: Callable[..., Path]) -> Path:
    """Return a two-layer phi3 with 512 SentencePiece-like tokens, a tokenizer.json beside it."""
    return make_tiny_model(tokenizer=True)


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    """Return an empty hub on loopback."""
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def hub(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Return a hub with phi3-mini, its tokenizer and one more model: the endpoint, retried at once."""
    from gguf_engine.loader import hub as hub_module
    from gguf_engine.loader.download import Limits

    fake_hub.add(PHI3, {"Phi-3-mini-4k-instruct-q4.gguf": WEIGHTS, "README.md": b"read me"})
    fake_hub.add("microsoft/Phi-3-mini-4k-instruct", {"tokenizer.json": TOKENIZER})
    fake_hub.add("org/repo", {"m.gguf": WEIGHTS, "tokenizer.json": TOKENIZER})
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.endpoint)
    monkeypatch.setattr(hub_module, "LIMITS", Limits(retry_wait_s=0.0))
    return fake_hub


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Return a browser with an empty profile; origins keep their storage apart."""
    browser = start_chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()


@pytest.fixture
def page_server() -> Iterator[PageServer]:
    """Return a server of the chat page on a port of its own: an origin whose storage is empty."""
    with running(PageServer()) as server:
        yield server


@pytest.fixture
def page(chromium: Chrome, page_server: PageServer) -> Iterator[Page]:
    """Return the chat page of that server, opened."""
    yield Page(chromium, page_server.url)
    chromium.get("about:blank")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of a GPU or a browser, saying why, where there is none."""
    if missing := missing_browser():
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason=f"needs {missing}"))
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if wanted:
        from gguf_engine.backend.llama import list_devices

        names = ", ".join(device.name for device in list_devices())
        if all(device.kind == "cpu" for device in list_devices()):
            for item in wanted:
                item.add_marker(pytest.mark.skip(reason=f"needs a GPU; this llama.cpp build has: {names}"))
