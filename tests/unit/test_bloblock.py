"""One holder at a time, whoever it is; a dead one holds nothing, a living one is named."""

from __future__ import annotations

import fcntl
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from gguf_engine.errors import HubError
from gguf_engine.loader import bloblock
from gguf_engine.loader.bloblock import hold
from gguf_engine.loader.deadline import Deadline

HOLDER = """
import sys, math
from pathlib import Path
from gguf_engine.loader.bloblock import hold
from gguf_engine.loader.deadline import Deadline
with hold(Path(sys.argv[1]), wait_s=1, deadline=Deadline(math.inf), sign_of_life=lambda: 0):
    print("held", flush=True)
    sys.stdin.read()
"""


def take(
    path: Path,
    wait_s: float = 60,
    deadline_s: float = math.inf,
    sign_of_life: Callable[[], object] = lambda: 0,
) -> AbstractContextManager[None]:
    return hold(path, wait_s=wait_s, deadline=Deadline(deadline_s), sign_of_life=sign_of_life)


def refusal(path: Path, **options: float) -> HubError:
    with pytest.raises(HubError) as caught, take(path, **options):  # type: ignore[arg-type]
        pass
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".locks" / "repo" / "blob.lock"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_lock_file_says_who_holds_it_and_is_gone_afterwards(path: Path) -> None:
    with take(path):
        assert path.read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    assert not path.exists()


def test_another_process_that_holds_it_is_named(path: Path, holder: subprocess.Popen[str]) -> None:
    error = refusal(path, wait_s=0.1)
    assert error.code == "busy"
    assert f"process {holder.pid} on {os.uname().nodename} holds" in str(error)


def test_a_process_that_is_killed_holds_nothing(path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert path.exists()  # its file stays, its lock does not
    with take(path, wait_s=0):
        assert str(os.getpid()) in path.read_text()


def test_a_lock_file_without_a_holder_is_taken(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("process 1 on another machine")
    with take(path, wait_s=0):
        pass


def test_who_waits_goes_on_when_the_holder_is_done(path: Path, holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    threading.Timer(0.2, holder.stdin.close).start()
    with take(path):
        assert str(os.getpid()) in path.read_text()


def test_threads_of_one_process_take_turns(path: Path) -> None:
    inside: list[int] = []
    most = []

    def work() -> None:
        with take(path):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_holder_that_makes_progress_is_waited_for(
    path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bloblock, "POLL_S", 0)
    signs: list[int] = []

    def sign() -> int:
        signs.append(len(signs))
        if len(signs) == 50:
            holder.kill()
            holder.wait()
        return len(signs)

    with take(path, wait_s=0.001, sign_of_life=sign):
        assert len(signs) >= 50


def test_the_wait_ends_with_the_deadline(path: Path, holder: subprocess.Popen[str]) -> None:
    assert refusal(path, wait_s=60, deadline_s=0.1).code == "timeout"


def test_a_holder_that_left_no_name_is_another_process(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process holds" in str(refusal(path, wait_s=0))


def test_a_name_that_cannot_be_read_is_no_trouble(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bloblock._owner(path) == "another process"


def test_a_file_that_its_last_holder_removed_is_not_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = bloblock._lock, []

    def lock(descriptor: int) -> None:
        real(descriptor)
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()

    monkeypatch.setattr(bloblock, "_lock", lock)
    with take(path):
        assert path.exists()
    assert len(calls) == 2


def test_a_file_system_without_locks_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(bloblock, "_lock", refuse)
    error = refusal(path)
    assert error.code == "cache"
    assert "No locks available" in str(error)


def test_a_link_in_the_place_of_the_lock_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    assert refusal(path).code == "cache"
    assert not (tmp_path / "elsewhere").exists()
