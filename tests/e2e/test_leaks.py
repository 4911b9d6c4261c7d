"""What is opened is given back: memory, descriptors, threads, slots, counted in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupt_samples import Program
from promises import report
from thoroughness import rounds

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counted in Linux's /proc"),
]

COUNTS = """
import gc, json, os, sys, threading
from pathlib import Path
from gguf_engine import LLM

def held():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    n_fds, n_tasks = (len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task"))
    return {"rss": pages * os.sysconf("SC_PAGESIZE"), "fds": n_fds, "tasks": n_tasks,
            "threads": threading.active_count(), "llms": sum(type(o) is LLM for o in gc.get_objects())}

def measure(work, n):
    for _ in range(max(20, n // 4)):  # malloc's arenas fill up once
        work()
    before = held()
    for _ in range(n):
        work()
    print(json.dumps([before, held()]), flush=True)

model, n = sys.argv[1], int(sys.argv[2])
"""

OPEN_AND_CLOSE = """
def work():
    with LLM.load(model, n_ctx=64, n_threads=1) as llm:
        llm.generate([5, 6, 7], max_tokens=2, ignore_eos=True)
measure(work, n)
"""

OPEN_AND_FORGET = """
def work():
    LLM.load(model, n_ctx=64, n_threads=1).generate([5, 6, 7], max_tokens=2, ignore_eos=True)
measure(work, n)
"""

DROP_STREAMS = """
import asyncio
llm = LLM.load(model, n_threads=1)
options = {"max_tokens": None, "ignore_eos": True}

def unread(): llm.stream([5, 6, 7], **options)
def begun(): next(llm.stream([5, 6, 7], **options))
def left():
    for _ in llm.stream([5, 6, 7], **options):
        break
def failed():
    try:
        for _ in llm.stream([5, 6, 7], **options):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
def suspended():
    def texts():
        for piece in llm.stream([5, 6, 7], **options):
            yield piece.text
    next(texts())
def of_asyncio():
    async def main():
        await anext(llm.astream([5, 6, 7], **options))
    asyncio.run(main())
def cycle():
    stream = llm.stream([5, 6, 7], **options)
    stream.itself = stream  # only the garbage collector finds this one

def work():
    for way in (unread, begun, left, failed, suspended, of_asyncio, cycle):
        way()
    gc.collect()
    assert llm.generate([8, 9], max_tokens=2, ignore_eos=True).finish_reason == "length"
measure(work, n)
while llm._worker.call(lambda engine: engine.has_work):
    pass
llm._worker.call(lambda engine: [engine.kv_cache.drop(slot) for slot in list(engine.kv_cache._idle)])
assert llm._worker.call(lambda engine: engine.kv_cache.n_free_cells) == llm.n_ctx
"""

REFUSED_LOADS = """
from gguf_engine import ModelFileError
broken = Path(model).with_name("broken.gguf")
broken.write_bytes(Path(model).read_bytes()[:-1000])
def work():
    try:
        LLM.load(broken)
    except ModelFileError:
        return
    raise AssertionError("it was loaded")
measure(work, n)
"""


@pytest.mark.parametrize(
    ("name", "script", "n"),
    [
        ("open and close", OPEN_AND_CLOSE, rounds(quick=60, thorough=1000)),
        ("open and forget", OPEN_AND_FORGET, rounds(quick=40, thorough=1000)),
        ("seven streams, dropped", DROP_STREAMS, rounds(quick=40, thorough=1000)),
        ("refused loads", REFUSED_LOADS, rounds(quick=60, thorough=1000)),
    ],
)
@pytest.mark.timeout(900)
def test_nothing_is_kept(name: str, script: str, n: int, make_tiny_model: Callable[..., Path]) -> None:
    """Five megabytes is the promise for 1,000 rounds; a leak of one tiny model is half of one."""
    model = make_tiny_model(n_ctx=4096)
    with Program(COUNTS + script, str(model), str(n), hang_s=100 + n) as program:
        code, errors = program.end()
    assert (code, errors) == (0, "")
    before, after = json.loads(program.out)
    assert after["rss"] - before["rss"] < 5 * 2**20, (before, after)
    for what in ("fds", "tasks", "threads", "llms"):
        assert after[what] == before[what], (what, before, after)
    grown = (after["rss"] - before["rss"]) / 2**20
    report(f"Nothing is kept: {name}", n, f"{grown:+.1f} MiB; no descriptor, thread or process more")
