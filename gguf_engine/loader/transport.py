"""
HTTP with a hub: requests out, checked answers or a `HubError` in.

Uses huggingface_hub's session (its proxies, certificates and offline switch) and nothing above it: plain
HTTP, no Xet, no progress bars, no telemetry. The token goes to the hub's own host only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from gguf_engine.errors import HubError
from gguf_engine.loader.hubcache import ETAG

MAX_REDIRECTS = 5
MAX_JSON_BYTES = 2**24

LOGIN = "set HF_TOKEN to a token that may read it, or run `hf auth login`"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """What the hub says of a file: the hash that names it, its size in bytes, the commit it is of."""

    etag: str
    size: int
    commit: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """
    One hub.

    Attributes:
        endpoint: Such as "https://huggingface.co".
        token: Sent to the endpoint's host only.
        timeout_s: For connecting and for each wait for bytes.
        allow_http: Unencrypted connections to other machines are allowed.
    """

    endpoint: str
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 15.0
    allow_http: bool = False

    def json(self, path: str) -> Any:
        """Return the JSON at a path of the endpoint."""
        with self._exchange("GET", f"{self.endpoint}/{path}") as response:
            _check_status(response, path)
            body = b""
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
            _check_status(response, path)
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
            validator: The ETag of the answer that the bytes before `start` came from.
        """
        headers = {"range": f"bytes={start}-"} if start else {}
        if start and validator and not validator.startswith("W/"):
            headers["if-range"] = validator
        with self._exchange("GET", f"{self.endpoint}/{path}", headers) as response:
            _check_status(response, path)
            if response.status_code != 206:
                yield response, 0
                return
            begins = response.headers.get("content-range", "").removeprefix("bytes ").split("-")[0]
            if begins != str(start):
                raise HubError(
                    "network", f"{path}: asked for bytes from {start}, was sent bytes from {begins!r}"
                )
            yield response, start

    def chunks(self, response: Any) -> Iterator[bytes]:
        """Yield the body. Errors of the connection become `HubError`, those of the consumer do not."""
        pieces = response.iter_bytes()  # as they arrive: a chunk size would hold bytes back and lose them
        while True:
            with self._translated():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    @contextlib.contextmanager
    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, *, leave_host: bool = True
    ) -> Iterator[Any]:
        """
        Yield the answer to a request, after redirects.

        With leave_host false, a redirect to another host is the answer: it carries what the hub says
        of the file, and the host it points to would not.
        """
        from huggingface_hub import get_session

        sent = {"user-agent": "gguf-engine", "accept-encoding": "identity", **(headers or {})}
        if self.token:
            sent["authorization"] = f"Bearer {self.token}"
        for _ in range(MAX_REDIRECTS):
            self._check_scheme(url)
            with contextlib.ExitStack() as stack:
                with self._translated():
                    response = stack.enter_context(
                        get_session().stream(
                            method, url, headers=sent, timeout=self.timeout_s, follow_redirects=False
                        )
                    )
                location = response.headers.get("location") if response.status_code // 100 == 3 else None
                target = urljoin(url, location) if location else url
                abroad = urlsplit(target).netloc != urlsplit(url).netloc
                if location is None or (abroad and not leave_host):
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

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Name the failures of a connection. Their classes differ between releases of huggingface_hub."""
        try:
            yield
        except HubError:
            raise
        except Exception as error:
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


def _check_status(response: Any, path: str) -> None:
    """Raise what a status of 400 or more means, by the hub's own error code where it sends one."""
    status = response.status_code
    if status < 400:
        return
    what = f"{path}: the hub answered {status}"
    reason = response.headers.get("x-error-message", "")[:200]
    if reason:
        what += f" ({reason})"
    error = response.headers.get("x-error-code", "")
    if error == "GatedRepo":
        raise HubError("gated", what, f"accept the terms on its page, then {LOGIN}")
    if error == "RevisionNotFound":
        raise HubError("revision", what, "name a branch, tag or commit that exists")
    if error == "EntryNotFound":
        raise HubError("not_found", what, "check the file name")
    if error == "RepoNotFound":
        raise HubError("not_found", what, f"check the repository name; if it is private, {LOGIN}")
    if status in {401, 403}:
        raise HubError("auth", what, LOGIN)
    if status in {404, 410}:
        raise HubError("not_found", what, "check the names of repository and file")
    if status in {429, 503}:
        raise HubError("busy", what, "try again in a minute")
    if status in {408, 504}:
        raise HubError("timeout", what, "try again in a minute")
    raise HubError("network", what, "try again later")
