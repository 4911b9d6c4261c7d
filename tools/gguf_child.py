"""
Load and run the models it is told to, in a process that may die of them; see gguf_judge.py.

One line of JSON in, {"path": ..., "preflight": ...}, one line out. The first process loads no model: it
forks the one that does, and forks another when that has died.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from gguf_engine import LLM, GGUFEngineError, OptionError, SamplingError, TemplateError, TokenizerError
from gguf_engine.backend.base import Batch
from gguf_engine.backend.llama import LlamaBackend
from gguf_engine.params import EngineParams, SamplingParams
from gguf_engine.sampling.sampler import Sampler, SampleRequest

OPTIONS: dict[str, Any] = {"device": "cpu", "n_slots": 3, "n_batch": 32, "n_threads": 1}
PROMPTS = ("Hello ice", " ünï\n\tcode \U0001f9ca", "a")
FILES_A_PROCESS = 400


class NotFiniteError(Exception):
    """The model gave NaN or +inf, and nothing said so."""


def exercise(path: Path, *, preflight: bool) -> None:
    """
    Load a model and use it: several requests at once, a chat, slots, states.

    Args:
        path: The file.
        preflight: As callers load it. Without, llama.cpp gets it at once: what the checks are worth.

    Raises:
        GGUFEngineError: The file was refused, or the failure was noticed.
        NotFiniteError: It was not.
    """
    if preflight:
        # With a tokenizer.json or other options this model could be loaded all the same.
        with contextlib.suppress(TokenizerError, OptionError):
            answer_requests(path)
    backend = LlamaBackend(path, EngineParams(**OPTIONS))
    try:
        use_slots(backend)
    finally:
        backend.close()


def answer_requests(path: Path) -> None:
    """Load a model as callers do, with every check, and let it answer several requests and a chat."""
    with contextlib.closing(LLM.load(path, isolation="thread", **OPTIONS)) as llm:
        streams = [llm.stream(text, max_tokens=4, temperature=0.0) for text in PROMPTS]
        for stream in streams:
            stream.completion()
        with contextlib.suppress(TemplateError):
            llm.chat("Hello", max_tokens=2, seed=1)


def use_slots(backend: LlamaBackend) -> None:
    """Fill three slots in one batch, decode, share, cut, save and restore."""
    n_vocab, room = backend.n_vocab, backend.n_ctx
    prompt = [index % n_vocab for index in (0, 1, 5, 100, 300, n_vocab - 1)][: max(1, room - 2)]
    batch = Batch()
    for slot in range(backend.n_slots):
        if (slot + 1) * (len(prompt) + 2) <= backend.n_cells:
            batch.add(slot, 0, prompt, 1)
    check(backend, batch)
    if room < len(prompt) + 2:
        return
    step(backend, 0, len(prompt), n_vocab - 1)
    backend.truncate(0, len(prompt) - 1)
    step(backend, 0, len(prompt) - 1 if backend.truncate(0, len(prompt) - 1) else len(prompt) + 1, 1)
    state = backend.save(0)
    if backend.n_slots > 1 and backend.truncate(1, 0):
        backend.load(1, state)
        if backend.truncate(2, 0) and backend.copy(1, 2, 1):
            step(backend, 2, 1, 0)


def step(backend: LlamaBackend, slot: int, position: int, token_id: int) -> None:
    """Decode one token."""
    batch = Batch()
    batch.add(slot, position, [token_id], 1)
    check(backend, batch)


def check(backend: LlamaBackend, batch: Batch) -> None:
    """
    Compute a batch and draw from its rows, as the engine does.

    Raises:
        SamplingError: A row holds NaN or +inf, which was noticed.
        NotFiniteError: It was not. A logit of -inf is fine: a token that is never drawn.
    """
    rows = backend.forward(batch)[: batch.n_outputs]
    sampler = Sampler(backend.n_vocab, batch.n_outputs)
    options = sampler.prepare(SamplingParams(temperature=0.0), 0)
    try:
        request = SampleRequest(options, array("i"), array("i"))
        samples = sampler.sample(rows, [request] * batch.n_outputs)
    finally:
        sampler.close()
    for row, sample in zip(rows, samples, strict=True):
        if isinstance(sample, SamplingError):
            raise sample
        n_bad = np.count_nonzero(np.isnan(row) | np.isposinf(row))
        if n_bad:
            raise NotFiniteError(f"{n_bad} of {row.size} logits are NaN or +inf, and {sample} was drawn")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return what became of one file."""
    try:
        exercise(Path(request["path"]), preflight=request["preflight"])
    except GGUFEngineError as error:
        return {"outcome": "declined", "code": type(error).__name__, "what": str(error)[:400]}
    except NotFiniteError as error:
        return {"outcome": "not_finite", "what": str(error)}
    except Exception as error:  # noqa: BLE001 - that it is none of ours is the finding
        return {"outcome": "untyped", "code": type(error).__name__, "what": str(error)[:400]}
    return {"outcome": "good"}


def read_line() -> str:
    """Read one line without reading ahead: the rest belongs to the next process."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line.decode()


def say(out: int, **facts: Any) -> None:
    """Write one line of JSON, in one piece."""
    os.write(out, json.dumps(facts).encode() + b"\n")


def serve(out: int) -> None:
    """Answer requests until there are no more, or enough for one process."""
    for _ in range(FILES_A_PROCESS):
        line = read_line()
        if not line:
            os._exit(0)
        say(out, **answer(json.loads(line)))
    os._exit(1)


def main() -> None:
    """Keep one serving process alive."""
    out = os.dup(1)
    os.dup2(2, 1)  # nothing that a library prints may look like an answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (2**33, 2**33))
    while True:
        pid = os.fork()
        if not pid:
            serve(out)
        say(out, serving=pid)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            say(out, outcome="death", code=f"signal {os.WTERMSIG(status)}")
        elif os.WEXITSTATUS(status) == 0:
            return
        elif os.WEXITSTATUS(status) != 1:
            say(out, outcome="death", code=f"exit {os.WEXITSTATUS(status)}")


if __name__ == "__main__":
    main()
