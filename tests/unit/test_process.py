"""An engine in a child process: the same answers, and a crash costs what ran and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faulty_backends as faulty
import pytest
from text_samples import from_json, spm_json

from gguf_engine import (
    LLM,
    BackendError,
    EngineClosedError,
    EngineCrashed,
    EngineSilentError,
    ModelLoadError,
    OptionError,
)
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import link, process
from gguf_engine.engine.process import ProcessWorker
from gguf_engine.text.constraint import Constraint

TOKENIZER = from_json(spm_json())
SAME = {"seed": 5, "max_tokens": 12, "ignore_eos": True}

Isolate = Callable[..., LLM]


@pytest.fixture
def isolate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Isolate]:
    """Return a function that makes an LLM over a backend in a child process."""
    monkeypatch.setattr(process, "BACK_OFF_S", 0.01)
    made: list[LLM] = []

    def make(backend: Callable[..., Any] = FakeBackend, *args: Any, **options: Any) -> LLM:
        hooks = {name: options.pop(name) for name in ("on_load", "on_killed") if name in options}
        options = {"n_ctx": 512, "n_vocab": TOKENIZER.n_vocab, **options}
        llm = LLM(partial(backend, *args, **options), TOKENIZER, isolation="process", **hooks)
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.close()


def worker_of(llm: LLM) -> ProcessWorker:
    assert isinstance(llm._worker, ProcessWorker)
    return llm._worker


def pid_of(llm: LLM) -> int:
    pid = worker_of(llm).pid
    assert pid is not None
    return pid


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_end(pid: int) -> None:
    for _ in range(2000):
        if not is_running(pid):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} still runs")


def test_the_answer_is_that_of_an_engine_in_a_thread(isolate: Isolate) -> None:
    isolated = isolate()
    with LLM(lambda: FakeBackend(n_ctx=512, n_vocab=TOKENIZER.n_vocab), TOKENIZER) as llm:
        expected = llm.generate("The ice", logprobs=3, **SAME)  # type: ignore[arg-type]
        assert (isolated.n_ctx, isolated.n_vocab, isolated.end_ids) == (512, llm.n_vocab, llm.end_ids)
    found = isolated.generate("The ice", logprobs=3, **SAME)  # type: ignore[arg-type]
    assert found.text == expected.text
    assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)
    assert found.top_logprobs == expected.top_logprobs
    assert (found.usage, found.finish_reason) == (expected.usage, "length")
    assert found.timings.total_s > 0


def test_stop_strings_end_an_answer_there(isolate: Isolate) -> None:
    llm = isolate()
    text = llm.generate("The ice", **SAME).text  # type: ignore[arg-type]
    cut = llm.generate("The ice", stop=[text[3:6]], **SAME)  # type: ignore[arg-type]
    assert cut.finish_reason == "stop"
    assert text.startswith(cut.text)


def test_a_cancel_reaches_the_child(isolate: Isolate) -> None:
    llm = isolate(n_ctx=100_000)
    stream = llm.stream("The ice", max_tokens=None, ignore_eos=True)
    next(stream)
    stream.cancel()
    assert list(stream)[-1].finish_reason == "cancelled"
    assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]


def test_a_cancel_interrupts_the_pass_under_way(isolate: Isolate) -> None:
    llm = isolate(forward_s=3600.0)
    stream = llm.stream("The ice")
    time.sleep(0.2)
    stream.cancel()
    assert list(stream)[-1].finish_reason == "cancelled"


@pytest.mark.parametrize(
    ("die", "end"), [(faulty.abort, "SIGABRT"), (faulty.segfault, "SIGSEGV"), (faulty.leave, "exit code 3")]
)
def test_a_crash_is_an_error_and_the_next_request_is_answered(
    isolate: Isolate, tmp_path: Path, die: Callable[[], None], end: str
) -> None:
    llm = isolate(faulty.DiesAfter, die, 4, tmp_path / "once")
    first = pid_of(llm)
    with pytest.raises(EngineCrashed, match=end) as raised:
        llm.generate("The ice", **SAME)  # type: ignore[arg-type]
    assert raised.value.pid == first
    assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]
    assert pid_of(llm) != first


def test_the_error_holds_the_last_words(isolate: Isolate, tmp_path: Path) -> None:
    llm = isolate(faulty.DiesAfter, faulty.abort, 1, tmp_path / "once")
    with pytest.raises(EngineCrashed, match="GGML_ASSERT") as raised:
        llm.generate("The ice", **SAME)  # type: ignore[arg-type]
    assert raised.value.last_words == faulty.LAST_WORDS


def test_every_running_request_is_told_and_other_engines_are_not(isolate: Isolate) -> None:
    llm, other = isolate(n_ctx=100_000, forward_s=0.01), isolate()
    streams = [llm.stream("The ice", max_tokens=None, ignore_eos=True) for _ in range(4)]
    elsewhere = other.stream("The ice", max_tokens=400, ignore_eos=True)
    for stream in streams:
        next(stream)
    os.kill(pid_of(llm), signal.SIGKILL)
    for stream in streams:
        with pytest.raises(EngineCrashed, match="SIGKILL"):
            list(stream)
    assert elsewhere.completion().finish_reason == "length"


def test_a_child_killed_while_idle_is_started_again(isolate: Isolate) -> None:
    llm = isolate()
    for _ in range(4):
        pid = pid_of(llm)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]


def test_a_model_that_kills_its_loader_is_reported(isolate: Isolate) -> None:
    killed: list[str] = []
    with pytest.raises(EngineCrashed, match="GGML_ASSERT"):
        isolate(faulty.DiesLoading, on_killed=killed.append)
    assert len(killed) == 1
    assert "GGML_ASSERT" in killed[0]


def test_a_loader_killed_from_outside_says_nothing_of_the_model(isolate: Isolate) -> None:
    killed: list[str] = []
    with pytest.raises(EngineCrashed, match="SIGKILL"):
        isolate(
            faulty.DiesLoading,
            partial(signal.raise_signal, signal.SIGKILL),
            on_killed=killed.append,
        )
    assert killed == []


def test_a_model_that_kills_again_and_again_is_given_up(isolate: Isolate) -> None:
    killed: list[str] = []
    llm = isolate(faulty.DiesAfter, faulty.abort, 1, on_killed=killed.append)
    pids = set()
    for _ in range(process.MAX_CRASHES + 3):
        with pytest.raises(EngineCrashed) as raised:
            llm.generate("The ice", **SAME)  # type: ignore[arg-type]
        pids.add(raised.value.pid)
    assert len(pids) == process.MAX_CRASHES
    assert len(killed) == 1


def test_a_model_that_has_answered_is_never_given_up(isolate: Isolate) -> None:
    """One request may crash it again and again, and what a client sends again does: others go on."""
    killed: list[str] = []
    llm = isolate(faulty.DiesAfter, faulty.abort, 3, on_killed=killed.append)
    for _ in range(process.MAX_CRASHES + 2):
        with pytest.raises(EngineCrashed):
            llm.generate("The ice", seed=1, max_tokens=100, ignore_eos=True)
        assert llm.generate("The", seed=1, max_tokens=1).finish_reason == "length"
        with pytest.raises(EngineCrashed):
            llm.generate("The ice", seed=1, max_tokens=100, ignore_eos=True)
    for _ in range(process.MAX_CRASHES + 2):
        with pytest.raises(EngineCrashed):
            llm.generate("The ice", seed=1, max_tokens=100, ignore_eos=True)
    assert llm.generate("The", seed=1, max_tokens=1).finish_reason == "length"
    assert killed == []


def test_an_interpreter_that_ends_before_the_load_says_nothing_of_the_model(
    isolate: Isolate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update of the package under way, for one: the engine comes back when it is done."""
    killed: list[str] = []
    llm = isolate(on_killed=killed.append)
    with monkeypatch.context() as patch:
        patch.setattr(link, "_BOOT", "raise ImportError('half of an update')")
        with pytest.raises(EngineCrashed, match="half of an update"):
            isolate(on_killed=killed.append)
        os.kill(pid_of(llm), signal.SIGKILL)
        for _ in range(process.MAX_CRASHES + 2):
            with pytest.raises(EngineCrashed):
                llm.generate("The ice", **SAME)  # type: ignore[arg-type]
    assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]
    assert killed == []


def test_a_child_that_cannot_be_started_now_is_started_later(
    isolate: Isolate, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = isolate()
    pid = pid_of(llm)

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", fail)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        with pytest.raises(EngineCrashed, match=r"could not be started: .*Too many open files"):
            llm.generate("The ice", **SAME)  # type: ignore[arg-type]
    assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", fail)
        with pytest.raises(OSError, match="Too many open files"):
            isolate()


def test_a_child_that_nobody_can_read_from_is_ended(
    isolate: Isolate, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = isolate()
    pid, seen = pid_of(llm), []

    def fail(thread: threading.Thread) -> None:
        seen.append(thread.name)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", fail)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        with pytest.raises(EngineCrashed, match="can't start new thread"):
            llm.generate("The ice", **SAME)  # type: ignore[arg-type]
    assert seen == ["gguf-engine-reader"]
    assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]


def test_a_child_that_hangs_is_ended_and_started_again(
    isolate: Isolate, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = isolate()
    pid = pid_of(llm)
    monkeypatch.setattr(process, "STALL_S", 0.3)
    os.kill(pid, signal.SIGSTOP)
    stream = llm.stream("The ice", **SAME)  # type: ignore[arg-type]
    while is_running(pid):
        with pytest.raises((EngineSilentError, EngineCrashed)):
            llm.stats(0.1)
    with pytest.raises(EngineCrashed, match="SIGKILL"):
        list(stream)
    assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]
    assert llm.stats().n_crashes == 1


def test_after_any_number_of_crashes_the_next_start_has_a_time(isolate: Isolate) -> None:
    worker = worker_of(isolate())
    worker._n_crashes = 5000
    worker._plan_next()
    assert worker._start_at - time.monotonic() <= process.MAX_BACK_OFF_S


def test_a_file_that_changed_is_not_taken_for_the_model(isolate: Isolate, tmp_path: Path) -> None:
    llm = isolate(faulty.Remembers, tmp_path / "once")
    os.kill(pid_of(llm), signal.SIGKILL)
    with pytest.raises(EngineCrashed, match=r"changed|SIGKILL"):
        llm.generate("The ice", **SAME)  # type: ignore[arg-type]
    with pytest.raises(EngineCrashed, match="changed"):
        llm.generate("The ice", **SAME)  # type: ignore[arg-type]


def test_what_the_backend_raises_is_raised_here(isolate: Isolate) -> None:
    with pytest.raises(ModelLoadError, match="because") as raised:
        isolate(faulty.RefusesToLoad)
    assert raised.value.path == "m.gguf"
    llm = isolate(faulty.FailsAfter)
    with pytest.raises(BackendError) as failed:
        llm.generate("The ice", **SAME)  # type: ignore[arg-type]
    assert failed.value.status == -3
    assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]


def test_the_load_is_reported_and_prints_do_no_harm(isolate: Isolate) -> None:
    done: list[float] = []
    llm = isolate(faulty.Reports, on_load=done.append)
    assert done[-1] == 1.0
    assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]


def test_an_error_in_the_report_is_the_loads(isolate: Isolate) -> None:
    with pytest.raises(ZeroDivisionError):
        isolate(faulty.Reports, on_load=lambda _: 1 / 0)


def test_a_load_can_be_left_with_ctrl_c() -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        LLM(faulty.LoadsForEver, TOKENIZER, isolation="process")


def test_closing_ends_child_and_requests(isolate: Isolate) -> None:
    llm = isolate(n_ctx=100_000, forward_s=0.01)
    stream = llm.stream("The ice", max_tokens=None, ignore_eos=True)
    next(stream)
    pid = pid_of(llm)
    llm.close()
    llm.close()
    assert not is_running(pid)
    with pytest.raises(EngineClosedError):
        list(stream)
    with pytest.raises(EngineClosedError):
        llm.generate("The ice")


def test_a_stopped_child_does_not_hold_up_the_close(
    isolate: Isolate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.2)
    llm = isolate()
    pid = pid_of(llm)
    os.kill(pid, signal.SIGSTOP)
    llm.close()
    assert not is_running(pid)


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = """if True:
        import sys, time
        from functools import partial
        from gguf_engine import LLM
        from gguf_engine.backend.fake import FakeBackend
        from text_samples import from_json, spm_json
        tokenizer = from_json(spm_json())
        llm = LLM(partial(FakeBackend, n_vocab=tokenizer.n_vocab), tokenizer, isolation="process")
        print(llm._worker.pid, flush=True)
        time.sleep(3600)
    """
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": tests}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_for_end(pid)


class Unpicklable:
    """A constraint that refuses to travel."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("not me")


def test_the_stats_are_the_engines_own(isolate: Isolate) -> None:
    llm = isolate(n_ctx=100_000, n_slots=2, forward_s=0.01)
    assert llm.stats()[:3] == (0, 0, 2)
    streams = [llm.stream("The ice", max_tokens=None, ignore_eos=True) for _ in range(3)]
    for stream in streams[:2]:
        next(stream)
    stats = llm.stats()
    assert (stats.n_running, stats.n_waiting, stats.n_crashes) == (2, 1, 0)
    assert stats.n_cells_used > 0
    assert stats.pid == pid_of(llm)
    for stream in streams:
        stream.close()


def test_asking_for_stats_starts_a_dead_engine(isolate: Isolate) -> None:
    llm = isolate()
    pid = pid_of(llm)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    for _ in range(100):
        with contextlib.suppress(EngineSilentError):
            if (stats := llm.stats(timeout_s=0.2)).pid != pid:
                break
    assert stats.n_crashes == 1


def test_a_stopped_engine_is_silent(isolate: Isolate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.2)
    llm = isolate()
    os.kill(pid_of(llm), signal.SIGSTOP)
    with pytest.raises(EngineSilentError, match=r"within 0\.2 s"):
        llm.stats(timeout_s=0.2)


def test_a_model_that_is_given_up_has_no_stats(isolate: Isolate) -> None:
    llm = isolate(faulty.DiesAfter, faulty.abort, 1)
    for _ in range(process.MAX_CRASHES):
        with pytest.raises(EngineCrashed):
            llm.generate("The ice", **SAME)  # type: ignore[arg-type]
    with pytest.raises(EngineCrashed, match="GGML_ASSERT"):
        llm.stats()
    llm.close()
    with pytest.raises(EngineClosedError):
        llm.stats()


def test_what_cannot_be_sent_is_an_option_error(isolate: Isolate) -> None:
    llm = isolate()
    constraint: Constraint = Unpicklable()  # type: ignore[assignment]
    request = llm._request("The ice", None, chat=False, options={}, constraint=constraint)
    with pytest.raises(OptionError, match="not me"):
        llm._worker.open(request, lambda _: None)
    with pytest.raises(OptionError, match="pickled"):
        LLM(lambda: FakeBackend(n_ctx=64), TOKENIZER, isolation="process")
    with pytest.raises(OptionError, match="isolation"):
        LLM(FakeBackend, TOKENIZER, isolation="box")  # type: ignore[arg-type]


def test_a_reader_that_fails_costs_itself_alone(isolate: Isolate) -> None:
    llm = isolate()
    worker = worker_of(llm)

    def fail(_: object) -> None:
        raise ZeroDivisionError

    request = llm._request("The ice", None, chat=False, options=dict(SAME))
    worker.submit(worker.open(request, fail))
    assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_use_after_a_fork_is_an_error(isolate: Isolate) -> None:
    llm = isolate()
    child = os.fork()
    if child == 0:
        try:
            llm.generate("The ice")
        except EngineClosedError:
            llm.close()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert llm.generate("The ice", **SAME).finish_reason == "length"  # type: ignore[arg-type]
