"""Engines as processes: started for one round, asked over pipes, ended."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_engine.bench.record import OURS
from gguf_engine.errors import GGUFEngineError, OptionError

ABOUT = "about"
"""No engine: asked for the machine's devices and llama.cpp's build."""
_CHILD = Path(__file__).with_name("child.py")
# It ends by itself when whoever started it was killed: nobody else would end it.
_SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"


class PeerError(GGUFEngineError):
    """An engine's process that failed, or cannot do what is asked of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """
    What an engine can do.

    Attributes:
        file: Of `engines/`; "" for a program that is no Python package.
        package: What `pip install` calls it.
        many: Runs several streams at once.
        depth: Keeps a prefix, so that a depth can be computed before the clock starts.
        forced: Shows the rows of a text that is given.
    """

    file: str
    package: str = ""
    many: bool = True
    depth: bool = True
    forced: bool = True


KINDS: Mapping[str, Kind] = {
    OURS: Kind(file="ours", package="gguf-engine"),
    "bare": Kind(file="bare", package="llama-cpp-python"),
    "llama-cpp-python": Kind(file="llama_cpp_python", package="llama-cpp-python", many=False),
    "xllamacpp": Kind(file="xllamacpp", package="xllamacpp", forced=False),
    "mistralrs": Kind(file="mistralrs", package="mistralrs", many=False, depth=False, forced=False),
    "llama-bench": Kind(file="", many=False, forced=False),
    ABOUT: Kind(file="about"),
}
PEERS = tuple(name for name in KINDS if name not in (OURS, ABOUT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """
    An engine to compare with.

    Attributes:
        name: A key of KINDS.
        program: The Python that has it, or for llama-bench the program itself.
    """

    name: str
    program: str

    @property
    def kind(self) -> Kind:
        """Return what it can do."""
        return KINDS[self.name]


def parse_peer(text: str) -> Peer:
    """
    Return the peer that NAME or NAME=PROGRAM means.

    Raises:
        OptionError: No peer of that name, or no such program.
    """
    name, _, program = text.partition("=")
    if name not in PEERS:
        raise OptionError("--peer", text, ", ".join(PEERS), "write NAME, or NAME=PYTHON of its environment")
    if name == "llama-bench" and not program:
        raise OptionError("--peer", text, "llama-bench=PATH", "it is built with llama.cpp, not with Python")
    if program and not Path(program).is_file():
        raise OptionError("--peer", text, f"{name}=PATH of a program", f"there is no file {program}")
    return Peer(name=name, program=program or sys.executable)


class EngineProcess:
    """
    One engine, loaded.

    Args:
        peer: Which.
        config: See child.py.
        environment: Of the process; None is this process's own.

    Raises:
        PeerError: It is not installed, or did not load.
    """

    def __init__(
        self, peer: Peer, config: Mapping[str, Any], environment: Mapping[str, str] | None
    ) -> None:
        self.peer = peer
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        threads = {"RAYON_NUM_THREADS": str(config.get("n_threads", 1))}
        self._process = subprocess.Popen(
            [peer.program, str(_CHILD), peer.kind.file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            encoding="utf-8",
            env=None if environment is None else {**environment, **threads},
            start_new_session=True,  # a Ctrl-C is for us; we end it
        )
        try:
            self.facts = self._ask({**config, "began_at": time.time()})
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        """
        Ask for one of child.py's methods and wait for its answer.

        Raises:
            PeerError: The engine failed, or its process ended.
        """
        return self._ask({"do": do, **options})

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(
                f"{self.peer.name} ended with code {self._process.wait()}: {self._last_words()}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(self._explained(answer["error"]))
        return answer

    def _explained(self, error: str) -> str:
        if error.startswith(("ModuleNotFoundError", "PackageNotFoundError")):
            python, package = self.peer.program, self.peer.kind.package
            return f"{self.peer.name} is not installed; `{Path(python).name} -m pip install {package}`"
        return f"{self.peer.name} failed: {error[:300]}"

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._words):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def busy_neighbour(wanted: bool) -> Iterator[None]:
    """Let a process count meanwhile, on whatever processor the system gives it."""
    if not wanted:
        yield
        return
    child = subprocess.Popen([sys.executable, "-c", _SPIN], start_new_session=True)
    try:
        yield
    finally:
        child.kill()
        child.wait()


def run_llama_bench(
    peer: Peer, path: Path, *, device: str, n_threads: int, n_prompt: int, n_tokens: int, depth: int
) -> dict[str, Any]:
    """
    Return what llama-bench says of prefill at a depth, and of decode behind depth and prompt.

    It has the engine's own settings where it would else have others: no rearranged weights, batches of 512.
    Its decode is passes over random ids alone: nothing is sampled, no text is made.

    Raises:
        PeerError: The program failed.
    """
    place = ["-ngl", "0"] if device == "cpu" else ["-ngl", "999"]
    common = [peer.program, "-m", str(path), "-t", str(n_threads), *place, "-r", "1", "-o", "json"]
    common += ["-b", "512", "-ub", "256" if device == "cpu" else "512", "--repack", "0"]
    prefill = _llama_bench([*common, "-p", str(n_prompt), "-n", "0", "-d", str(depth)])
    decode = _llama_bench([*common, "-p", "0", "-n", str(n_tokens), "-d", str(depth + n_prompt)])
    return {
        "prefill_tokens_per_s": prefill["avg_ts"],
        "decode_tokens_per_s": decode["avg_ts"],
        "version": f"{decode['build_commit']} ({decode['build_number']})",
    }


def _llama_bench(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        (row,) = json.loads(done.stdout)
    except ValueError:
        words = (done.stderr or done.stdout).strip().splitlines()
        said = words[-1][:300] if words else "it said nothing"
        raise PeerError(f"llama-bench ended with code {done.returncode}: {said}") from None
    if not isinstance(row, dict):
        raise PeerError("llama-bench answered something else than a list of one result")
    return row
