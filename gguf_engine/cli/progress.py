"""Progress bars on stderr, on a terminal only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

_VERBS = {
    "download": "Downloading",
    "bundle": "Bundling",
    "unbundle": "Unbundling",
    "check": "Checking",
    "load": "Loading",
}


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, str, int, int | None], None] | None]:
    """Yield what to call with stage, file, bytes done and bytes in all; None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    tasks = {}
    with Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bars:

        def show(stage: str, file: str, done: int, total: int | None) -> None:
            if (stage, file) not in tasks:
                tasks[stage, file] = bars.add_task(f"{_VERBS[stage]} {file}", total=total)
            bars.update(tasks[stage, file], completed=done, total=total)

        yield show
