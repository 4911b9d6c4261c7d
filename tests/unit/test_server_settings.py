"""Where the server may listen, and what its settings allow."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from gguf_engine import OptionError
from gguf_engine.server.serving import bind, url_of
from gguf_engine.server.settings import ServerParams

ANYWHERE = "0.0.0.0"  # noqa: S104 - to see it refused


def test_others_reach_the_server_with_a_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ANYWHERE, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(OptionError, match="API key"):
        bind(ServerParams(host=ANYWHERE, port=0))
    found.insert(0, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)))
    with pytest.raises(OptionError, match="API key"):
        bind(ServerParams(host="both", port=0))
    del found[0]
    for each in bind(ServerParams(host=ANYWHERE, port=0, api_keys=("k",))):
        each.close()


def test_all_addresses_of_a_name_get_the_same_port() -> None:
    sockets = bind(ServerParams(host="localhost", port=0))
    assert len({each.getsockname()[1] for each in sockets}) == 1
    for each in sockets:
        each.close()


def test_a_port_that_is_taken_and_a_host_that_is_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = bind(ServerParams(port=0))
    port = first.getsockname()[1]
    first.listen()
    with pytest.raises(OptionError, match=f"port is {port}; allowed: a port that is free here"):
        bind(ServerParams(port=port))
    first.close()

    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(OptionError, match="a name or address of this machine"):
        bind(ServerParams(host="127.0.0.999", port=0))


@pytest.mark.parametrize(
    "options",
    [
        {"port": -1},
        {"port": 65536},
        {"port": True},
        {"host": ""},
        {"max_queue": -1},
        {"max_body_bytes": 100},
        {"max_connections": 0},
        {"request_s": 0},
        {"slow_reader_s": float("nan")},
        {"drain_s": -1},
        {"drain_s": 3601},
        {"beat_s": "5"},
        {"served_name": ""},
        {"allowed_hosts": [""]},
        {"api_keys": ("a b",)},
        {"cors_origins": 5},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=name):
        ServerParams(**options)


@pytest.mark.parametrize(
    "origin",
    ["app.example", "https://app.example/", "https://app.example/x", "https://app.example?x", "https://",
     "https://*.example", "https://me@app.example", "https://App.example", "https://app.example:443",
     "http://app.example:80", "http://app.example:65536", "http://[::1", "http://[1:2]", " https://app.example"],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(OptionError) as caught:
        ServerParams(cors_origins=("https://good.example", origin))
    assert str(caught.value) == (
        f"cors_origins is {origin!r}; allowed: scheme://host or scheme://host:port in lower case with "
        'nothing after it, "null", or "*" for any; leave out :80 of http and :443 of https, as browsers do'
    )


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://app.example", "http://localhost:3000", "http://[::1]:3000", "https://app.example:80",
     "http://10.0.0.7", "chrome-extension://abcdefgh", "moz-extension://0a-1b"],
)  # fmt: skip
def test_an_origin_that_browsers_send_is_taken(origin: str) -> None:
    assert ServerParams(cors_origins=(origin,)).cors_origins == (origin,)


@pytest.mark.parametrize(
    "name",
    ["http://x.org/", "http://x.org", "x/y", "x.org:8000", "*.x.org", "[::1]", "x y", ".x", "\xfc.org"],
)
def test_a_host_that_no_request_names_is_refused(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        ServerParams(allowed_hosts=(name,))
    allowed = 'a bare name or address, without scheme, port or path, or "*" for any'
    assert str(caught.value) == f"allowed_hosts is {name!r}; allowed: {allowed}"


@pytest.mark.parametrize("name", ["*", "x", "My.Name", "a_b-c.example.", "10.0.0.7", "::1"])
def test_a_host_that_requests_name_is_taken(name: str) -> None:
    assert ServerParams(allowed_hosts=(name,)).allowed_hosts == (name,)


def test_an_accepted_connection_sends_at_once() -> None:
    """With Nagle's algorithm a whole answer would come 40 ms late."""
    from server_samples import serve

    with serve() as running, running.connect():
        while not running.server.server_state.connections:
            pass
        (connection,) = running.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_of_version_6_stands_in_brackets() -> None:
    (bound,) = bind(ServerParams(host="::1", port=0))
    assert url_of(bound) == f"http://[::1]:{bound.getsockname()[1]}"
    bound.close()
