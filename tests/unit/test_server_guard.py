"""Keys, hosts, origins and the log: what every request passes, over real sockets."""

from __future__ import annotations

import hmac
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server_samples import CHAT, Served, chat_body, limits, read_all, serve, wait_for

from gguf_engine import OptionError
from gguf_engine.server import serving
from gguf_engine.server.app import with_keys
from gguf_engine.server.settings import ServerParams, read_keys

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with serve(settings=limits(api_keys=KEYS)) as running:
        yield running


def paths_of(served: Served) -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in served.app.routes
        for method in getattr(route, "methods", ())
        if method != "HEAD"
    }


def test_every_route_but_health_and_the_pages_files_needs_a_key(locked: Served) -> None:
    open_paths = set()
    for method, path in paths_of(locked):
        response = locked.client.request(method, path.replace("{model:path}", "fake"))
        if response.status_code != 401:
            open_paths.add(path)
        else:
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    assert open_paths == {"/health", "/", "/chat.css", "/chat.js"}


@pytest.mark.parametrize("path", ["//health", "/health/", "/v1/../health", "/Health", "/nothing", "/%2e/"])
def test_a_path_that_looks_like_an_open_one_is_not(locked: Served, path: str) -> None:
    with locked.connect() as connection:  # as it stands: httpx would tidy it
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert read_all(connection).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(locked: Served, key: str) -> None:
    for scheme in ("Bearer", "bearer"):
        response = locked.post(CHAT, chat_body(), headers={"authorization": f"{scheme} {key}"})
        assert response.status_code == 200


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer wrong", "Basic first-key", "first-key", "Bearer first-key2", "Bearer \xe9"],
)
def test_anything_else_does_not(locked: Served, value: str) -> None:
    response = locked.post(CHAT, chat_body(), headers={"authorization": value.encode("latin-1")})
    assert response.status_code == 401


def test_every_key_is_compared_in_constant_time(locked: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare_digest = hmac.compare_digest

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return compare_digest(given, known)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    locked.client.get("/v1/models", headers={"authorization": "Bearer first-key"})
    assert compared == [key.encode() for key in KEYS]


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# mine\none\n\n two \n")
    assert with_keys(ServerParams(), str(file)).api_keys == ("one", "two")
    assert with_keys(ServerParams(), None).api_keys == ()
    monkeypatch.setenv("GGUF_ENGINE_API_KEY", "three, four")
    assert with_keys(ServerParams(), None).api_keys == ("three", "four")
    assert with_keys(ServerParams(), str(file)).api_keys == ("one", "two")


@pytest.mark.parametrize("text", ["", "# nothing\n", "a b\n", "\xe9\n", "x" * 513])
def test_a_file_without_usable_keys_is_refused_and_shows_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        read_keys(str(file))
    assert text.strip() == "" or text.strip() not in str(caught.value)
    with pytest.raises(OptionError, match="readable"):
        read_keys(str(tmp_path / "missing"))


def test_settings_do_not_show_their_keys() -> None:
    assert "secret" not in repr(ServerParams(api_keys=("secret",)))


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000", "10.0.0.7", "my.name"],
)
def test_a_request_for_this_machine_is_served(host: str) -> None:
    with serve(settings=limits(allowed_hosts=("My.Name",))) as running:
        assert running.client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "127.0.0.1.nip.io", "[x]"]
)
def test_a_request_for_a_strangers_name_is_refused(locked: Served, host: str) -> None:
    """A page whose name is made to point here (DNS rebinding) sends its own name."""
    response = locked.client.get("/health", headers={"host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed")


def test_every_host_is_served_when_asked_for() -> None:
    with serve(settings=limits(allowed_hosts=("*",))) as running:
        assert running.client.get("/health", headers={"host": "a.example"}).status_code == 200


def test_no_other_site_may_read_answers_unless_asked_for(locked: Served) -> None:
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in locked.client.get("/health", headers=asked).headers
    assert locked.client.options(CHAT, headers=asked).status_code == 401
    settings = limits(cors_origins=("https://app.example",), api_keys=KEYS)
    with serve(settings=settings) as running:
        assert running.client.options(CHAT, headers=asked).status_code == 200
        refused = running.client.get("/v1/models", headers=asked)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (
            401,
            "https://app.example",
        )
        other = {**asked, "origin": "https://evil.example"}
        assert running.client.options(CHAT, headers=other).status_code == 400
        assert "access-control-allow-origin" not in running.client.get("/health", headers=other).headers


def test_log_lines_escape_what_users_send(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    try:
        serving._start_log()
        with serve(settings=limits(log_requests=True)) as running:
            running.client.get("/a%0A2026 INFO forged %1b[31m/%E2%80%AE" + "x" * 500)
            wait_for(lambda: "forged" in written.getvalue())
            logging.getLogger("uvicorn.error").warning("two\nlines \x1b[0m")
    finally:
        for name in ("gguf_engine.server", "uvicorn"):
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
    first, second = written.getvalue().splitlines()
    assert "GET '/a\\n2026 INFO forged \\x1b[31m/\\u202exxx" in first
    assert len(first) < 350
    assert first.endswith(" ms")
    assert "two\\nlines \\x1b[0m" in second


def test_our_own_fault_is_a_500_without_its_details(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve() as running:
        monkeypatch.setattr(running.llm, "astreams", lambda *_, **__: 1 / 0)
        response = running.chat()
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "the server failed at this request; its log says more"
        assert "ZeroDivisionError" in caplog.text
        with running.send(chat_body()) as connection:
            connection.settimeout(30)
            assert b" 500 " in connection.recv(100)
        monkeypatch.undo()
        assert running.chat().status_code == 200
        wait_for(lambda: running.app.state.desk._n_taken == 0)


def test_a_request_without_http_is_answered_in_json(locked: Served) -> None:
    with locked.connect() as connection:
        connection.sendall(b"hello\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_http"' in answer


def test_an_error_is_readable_by_httpx(locked: Served) -> None:
    with httpx.Client(base_url=locked.url, trust_env=False) as client, pytest.raises(httpx.HTTPStatusError):
        client.get("/v1/models").raise_for_status()
