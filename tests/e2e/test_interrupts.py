"""Ctrl-C, SIGTERM, a reader that leaves, a cancel and a fork: at any moment, in real processes."""

from __future__ import annotations

import os
import pty
import random
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_samples import Request, alone
from interrupt_samples import CLI, HANG_S, HEARS_CTRL_C, Program, interrupt_cli, interrupt_library
from promises import report
from text_samples import from_json, spm_json
from thoroughness import rounds

from gguf_engine import LLM
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.scheduler import Chunk, Scheduler
from gguf_engine.engine.worker import EngineWorker

pytestmark = pytest.mark.e2e

ENDLESS = ["run", "--model", "haiku", "--ignore-eos", "--max-tokens", "none", "Write a haiku"]
MOMENTS = random.Random(11)


def test_ctrl_c_reaches_a_program_that_uses_the_library_and_leaves_the_engine_usable() -> None:
    phases = ["load", "prompt", "generation", "stream"] * rounds(quick=6, thorough=50)
    seen, code, errors = interrupt_library("haiku", 2000, phases, 0.2, seed=5)
    assert (code, errors) == (0, "")
    assert [noticed.phase for noticed in seen] == phases
    assert all(noticed.seconds is not None and noticed.seconds < 5 for noticed in seen), seen
    times = [noticed.seconds for noticed in seen if noticed.seconds is not None]
    result = f"{len(times)} of {len(phases)} KeyboardInterrupts while loading, in a prompt and generating"
    report("Ctrl-C reaches a program that uses the library", len(phases), result, worst_s=max(times))


@pytest.mark.parametrize("n", range(rounds(quick=8, thorough=200)))
def test_ctrl_c_ends_the_command_line_with_130_and_no_word(n: int) -> None:
    del n
    seconds, code, errors = interrupt_cli(ENDLESS, MOMENTS.uniform(0, 1.5))
    assert (code, errors) == (130, "")
    assert seconds < 5
    report("Ctrl-C ends the command line", 1, "each with exit code 130 and no word", worst_s=seconds)


@pytest.mark.parametrize("n", range(rounds(quick=3, thorough=40)))
def test_ctrl_c_that_nobody_catches_ends_python_as_ever(n: int) -> None:
    """
    The interpreter's own end: a traceback, and the death by signal that shells know.

    All is imported before: a Ctrl-C in a callback of the import system is dropped by Python itself.
    """
    del n
    script = (
        f"{HEARS_CTRL_C}from gguf_engine import LLM\nLLM.load('haiku').close()\n"
        "print('.', flush=True)\nllm = LLM.load('haiku')\n"
        "for _ in llm.stream('The ice', max_tokens=None, ignore_eos=True): pass\n"
    )
    with Program(script) as program:
        assert program.line() == "."
        time.sleep(MOMENTS.uniform(0, 1.5))
        program.process.send_signal(signal.SIGINT)
        code, errors = program.end()
    assert code == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert errors.endswith("KeyboardInterrupt\n")
    assert "ignored" not in errors


@pytest.mark.parametrize("wait_s", [0.0, 0.4, 1.0])
def test_sigterm_ends_the_command_line(wait_s: float) -> None:
    with Program(CLI, *ENDLESS) as program:
        assert program.line(1) == "."
        time.sleep(wait_s)
        program.process.terminate()
        assert program.end() == (-signal.SIGTERM, "")


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["devices"], ["inspect", "haiku"], ["pull", "haiku"], ENDLESS]
)
def test_a_reader_that_has_left_ends_any_command_quietly(args: list[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "gguf_engine", *args]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, timeout=HANG_S)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")


LOSES_CTRL_C = """
import time, weakref
from gguf_engine import LLM
class Anything: pass
def load(*_, **__):
    anything = Anything()
    reference = weakref.ref(anything, lambda _: signal.raise_signal(signal.SIGINT))
    del anything
    while True: time.sleep(0.01)
LLM.load = load
"""


def test_a_ctrl_c_that_python_drops_in_a_callback_ends_the_command_line_all_the_same() -> None:
    with Program(HEARS_CTRL_C + LOSES_CTRL_C + CLI, *ENDLESS) as program:
        assert program.end() == (130, "")


SLOW_LOAD = """
import time
from gguf_engine.backend import llama
def load(path, params, progress):
    while progress(0.5): time.sleep(0.01)
    raise RuntimeError('ended')
llama.LlamaBackend = load
"""


def read_all(screen: int) -> str:
    """Return what a terminal shows until the program on it has ended."""
    shown = b""
    while select.select([screen], [], [], HANG_S)[0]:
        try:
            part = os.read(screen, 4096)
        except OSError:  # Linux's way to say that the other side is closed
            part = b""
        if not part:
            break
        shown += part
    return shown.decode()


@pytest.mark.parametrize("wait_s", [0.1, 0.5, 0.9])
def test_ctrl_c_while_a_progress_bar_is_drawn_leaves_the_terminal_as_it_was(wait_s: float) -> None:
    screen, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    terminal = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    script = terminal + SLOW_LOAD + CLI
    process = subprocess.Popen(
        [sys.executable, "-c", script, *ENDLESS],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )
    assert os.read(screen, 1) == b"."
    time.sleep(wait_s)
    os.write(screen, b"\x03")
    assert process.wait(HANG_S) == 130
    assert termios.tcgetattr(theirs) == before
    os.close(theirs)
    shown = read_all(screen)
    os.close(screen)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is hidden, and shown again
    assert "Traceback" not in shown


def test_a_load_that_cannot_be_stopped_does_not_hold_up_who_pressed_ctrl_c() -> None:
    may_end, is_closed = threading.Event(), threading.Event()

    class Backend(FakeBackend):
        def close(self) -> None:
            super().close()
            is_closed.set()

    def make() -> Engine:
        assert may_end.wait(HANG_S)
        return Engine(Backend())

    worker = EngineWorker(make)
    worker.close()  # what LLM does when it is interrupted
    assert not is_closed.is_set()
    may_end.set()
    assert is_closed.wait(HANG_S)


def wait_for_load() -> None:
    is_over = threading.Event()

    def make() -> Engine:
        is_over.wait()
        raise RuntimeError("ended")

    worker = EngineWorker(make, abort_making=is_over.set)
    try:
        worker.wait_until_ready()
    finally:
        worker.close()


def wait_for_call() -> None:
    is_over = threading.Event()
    worker = EngineWorker(lambda: Engine(FakeBackend()))
    worker.wait_until_ready()
    try:
        worker.call(lambda engine: is_over.wait(HANG_S))
    finally:
        is_over.set()
        worker.close()


def wait_for_piece() -> None:
    tokenizer = from_json(spm_json())
    with LLM(lambda: FakeBackend(n_vocab=tokenizer.n_vocab, forward_s=HANG_S), tokenizer) as llm:
        llm.generate("The ice")


@pytest.mark.parametrize("wait", [wait_for_load, wait_for_call, wait_for_piece])
def test_a_signal_that_does_not_wake_a_waiting_thread_is_seen_all_the_same(
    wait: Callable[[], None],
) -> None:
    """
    As when it comes a moment before the wait begins: here another thread is the one it interrupts.

    A wait that overlooks it ends after HANG_S without KeyboardInterrupt, or by the test's own time limit.
    """
    is_over = threading.Event()

    def interrupt() -> None:
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        is_over.wait()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        is_over.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_a_closed_engine_is_rid_of_its_thread() -> None:
    """Freed later, after C code that takes a while, its end would be the first Python to see a Ctrl-C."""
    worker = EngineWorker(lambda: Engine(FakeBackend()))
    worker.wait_until_ready()
    thread = weakref.ref(worker._thread)
    worker.close()
    assert thread() is None


def test_a_cancel_between_planning_and_computing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = EngineWorker(lambda: Engine(FakeBackend(forward_s=3600)))
    worker.wait_until_ready()
    request = worker.call(lambda engine: Request(engine, [1, 2, 3]))
    is_over = threading.Event()
    request.sequence.deliver = lambda _: is_over.set()
    schedule = Scheduler.schedule

    def schedule_then_cancel(self: Scheduler) -> list[Chunk]:
        chunks = schedule(self)
        canceller = threading.Thread(target=worker.cancel, args=(request.sequence,))
        canceller.start()
        canceller.join()
        return chunks

    monkeypatch.setattr(Scheduler, "schedule", schedule_then_cancel)
    worker.submit(request.sequence)
    assert is_over.wait(HANG_S)
    worker.close()


@pytest.fixture(scope="module")
def haiku() -> Iterator[LLM]:
    with LLM.load("haiku", n_ctx=2000, n_cells=8000, n_slots=4, n_threads=1) as llm:
        yield llm


def on_engine(llm: LLM, function: Callable[[Engine], Any]) -> Any:
    return llm._worker.call(function)  # type: ignore[attr-defined]


def forget(engine: Engine) -> None:
    for slot in list(engine.kv_cache._idle):
        engine.kv_cache.drop(slot)


def test_cancels_inside_a_long_prompt_leave_the_engine_as_it_was(haiku: LLM) -> None:
    long = [300 + n * 7 % 200 for n in range(1900)]
    short = haiku.encode("Write a haiku about moss", chat=True)
    options: dict[str, Any] = {"seed": 4, "max_tokens": 300, "ignore_eos": True, "min_p": 0.1}
    expected = haiku.generate(short, **options).text
    on_engine(haiku, forget)
    other = haiku.stream(short, **options)
    n_inside, n_rounds = 0, rounds(quick=10, thorough=200)
    for _ in range(n_rounds):
        stream = haiku.stream(long, max_tokens=1)
        time.sleep(MOMENTS.uniform(0, 0.05))
        stream.cancel()
        n_inside += list(stream)[-1].finish_reason == "cancelled"
    assert n_inside > n_rounds // 2
    assert other.completion().usage.n_completion == 300
    on_engine(haiku, forget)
    assert on_engine(haiku, n_used_cells) == 0
    assert haiku.generate(short, **options).text == expected


def n_used_cells(engine: Engine) -> int:
    return engine.backend.n_cells - engine.kv_cache.n_free_cells


def test_cancels_inside_long_prompts_change_nobody_elses_text() -> None:
    """Bit for bit on the fake, whose aborted passes store a half of their batch; its cells are counted."""
    backend = FakeBackend(n_ctx=1000, n_slots=4, n_cells=4000, forward_s=0.001)
    worker = EngineWorker(lambda: Engine(backend))
    worker.wait_until_ready()
    others: list[tuple[list[int], dict[str, Any]]] = [
        ([n, n + 1], {"seed": n, "max_tokens": 150}) for n in (1, 2)
    ]
    requests = worker.call(lambda engine: [Request(engine, ids, **options) for ids, options in others])
    for request in requests:
        worker.submit(request.sequence)
    while any(request.sequence.finished_at == 0 for request in requests):
        victim = worker.call(lambda engine: Request(engine, [MOMENTS.randrange(97) for _ in range(900)]))
        worker.submit(victim.sequence)
        time.sleep(MOMENTS.uniform(0, 0.005))
        worker.cancel(victim.sequence)
    for request, (prompt, options) in zip(requests, others, strict=True):
        assert request.completion.token_ids == alone(prompt, **options).token_ids
    worker.call(forget)
    assert worker.call(n_used_cells) == 0
    assert [backend.held(slot) for slot in range(4)] == [[], [], [], []]
    worker.close()


FORK = """
import gc, multiprocessing, os, sys, warnings
from gguf_engine import LLM, EngineClosedError, OptionError
warnings.simplefilter("ignore", DeprecationWarning)
llm = LLM.load("haiku", n_ctx=2000, n_threads=2)
llm.generate("The ice " * 40, max_tokens=8, ignore_eos=True)
stream = llm.stream("The ice", max_tokens=None, ignore_eos=True)
next(stream)

def refused(function, kind=EngineClosedError):
    try:
        function()
    except kind as error:
        assert "fork" in str(error), error
        return
    raise AssertionError("not refused")

def generate(): refused(lambda: llm.generate("The ice"))
def read_on(): refused(lambda: list(stream))
def cancel(): stream.cancel(); stream.close()
def close(): llm.close(); llm.close()
def collect():
    global llm, stream
    del llm, stream
    gc.collect()
def load(): refused(lambda: LLM.load("haiku", n_threads=2), OptionError)
def load_with_one_thread():
    with LLM.load("haiku", n_ctx=100, n_threads=1) as own:
        assert own.generate("The ice", max_tokens=2, ignore_eos=True).finish_reason == "length"
def nothing(): pass

def forked(work):
    child = os.fork()
    if child == 0:
        work()
        sys.exit(0)  # the interpreter's own end, with the engine still there
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def by_multiprocessing(work):
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode

for work in (generate, read_on, cancel, close, collect, load, load_with_one_thread, nothing):
    assert forked(work) == 0, work
    assert by_multiprocessing(work) == 0, work
assert next(stream).text is not None  # the parent's own has run on
stream.close()
assert llm.generate("The ice", max_tokens=3, ignore_eos=True).finish_reason == "length"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_whatever_a_forked_child_does_with_an_engine_ends_in_an_error_or_cleanly() -> None:
    with Program(FORK) as program:
        code, errors = program.end()
    assert (code, errors) == (0, "")


def test_a_program_that_forgets_its_engine_in_mid_answer_ends(tmp_path: Path) -> None:
    script = (
        "from gguf_engine import LLM\nllm = LLM.load('haiku')\n"
        "streams = [llm.stream('The ice', max_tokens=None, ignore_eos=True) for _ in range(12)]\n"
        "next(streams[0])\n"
    )
    with Program(script) as program:
        assert program.end() == (0, "")
