"""One file from the hub into its partial file: retries, speed and time limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from gguf_engine.errors import HubError
from gguf_engine.loader.partial import PartialFile
from gguf_engine.loader.transport import Transport

# What may be gone at the next try.
PASSING = {"network", "timeout", "busy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    How long a download may take.

    Attributes:
        deadline_s: For all files of a model together.
        lock_wait_s: For another process that downloads the same file and makes no progress.
        min_bytes_per_s: The slowest a connection may be, averaged over speed_window_s.
        speed_window_s: The time over which speed is measured.
        retries: Tries after the first one.
        retry_wait_s: Before the second try; each wait is twice the one before.
    """

    deadline_s: float = 86_400.0
    lock_wait_s: float = 60.0
    min_bytes_per_s: float = 1024.0
    speed_window_s: float = 60.0
    retries: int = 4
    retry_wait_s: float = 0.5


def download(
    transport: Transport,
    url: str,
    partial: PartialFile,
    limits: Limits,
    report: Callable[[int], None],
) -> None:
    """
    Fetch the rest of a file; return when its bytes are all there and right.

    Args:
        transport: The connection.
        url: Path of the file at the endpoint.
        partial: Where the bytes go. Those that an earlier try left there are kept if they fit.
        limits: When to give up.
        report: Called with the bytes so far.

    Raises:
        HubError: After the last try, or at once where another would not help.
    """
    attempt = 0
    while (error := _try(transport, url, partial, limits, report)) is not None:
        if attempt == limits.retries or transport.deadline.has_passed:
            raise _with_rest(error, partial) from error
        time.sleep(min(limits.retry_wait_s * 2**attempt, transport.deadline.left_s))
        attempt += 1


def _try(
    transport: Transport,
    url: str,
    partial: PartialFile,
    limits: Limits,
    report: Callable[[int], None],
) -> HubError | None:
    """Try once; return what went wrong if another try may help."""
    try:
        if partial.n_done != partial.size:
            _receive(transport, url, partial, limits, report)
        partial.check(url)
    except HubError as error:
        if error.code == "integrity" and partial.is_pieced:
            partial.restart()  # the file changed between two answers: all of it, from one
        elif error.code not in PASSING:
            raise
        return error
    return None


def _receive(
    transport: Transport,
    url: str,
    partial: PartialFile,
    limits: Limits,
    report: Callable[[int], None],
) -> None:
    with transport.get(url, start=partial.n_done, validator=partial.validator) as (response, start):
        if start != partial.n_done:
            partial.restart()
        partial.begin(response.headers.get("etag", ""))
        report(partial.n_done)
        pace = _Pace(limits)
        for piece in transport.chunks(response):
            partial.take(piece)
            if partial.n_done > partial.size:
                return
            pace.count(len(piece))
            report(partial.n_done)


class _Pace:
    """Refuses a connection that delivers a few bytes now and then."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.since, self.n_bytes = time.monotonic(), 0

    def count(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes
        elapsed = time.monotonic() - self.since
        if elapsed < self.limits.speed_window_s:
            return
        if self.n_bytes < self.limits.min_bytes_per_s * elapsed:
            what = f"{self.n_bytes} bytes came in {elapsed:.1f} s"
            least = f"{self.limits.min_bytes_per_s:g} a second are the least"
            raise HubError("timeout", f"{what}; {least}", "try again, or choose a nearer hub")
        self.since, self.n_bytes = time.monotonic(), 0


def _with_rest(error: HubError, partial: PartialFile) -> HubError:
    """Return the error, with what the next try has to do."""
    if partial.n_done == 0:
        return error
    kept = f"{partial.n_done} of {partial.size} bytes are kept: the next try goes on from there"
    return HubError(error.code, error.what, f"{error.help}; {kept}")
