"""Engines as processes: what is refused, what a failure says, and that nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gguf_engine.bench.process import (
    ABOUT,
    EngineProcess,
    Peer,
    PeerError,
    busy_neighbour,
    parse_peer,
    run_llama_bench,
)
from gguf_engine.errors import OptionError

HERE = sys.executable


def program(folder: Path, *lines: str) -> str:
    """Write a program that takes any arguments."""
    path = folder / "program"
    path.write_text("\n".join([f"#!{HERE}", *lines]))
    path.chmod(0o755)
    return str(path)


def is_alive(pid: int) -> bool:
    if not Path("/proc/self/stat").exists():
        return subprocess.run(["ps", "-p", str(pid)], capture_output=True).returncode == 0
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_peer_is_a_name_and_where_it_lives() -> None:
    assert parse_peer("bare") == Peer(name="bare", program=HERE)
    assert parse_peer(f"xllamacpp={HERE}") == Peer(name="xllamacpp", program=HERE)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("vllm", "--peer is 'vllm'; allowed: bare, llama-cpp-python, xllamacpp, mistralrs, llama-bench"),
        ("about", "--peer is 'about'; allowed: bare"),
        ("llama-bench", "allowed: llama-bench=PATH"),
        ("bare=/nowhere/python", "there is no file /nowhere/python"),
    ],
)
def test_what_is_no_peer_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        parse_peer(text)


def test_the_facts_of_the_library_come_from_a_process() -> None:
    with EngineProcess(Peer(name=ABOUT, program=HERE), {}, None) as process:
        facts = process.facts
    assert facts["devices"][0]["name"] == "cpu"
    assert "CPU" in facts["software"]["system_info"]


def test_a_peer_that_is_not_installed_says_how_to_install_it() -> None:
    what = r"^xllamacpp is not installed; `.* -m pip install xllamacpp`$"
    with pytest.raises(PeerError, match=what):
        EngineProcess(Peer(name="xllamacpp", program=HERE), {"path": "x"}, None)


def test_an_engine_that_refuses_the_file_says_so() -> None:
    config = {"path": "/nowhere.gguf", "device": "cpu", "n_threads": 1, "n_ctx": 64, "n_slots": 1}
    with pytest.raises(PeerError, match=r"bare failed: RuntimeError: llama\.cpp refused the file"):
        EngineProcess(Peer(name="bare", program=HERE), config, None)


def test_a_process_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    dies = program(tmp_path, "import sys", "sys.exit('no luck today')")
    with pytest.raises(PeerError, match="bare ended with code 1: no luck today"):
        EngineProcess(Peer(name="bare", program=dies), {}, None)


def test_threads_reach_engines_that_read_them_from_the_environment(tmp_path: Path) -> None:
    tells = program(
        tmp_path, "import os", "print('{\"got\": %s}' % os.environ['RAYON_NUM_THREADS'])", "input()"
    )
    with EngineProcess(
        Peer(name="mistralrs", program=tells), {"n_threads": 3}, dict(os.environ)
    ) as process:
        assert process.facts == {"got": 3}


def test_llama_bench_is_asked_for_the_same_work(tmp_path: Path) -> None:
    row = {"avg_ts": 12.5, "build_commit": "abc", "build_number": 7}
    note = f"open({str(tmp_path / 'asked')!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    asks = program(tmp_path, "import sys", note, f"print({json.dumps([row])!r})")
    peer = Peer(name="llama-bench", program=asks)
    rates = run_llama_bench(
        peer, Path("m.gguf"), device="cpu", n_threads=2, n_prompt=32, n_tokens=8, depth=64
    )
    assert rates == {"prefill_tokens_per_s": 12.5, "decode_tokens_per_s": 12.5, "version": "abc (7)"}
    prefill, decode = (tmp_path / "asked").read_text().splitlines()
    assert prefill.endswith("-p 32 -n 0 -d 64")
    assert decode.endswith("-p 0 -n 8 -d 96")  # behind depth and prompt, where ours decodes
    assert "-t 2 -ngl 0" in prefill


def test_a_llama_bench_that_fails_says_why(tmp_path: Path) -> None:
    fails = program(tmp_path, "import sys", "sys.exit('error: no such model')")
    peer = Peer(name="llama-bench", program=fails)
    with pytest.raises(PeerError, match="llama-bench ended with code 1: error: no such model"):
        run_llama_bench(peer, Path("m"), device="cpu", n_threads=1, n_prompt=1, n_tokens=1, depth=0)


def test_a_neighbour_ends_even_when_whoever_started_it_is_killed() -> None:
    code = (
        "import gguf_engine.bench.process as p, subprocess, sys, time\n"
        "old = subprocess.Popen.__init__\n"
        "def init(self, *a, **k): old(self, *a, **k); print(self.pid, flush=True)\n"
        "subprocess.Popen.__init__ = init\n"
        "with p.busy_neighbour(True): time.sleep(60)\n"
    )
    with subprocess.Popen([HERE, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)  # until it counts: before, there is nothing to see
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    try:
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_no_neighbour_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with busy_neighbour(False):
        pass
