"""A child that dies, hangs or cannot be started: what it costs, and when a model is given up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faulty_backends as faulty
import pytest
from process_samples import SAME, Isolate, is_running, isolate, pid_of, wait_for_end, worker_of

from gguf_engine import (
    EngineCrashed,
    EngineSilentError,
)
from gguf_engine.engine import link, process

__all__ = ["isolate"]  # a fixture


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
