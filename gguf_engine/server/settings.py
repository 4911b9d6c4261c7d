"""ServerParams: where the server listens, whom it serves, and where it says no."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gguf_engine.errors import OptionError

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# In lower case and without the scheme's own port, as browsers send it: anything else never matches.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[1-9]\d{0,4}))?"
)
_OWN_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParams:
    """
    Where the server listens, whom it serves, and its limits.

    Attributes:
        host: Address to listen on. One that other machines reach needs an API key.
        port: 0..65535; 0 takes a free one.
        api_keys: Keys that open every route but /health and the page's own files; none for no check.
        served_name: The model's name for clients; None means the name it was loaded by, a file's without
            its folder.
        max_queue: Requests that may wait when all slots are taken, 0..100000; more get status 429.
        max_body_bytes: Largest body of a request, 1024..1073741824.
        max_connections: Open connections, 1..1000000; more are closed at once.
        request_s: Seconds for a whole request to arrive, 0.1..3600.
        slow_reader_s: Seconds in which a client must take what was sent, 0.1..3600, or it is dropped.
        drain_s: Seconds that running requests have to finish when the server is told to stop, 0..3600.
        beat_s: Seconds in which the engine must answer before /health says 503, 0.1..3600.
        allowed_hosts: Host names, besides localhost and addresses, that requests may be for; * for any.
        cors_origins: Origins whose pages may call this server, such as https://app.example.
        log_requests: Write a line to stderr for each request.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    served_name: str | None = None
    max_queue: int = 64
    max_body_bytes: int = 4 * 2**20
    max_connections: int = 4096
    request_s: float = 30.0
    slow_reader_s: float = 30.0
    drain_s: float = 30.0
    beat_s: float = 5.0
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    log_requests: bool = True

    def __post_init__(self) -> None:
        if not _is_text(self.host):
            raise OptionError("host", self.host, "a host name or an address")
        _integer("port", self.port, 0, 65535)
        _integer("max_queue", self.max_queue, 0, 100_000)
        _integer("max_body_bytes", self.max_body_bytes, 1024, 2**30)
        _integer("max_connections", self.max_connections, 1, 10**6)
        for name in ("request_s", "slow_reader_s", "beat_s"):
            _seconds(name, getattr(self, name), 0.1)
        _seconds("drain_s", self.drain_s, 0.0)
        for name in ("api_keys", "allowed_hosts", "cors_origins"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for key in self.api_keys:
            check_key(key, "api_keys")
        for name in self.allowed_hosts:
            _check_host(name)
        for origin in self.cors_origins:
            _check_origin(origin)
        if self.served_name is not None and not _is_text(self.served_name):
            raise OptionError("served_name", self.served_name, "a name, or None")


def check_key(key: str, where: str) -> str:
    """
    Return a key that a header can carry.

    Raises:
        OptionError: It cannot; says where it stands, and not what it is.
    """
    if not 1 <= len(key) <= 512 or not key.isascii() or not key.isprintable() or " " in key:
        raise OptionError(where, "a key", "1..512 visible ASCII characters each")
    return key


def read_keys(path: str) -> tuple[str, ...]:
    """
    Return the keys of a file: one a line, empty lines and lines that begin with # left out.

    Raises:
        OptionError: It cannot be read, holds no key, or holds one that no header can carry.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError("api_key_file", path, "a readable text file", str(error)) from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise OptionError("api_key_file", path, "a file that holds a key", "write one key a line")
    return tuple(check_key(key, "api_key_file") for key in keys)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionError(name, value, f"an integer in {low}..{high}")


def _seconds(name: str, value: object, low: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= 3600:  # type: ignore[arg-type, operator]
        raise OptionError(name, value, f"seconds in {low:g}..3600")


def _texts(name: str, value: object) -> tuple[str, ...]:
    several = (value,) if isinstance(value, str) else value
    if not isinstance(several, Sequence) or not all(isinstance(text, str) and text for text in several):
        raise OptionError(name, value, "texts, none of them empty")
    return tuple(several)


def _check_host(name: str) -> None:
    if name != "*" and not _NAME.fullmatch(name) and not _is_address(name):
        allowed = 'a bare name or address, without scheme, port or path, or "*" for any'
        raise OptionError("allowed_hosts", name, allowed)


def _check_origin(origin: str) -> None:
    if origin in ("*", "null"):  # null is what the pages of files and sandboxes send
        return
    match = _ORIGIN.fullmatch(origin)
    if match is not None and match["port"] != _OWN_PORTS.get(match["scheme"], ""):
        host_is_valid = _NAME.fullmatch(match["name"]) if match["name"] else _is_address(match["address"])
        if host_is_valid and int(match["port"] or 1) <= 65535:
            return
    raise OptionError(
        "cors_origins",
        origin,
        'scheme://host or scheme://host:port in lower case with nothing after it, "null", or "*" for any',
        "leave out :80 of http and :443 of https, as browsers do",
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
