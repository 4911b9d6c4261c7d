"""
Downloads by real processes over real HTTP: the default model, kill -9 and resume, two at once, no socket.

A hub on loopback serves the bundled model under Phi-3-mini's names; the program, its HTTP and the cache
are the real ones.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fakehub import FakeHub, Request
from hub_samples import TOKENIZER, WEIGHTS, everything_in
from hubchild import Downloaders, downloaders
from hubfaults import send_body
from promises import report
from thoroughness import rounds

from gguf_engine.loader.resolve import resolve_model

pytestmark = pytest.mark.e2e

PROMPT = "Write a haiku about ice hockey"


@pytest.fixture
def hub(fake_hub: FakeHub) -> FakeHub:
    bundled = resolve_model("haiku")
    assert bundled.tokenizer is not None
    weights = {"Phi-3-mini-4k-instruct-q4.gguf": bundled.weights.read_bytes()}
    fake_hub.add("microsoft/Phi-3-mini-4k-instruct-gguf", weights)
    fake_hub.add("microsoft/Phi-3-mini-4k-instruct", {"tokenizer.json": bundled.tokenizer.read_bytes()})
    return fake_hub


def run(hub: FakeHub, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint}
    command = [sys.executable, "-m", "gguf_engine", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_default_model_is_fetched_once_and_then_answers_offline(hub: FakeHub) -> None:
    first = run(hub, "run", "--seed", "1", PROMPT)
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.splitlines()) == 3
    assert sum("Phi-3-mini-4k-instruct-q4.gguf" in line and "GET" in line for line in hub.requests) == 1
    hub.requests.clear()
    second = run(hub, "run", "--seed", "1", "--offline", PROMPT)
    assert second.stdout == first.stdout
    assert hub.requests == []


def test_pull_prints_the_path_of_the_weights_and_nothing_else(hub: FakeHub) -> None:
    pulled = run(hub, "pull", "phi3-mini", "--revision", "main")
    assert pulled.returncode == 0, pulled.stderr
    (path,) = pulled.stdout.splitlines()
    assert Path(path).read_bytes() == resolve_model("haiku").weights.read_bytes()


def test_a_revision_that_is_not_there_is_a_sentence(hub: FakeHub) -> None:
    failed = run(hub, "run", "--revision", "v9", PROMPT)
    assert (failed.returncode, failed.stdout) == (4, "")
    assert "v9" in failed.stderr
    assert "Traceback" not in failed.stderr


PIECE = 32_768


class Killer:
    """
    A hub that counts the pieces it sends, and a process to end when a certain one is reached.

    Args:
        chance: Decides the piece. Up to the last one, the hub sends no more before the process is dead;
            after it the process runs on. How long it lives from then is decided as well.
    """

    def __init__(self, chance: random.Random) -> None:
        self.moment = chance.randrange(len(WEIGHTS) // PIECE + 12)
        self.delay_s = chance.random() * 0.03
        self.reached, self.dead = threading.Event(), threading.Event()

    def send(self, request: Request, data: bytes) -> None:
        for number, start in enumerate(range(0, len(data), PIECE)):
            if number == self.moment:
                self.reached.set()
                self.dead.wait(60)
            request.connection.sendall(data[start : start + PIECE])
        self.reached.set()

    def start_and_kill(self, children: Downloaders, cache: Path) -> str:
        """Return how the process ended, which may have been quicker."""
        pid, ended = children.start(cache), []

        def wait() -> None:
            ended.append(children.wait())
            self.reached.set()  # also where nothing was left to send

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert self.reached.wait(60)
        time.sleep(self.delay_s)
        os.kill(pid, signal.SIGKILL)
        self.dead.set()
        waiting.join()
        return ended[0]


def test_kill_9_at_any_moment_then_resume_ends_with_the_right_bytes(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.endpoint)
    fake_hub.add("org/repo", {"m.gguf": WEIGHTS, "tokenizer.json": TOKENIZER})
    chance = random.Random(20)
    n_killed = 0
    with downloaders() as children:
        for number in range(rounds(quick=8, thorough=100)):
            cache = tmp_path / str(number)
            for _ in range(chance.randint(1, 3)):
                killer = Killer(chance)
                fake_hub.faults = [send_body(killer.send, path="m.gguf")]
                ended = killer.start_and_kill(children, cache)
                n_killed += ended == "killed"
                assert ended in {"killed", "ok"}
                if ended == "ok":
                    break
            fake_hub.faults = []
            assert resolve_model("org/repo:m.gguf", cache_dir=cache).weights.read_bytes() == WEIGHTS
            assert [path for path in everything_in(cache) if ".partial" in path.name] == []
    assert n_killed >= rounds(quick=5, thorough=80)
    assert sum(span is not None for span in fake_hub.ranges) >= n_killed // 10
    n_rounds = rounds(quick=8, thorough=100)
    result = f"{n_rounds} of {n_rounds} files whole, after {n_killed} kills at random moments"
    report("A download that is killed with -9 goes on", n_rounds, result)


def test_a_second_process_waits_for_the_first_and_uses_what_it_fetched(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.endpoint)
    fake_hub.add("org/repo", {"m.gguf": WEIGHTS, "tokenizer.json": TOKENIZER})
    both = threading.Event()

    def send(request: Request, data: bytes) -> None:
        """Send the second half when both have asked what the file is."""
        request.connection.sendall(data[: len(data) // 2])
        assert both.wait(60)
        request.connection.sendall(data[len(data) // 2 :])

    def watch(request: Request) -> bool:
        if sum("HEAD" in line and "m.gguf" in line for line in fake_hub.requests) == 2:
            both.set()
        return False

    fake_hub.faults = [watch, send_body(send, path="m.gguf")]
    with downloaders() as one, downloaders() as other:
        one.start(tmp_path)
        other.start(tmp_path)
        assert (one.wait(), other.wait()) == ("ok", "ok")
    assert sum("GET" in line and "m.gguf" in line for line in fake_hub.requests) == 1
    assert [path for path in everything_in(tmp_path) if path.suffix == ".lock"] == []


# The interpreter itself reports every socket that is made and every name that is looked up.
NO_SOCKET = """
import sys

def refuse(event, args):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise RuntimeError("opens a socket: " + event)

sys.addaudithook(refuse)
from gguf_engine.cli.main import run_command
sys.exit(run_command(sys.argv[1:]))
"""


def run_without_sockets(hub: FakeHub, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint}
    command = [sys.executable, "-c", NO_SOCKET, *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_pinned_and_cached_opens_no_socket(hub: FakeHub, tmp_path: Path) -> None:
    lock, commit = str(tmp_path / "lock"), resolve_model("phi3-mini", endpoint=hub.endpoint).commit
    assert commit is not None
    assert run(hub, "lock", "phi3-mini", "--output", lock).returncode == 0
    for pin in (("--revision", commit), ("--lock", lock), ("--offline",)):
        pulled = run_without_sockets(hub, "pull", "phi3-mini", *pin)
        assert (pulled.returncode, pulled.stderr) == (0, "")
        assert Path(pulled.stdout.strip()).is_file()
    unpinned = run_without_sockets(hub, "pull", "phi3-mini")
    assert "opens a socket" in unpinned.stderr


def test_a_locked_model_answers_without_a_socket(hub: FakeHub, tmp_path: Path) -> None:
    lock = str(tmp_path / "lock")
    assert run(hub, "lock", "phi3-mini", "--output", lock).returncode == 0
    answered = run_without_sockets(hub, "run", "--lock", lock, "--seed", "1", PROMPT)
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout == run(hub, "run", "--model", "haiku", "--seed", "1", PROMPT).stdout
