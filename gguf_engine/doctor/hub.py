"""Can models be downloaded, and is there room for them: `Hub` and `Cache`."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from gguf_engine.doctor.facts import Cache, Hub
from gguf_engine.errors import HubError
from gguf_engine.loader.catalog import ModelSpec, parse_model
from gguf_engine.loader.deadline import Deadline
from gguf_engine.loader.hub import Hub as Connection

TIMEOUT_S = 4.0


def begin_asking(connection: Connection, timeout_s: float = TIMEOUT_S) -> Callable[[], Hub]:
    """
    Ask a hub for the default model in the background; return what waits for the outcome.

    Args:
        connection: Its endpoint, and whether it may be asked at all.
        timeout_s: When to give up, looking up its address included, which no client bounds.
    """
    endpoint = connection.transport.endpoint
    if connection.offline:
        return lambda: Hub(endpoint=endpoint, is_offline=True)
    outcome = [Hub(endpoint=endpoint, is_offline=False, problem=f"no answer within {timeout_s:g} s")]
    transport = replace(connection.transport, timeout_s=timeout_s, deadline=Deadline(timeout_s))
    spec = parse_model("phi3-mini")
    assert isinstance(spec, ModelSpec)
    path = f"api/models/{spec.repo}/revision/{spec.revision}"

    def ask() -> None:
        start = perf_counter()
        try:
            transport.json(path)
        except HubError as error:
            outcome[0] = replace(outcome[0], problem=str(error))
        else:
            outcome[0] = replace(outcome[0], answer_s=perf_counter() - start, problem="")

    thread = threading.Thread(target=ask, name="gguf-engine-hub", daemon=True)
    thread.start()

    def wait() -> Hub:
        thread.join(timeout_s + 1)
        return outcome[0]

    return wait


def read_cache(folder: Path) -> Cache:
    """Return what a hub cache holds; a file with several names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))  # noqa: PTH118 - a Path for each file is slow
            except OSError:
                continue  # another process has removed it
            sizes[status.st_dev, status.st_ino] = status.st_size
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        free = shutil.disk_usage(nearest).free
    except OSError:
        free = None
    return Cache(
        folder=str(folder),
        n_repos=len(list(folder.glob("models--*"))),
        n_bytes=sum(sizes.values()),
        free_bytes=free,
        is_writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
    )
