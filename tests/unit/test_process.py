"""An engine in a child process: the same answers, and a crash costs what ran and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import faulty_backends as faulty
import pytest
from process_samples import SAME, TOKENIZER, Isolate, is_running, isolate, pid_of, wait_for_end, worker_of

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
from gguf_engine.engine import process
from gguf_engine.text.constraint import Constraint

__all__ = ["isolate"]  # a fixture


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


def test_an_engine_in_a_long_pass_says_what_it_began(isolate: Isolate) -> None:
    llm = isolate(forward_s=3600.0)
    stream = llm.stream("The ice", **SAME)  # type: ignore[arg-type]
    for _ in range(100):
        if (stats := llm.stats(timeout_s=20)).n_running:
            break
    assert (stats.n_running, stats.pid) == (1, pid_of(llm))
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
