"""
HTTP with a hub: requests out, checked answers or a `HubError` in.

Uses huggingface_hub's session (its proxies, certificates and offline switch) and nothing above it: plain
HTTP, no Xet, no progress bars, no telemetry. The token goes to the hub's own host only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from gguf_engine.errors import HubError
from gguf_engine.loader.deadline import Deadline
from gguf_engine.loader.digest import ETAG

MAX_REDIRECTS = 5
MAX_JSON_BYTES = 2**24

LOGIN = "set HF_TOKEN to a token that may read it, or run `hf auth login`"

# What the hub itself calls a refusal, or else its status → our code, and what helps.
_BY_NAME = {
    "GatedRepo": ("gated", f"accept the terms on its page, then {LOGIN}"),
    "RevisionNotFound": ("revision", "name a branch, tag or commit that exists"),
    "EntryNotFound": ("not_found", "check the file name"),
    "RepoNotFound": ("not_found", f"check the repository name; if it is private, {LOGIN}"),
}
_BY_STATUS = {
    **dict.fromkeys((401, 403), ("auth", LOGIN)),
    **dict.fromkeys((404, 410), ("not_found", "check the names of repository and file")),
    **dict.fromkeys((429, 503), ("busy", "try again in a minute")),
    **dict.fromkeys((408, 504), ("timeout", "try again in a minute")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """What the hub says of a file: the hash that names it, its size in bytes, the commit it is of."""

    etag: str
    size: int
    commit: str | None

    @property
    def sha256(self) -> str | None:
        """Return the sha256, where that is the hash the hub names the file by."""
        return self.etag if len(self.etag) == 64 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """
    One hub.

    Attributes:
        endpoint: Such as "https://huggingface.co".
        token: Sent to the endpoint's host only.
        timeout_s: For connecting and for each wait for bytes.
        deadline: When every request must have ended.
        allow_http: Unencrypted connections to other machines are allowed.
    """

    endpoint: str
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 15.0
    deadline: Deadline = field(default_factory=lambda: Deadline(math.inf))
    allow_http: bool = False

    def json(self, path: str) -> Any:
        """Return the JSON at a path of the endpoint."""
        with self._exchange("GET", f"{self.endpoint}/{path}") as response:
            self._check_status(response, path)
            body = bytearray()
            for chunk in self.chunks(response):
                body += chunk
                if len(body) > MAX_JSON_BYTES:
                    raise HubError(
                        "network", f"{self.endpoint}/{path} answered more than {MAX_JSON_BYTES} bytes"
                    )
        try:
            return json.loads(body)
        except ValueError:
            kind = response.headers.get("content-type", "unknown")
            what = f"{self.endpoint}/{path} answered {kind!r} instead of JSON"
            raise HubError(
                "network", what, "look for a login page, a proxy or a wrong HF_ENDPOINT"
            ) from None

    def head(self, path: str) -> RemoteFile:
        """Return what the hub says of the file at a path."""
        with self._exchange("HEAD", f"{self.endpoint}/{path}", leave_host=False) as response:
            self._check_status(response, path)
            headers = response.headers
        etag = (headers.get("x-linked-etag") or headers.get("etag") or "").removeprefix("W/").strip('"')
        if not ETAG.fullmatch(etag):
            what = f"{path} has the ETag {etag[:80]!r}, which is no sha256 and no git hash"
            raise HubError("integrity", what, "check that HF_ENDPOINT is a hub")
        size = headers.get("x-linked-size") or headers.get("content-length") or ""
        if not size.isascii() or not size.isdecimal() or len(size) > 15:
            raise HubError(
                "integrity", f"{path} has the size {size[:80]!r}", "check that HF_ENDPOINT is a hub"
            )
        return RemoteFile(etag=etag, size=int(size), commit=headers.get("x-repo-commit"))

    @contextlib.contextmanager
    def get(self, path: str, *, start: int = 0, validator: str = "") -> Iterator[tuple[Any, int]]:
        """
        Open the file at a path; yield the response and the byte it begins at.

        Args:
            path: At the endpoint.
            start: First byte wanted; the answer may begin at 0 all the same.
            validator: The strong ETag of the answer that the bytes before `start` came from, or "".
        """
        headers = {"range": f"bytes={start}-"} if start else {}
        if start and validator:
            headers["if-range"] = validator
        with self._exchange("GET", f"{self.endpoint}/{path}", headers) as response:
            is_part = response.status_code == 206
            fits = not is_part or response.headers.get("content-range", "").startswith(f"bytes {start}-")
            if fits and not (start and response.status_code == 416):
                self._check_status(response, path)
                yield response, start if is_part else 0
                return
        if not start:
            raise HubError("network", f"{path}: asked for all bytes, was sent a part", "try again")
        with self.get(path) as whole:
            yield whole

    def chunks(self, response: Any) -> Iterator[bytes]:
        """
        Yield the body as it was sent. Errors of the connection become `HubError`, others do not.

        A compressed one is refused: none was asked for, and a few bytes could become gigabytes.
        """
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() not in {"", "identity"}:
            what = f"{self.endpoint} sent a body in the encoding {encoding[:80]!r}, which was not asked for"
            raise HubError("network", what, "look for a proxy that alters what passes")
        pieces = response.iter_raw()
        while True:
            with self._translated():
                piece = next(pieces, None)
            self.deadline.check()  # also at the end: a connection that was cut may look like one
            if piece is None:
                return
            yield piece

    @contextlib.contextmanager
    def _exchange(
        self, method: str, url: str, headers: dict[str, str] | None = None, *, leave_host: bool = True
    ) -> Iterator[Any]:
        """
        Yield the answer to a request, after redirects.

        With leave_host false, a redirect to another host is the answer: it carries what the hub says
        of the file, and the host it points to would not.
        """
        from huggingface_hub import get_session

        # A connection of its own for each request: one from the pool could not be cut at the deadline.
        sent = {"user-agent": "gguf-engine", "accept-encoding": "identity", "connection": "close"}
        sent |= headers or {}
        if self.token:
            sent["authorization"] = f"Bearer {self.token}"
        for _ in range(MAX_REDIRECTS):
            self.deadline.check()
            self._check_scheme(url)
            with contextlib.ExitStack() as stack:
                trace = stack.enter_context(self.deadline.guard())
                with self._translated():
                    response = stack.enter_context(
                        get_session().stream(
                            method,
                            url,
                            headers=sent,
                            timeout=self.timeout_s,
                            follow_redirects=False,
                            extensions={"trace": trace},
                        )
                    )
                target = _redirect_of(response, url)
                abroad = target is not None and urlsplit(target).netloc != urlsplit(url).netloc
                if target is None or (abroad and not leave_host):
                    yield response
                    return
            if abroad:
                sent.pop("authorization", None)
            url = target
        raise HubError("network", f"{self.endpoint} redirected more than {MAX_REDIRECTS} times")

    def _check_scheme(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "https" or (parts.scheme == "http" and (self.allow_http or is_loopback(url))):
            return
        what = f"refused to fetch from {parts.scheme}://{parts.netloc}, which is not encrypted"
        raise HubError("network", what, "use an https endpoint, or set GGUF_ENGINE_ALLOW_HTTP=1")

    def _check_status(self, response: Any, path: str) -> None:
        """Raise what a status of 400 or more means, by the hub's own error code where it sends one."""
        status, host = response.status_code, urlsplit(str(response.url)).netloc
        if status < 400:
            return
        if "x-error-code" not in response.headers and host != urlsplit(self.endpoint).netloc:
            what = f"{path}: {host}, to which the hub redirects, answered {status}"
            raise HubError("network", what, "try again: its link may have expired")
        raise _refusal(response, path)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Name the failures of a connection. Their classes differ between releases of huggingface_hub."""
        try:
            yield
        except Exception as error:
            self.deadline.check()
            names = {kind.__name__ for kind in type(error).__mro__}
            what = f"{self.endpoint}: {str(error).strip() or type(error).__name__}"
            if "OfflineModeIsEnabled" in names:
                raise HubError(
                    "offline", "HF_HUB_OFFLINE forbids connections", "unset it to download"
                ) from error
            if names & {"TimeoutException", "Timeout", "TimeoutError"}:
                raise HubError("timeout", f"{what} (waited {self.timeout_s:g} s)", "try again") from error
            if names & {"HTTPError", "RequestException", "StreamError", "InvalidURL", "OSError"}:
                raise HubError(
                    "network", f"no connection to {what}", "check the network, or set HF_ENDPOINT"
                ) from error
            raise


def is_loopback(url: str) -> bool:
    """Return whether a URL points to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _redirect_of(response: Any, url: str) -> str | None:
    """Return where an answer sends us, None when it is the answer."""
    location = response.headers.get("location") if response.status_code // 100 == 3 else None
    if not location:
        return None
    try:
        target = urljoin(url, str(location))
        urlsplit(target)
    except ValueError:
        what = f"{url} redirects to {location[:200]!r}, which is no URL"
        raise HubError("network", what, "check that HF_ENDPOINT is a hub") from None
    return target


def _refusal(response: Any, path: str) -> HubError:
    status = response.status_code
    what = f"{path}: the hub answered {status}"
    reason = response.headers.get("x-error-message", "")[:200]
    if reason:
        what += f" ({reason})"
    named = _BY_NAME.get(response.headers.get("x-error-code", ""))
    code, help_ = named or _BY_STATUS.get(status, ("network", "try again later"))
    return HubError(code, what, help_)
