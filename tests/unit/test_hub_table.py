"""
Every way a hub can misbehave: right bytes or one typed error in time, nothing outside the cache.

Whatever went wrong, nothing stays but files that were verified and partial files named by their hash, and
the same cache serves as soon as the hub behaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakehub import FakeHub, Fault, answer, cut_after, etag_of, replace_body
from hub_samples import TOKENIZER, WEIGHTS, everything_in
from hubfaults import (
    ENDLESS_BODY,
    ENDLESS_HEADER,
    drip,
    endless,
    gzip_bomb,
    headers,
    redirect,
    reset_after,
    spliced,
    stall_after,
    trickle,
    without_ranges,
    wrong_range,
)
from promises import report

from gguf_engine.errors import GGUFEngineError
from gguf_engine.loader.catalog import ModelSpec
from gguf_engine.loader.download import Limits
from gguf_engine.loader.hub import Fetched, Hub

RIGHT = "right bytes"
SPEC = ModelSpec(name="org/repo:m.gguf", repo="org/repo", file="m.gguf")
W, T, API = "m.gguf", "tokenizer.json", "api/models"
OTHER = WEIGHTS[::-1]
GOOD = etag_of(W, WEIGHTS)
TRUE = {"ETag": f'"{GOOD}"', "X-Linked-Size": str(len(WEIGHTS))}
PORTAL = b"<html><title>Log in</title>" + b"x" * 5000

# Short limits where a row is about them: elsewhere a busy machine would trip over them.
SILENCE = {"timeout_s": 0.3}
SPEED = {"speed_window_s": 0.2, "min_bytes_per_s": 1000.0}
TIME = {"deadline_s": 0.6}


def row(name: str, outcome: str, *faults: Callable[[], Fault], **short: float) -> Any:
    return pytest.param(outcome, faults, short, id=name)


ROWS = [
    row("cut once", RIGHT, lambda: cut_after(400_000, path=W, times=1)),
    row("cut before the first byte", RIGHT, lambda: cut_after(0, path=W, times=2)),
    row("cut always", "network", lambda: cut_after(10, path=W)),
    row(
        "cut and ranges ignored",
        RIGHT,
        lambda: without_ranges(path=W),
        lambda: cut_after(9, path=W, times=1),
    ),
    row("reset once", RIGHT, lambda: reset_after(300_000, path=W, times=1)),
    row("reset always", "network", lambda: reset_after(0, path=W)),
    row("stall before the answer ends", "timeout", lambda: stall_after(1000, path=W), **SILENCE),
    row("stall once", RIGHT, lambda: stall_after(1000, path=W, times=1), **SILENCE),
    row("a byte now and then", "timeout", lambda: trickle(0.02, path=W), **SPEED),
    row("a slow answer to the first question", "timeout", lambda: trickle(0.1, path=API), **TIME),
    row("headers without end", "timeout", lambda: drip(ENDLESS_HEADER, 0.02, path=W), **TIME),
    row("an answer of no length", "timeout", lambda: drip(ENDLESS_BODY, 0.02, path=API), **TIME),
    row(
        "bytes at the least speed, without end",
        "timeout",
        lambda: trickle(0.01, n_bytes=99, path=W),
        **TIME,
    ),
    row("wrong bytes of the right size", "integrity", lambda: replace_body(OTHER, path=W)),
    row("fewer bytes", "network", lambda: replace_body(WEIGHTS[:-1], path=W)),
    row("no bytes", "network", lambda: replace_body(b"", path=W)),
    row("more bytes", "integrity", lambda: replace_body(WEIGHTS + b"!", path=W)),
    row("bytes without end", "integrity", lambda: endless(WEIGHTS, path=W)),
    row("an answer without end", "network", lambda: endless(b"[" * 2**20, path=API)),
    row("gzip bomb for a file", "network", lambda: gzip_bomb(2**23, path=W)),
    row("gzip bomb for an answer", "network", lambda: gzip_bomb(2**23, path=API)),
    row("portal page for a file", "network", lambda: replace_body(PORTAL, path=W)),
    row("portal page for an answer", "network", lambda: replace_body(PORTAL, path=API)),
    row("portal page for everything", "network", lambda: replace_body(PORTAL)),
    row("portal page for a file's headers", "integrity", lambda: headers({"Content-Type": "text/html"})),
    row("hostile ETag", "integrity", lambda: headers({"ETag": '"../../../../evil"', "X-Linked-Size": "9"})),
    row("hostile commit", "integrity", lambda: headers({**TRUE, "X-Repo-Commit": "../../x"})),
    row("another commit", "integrity", lambda: headers({**TRUE, "X-Repo-Commit": "0" * 40})),
    row("hostile size", "integrity", lambda: headers({"ETag": f'"{GOOD}"', "X-Linked-Size": "-5"})),
    row("wrong size", "integrity", lambda: headers({"ETag": f'"{GOOD}"', "X-Linked-Size": "1000"})),
    row(
        "more than the disk", "disk_full", lambda: headers({"ETag": f'"{GOOD}"', "X-Linked-Size": "9" * 15})
    ),
    row(
        "commit that leaves the cache",
        "integrity",
        lambda: replace_body(b'{"sha": "../../../x"}', path=API),
    ),
    row("redirect to a file", "network", lambda: redirect("file:///etc/passwd", path=W)),
    row("redirect to no URL", "network", lambda: redirect("http://[::1", path=W)),
    row("redirect to a broken port", "network", lambda: redirect("http://127.0.0.1:99999999/", path=W)),
    row("redirect without encryption", "network", lambda: redirect("http://192.0.2.1/x", path=W)),
    row("redirect for ever", "network", lambda: redirect("/org/repo/m.gguf", path=W)),
    row("401", "auth", lambda: answer(401, path=W)),
    row("403", "auth", lambda: answer(403, path=W)),
    row("404", "not_found", lambda: answer(404, path=W)),
    row("404 of a revision", "revision", lambda: answer(404, path=API, code="RevisionNotFound")),
    row("gated", "gated", lambda: answer(403, path=W, code="GatedRepo")),
    row("429 for ever", "busy", lambda: answer(429, path=W)),
    row("429 twice", RIGHT, lambda: answer(429, path=W, method="GET", times=2)),
    row("500", "network", lambda: answer(500, path=W)),
    row("503 twice", RIGHT, lambda: answer(503, path=W, method="GET", times=2)),
    row("504", "timeout", lambda: answer(504, path=W)),
    row("the file changes between two answers", RIGHT, lambda: spliced(400_000, OTHER, path=W)),
    row(
        "the wrong range",
        RIGHT,
        lambda: wrong_range(path=W),
        lambda: cut_after(1000, path=W, times=1),
    ),
    row("wrong bytes of a small file", "integrity", lambda: replace_body(TOKENIZER[::-1], path=T)),
    row("more bytes of a small file", "integrity", lambda: replace_body(TOKENIZER + b" ", path=T)),
    row("a small file cut once", RIGHT, lambda: cut_after(5, path=T, times=1)),
    row("a small file reset", "network", lambda: reset_after(3, path=T)),
    row("a portal page for a small file", "integrity", lambda: replace_body(PORTAL, path=T)),
    row("a small file without end", "integrity", lambda: endless(b"x" * 100, path=T)),
    row("a small file gone", "not_found", lambda: answer(404, path=T)),
]

# What may stay: the layout of huggingface_hub, our records, and partial files named by a hash.
_HASH = "(?:[0-9a-f]{40}|[0-9a-f]{64})"
ALLOWED = re.compile(
    rf"models--org--repo/(?:blobs/{_HASH}(?:\.partial(?:\.etag)?)?|refs/main"
    rf"|(?:snapshots|\.verified)/[0-9a-f]{{40}}/(?:m\.gguf|tokenizer\.json)(?:\.json)?)"
)


def is_right(fetched: Fetched) -> bool:
    weights, tokenizer = fetched.weights[0].path, fetched.tokenizer
    return weights.read_bytes() == WEIGHTS and (
        tokenizer is not None and tokenizer.path.read_bytes() == TOKENIZER
    )


def client(cache: Path, *, timeout_s: float = 15.0, **short: Any) -> Hub:
    made = Hub.open(cache_dir=cache)
    limits = Limits(retry_wait_s=0, retries=2, **short)
    return replace(made, transport=replace(made.transport, timeout_s=timeout_s), limits=limits)


@pytest.mark.parametrize(("outcome", "faults", "short"), ROWS)
def test_right_bytes_or_one_typed_error(
    hub: FakeHub,
    clean_environment: Path,
    outcome: str,
    faults: tuple[Callable[[], Fault], ...],
    short: dict[str, float],
) -> None:
    cache, parent = clean_environment, clean_environment.parent
    hub.faults += [make() for make in faults]
    outside = everything_in(parent)
    try:
        assert is_right(client(cache, **short).fetch(SPEC))
        code = RIGHT
    except GGUFEngineError as error:
        code = str(getattr(error, "code", error))
    assert code == outcome
    inside = [path.relative_to(cache).as_posix() for path in everything_in(cache)]
    assert [name for name in inside if not ALLOWED.fullmatch(name)] == []
    assert [path for path in everything_in(parent) if cache not in path.parents] == outside
    hub.faults.clear()
    assert is_right(client(cache).fetch(SPEC))
    assert not [path for path in everything_in(cache) if ".partial" in path.name]
    report(
        "No file is used whose bytes were not checked, nothing is written outside the cache",
        1,
        "right bytes or one typed error for each way a hub can misbehave",
    )


def test_the_table_is_long_enough() -> None:
    assert len(ROWS) > 45
