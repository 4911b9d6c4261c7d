"""
Judges hostile inputs in a process of its own: `python hostile_judge.py CORPUS` prints a line of JSON each.

The address space may grow by so many bytes and each case may use so much processor time: a case that
wants more kills this process, or shows as MemoryError or "hang". The parent knows the last case begun.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

HANG_CPU_S = 6.0
"""Three times what is promised: a busy machine must not fail a test."""


def template_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each hostile template, and a function that uses it."""
    from hostile_templates import ESCAPES, EXHAUSTING
    from text_samples import from_json, spm_json

    from gguf_engine.text.chat import ChatTemplate, Message

    tokenizer = from_json(spm_json())
    messages = [Message(role="user", content="Hi"), Message(role="assistant", content="Yes?")]

    def use(source: str) -> Callable[[], Any]:
        return lambda: ChatTemplate(source).encode(messages, tokenizer)

    yield "warm-up", use("{{ messages[0].content }}")
    for name, source in (EXHAUSTING | ESCAPES).items():
        yield name, use(source)


def tokenizer_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each hostile tokenizer.json, and a function that loads and uses it."""
    from hostile_tokenizers import cases
    from text_samples import from_json, spm_json

    def use(text: str) -> Callable[[], Any]:
        def load() -> None:
            tokenizer = from_json.__wrapped__(text)
            ids = tokenizer.encode("The ice  is quiet\n" + " " * 200 + "a" * 2000 + " <s>é🏒")
            tokenizer.decode(ids)
            tokenizer.table()

        return load

    yield "warm-up", use(spm_json())
    for name, text in cases():
        yield name, use(text)


CORPORA = {"templates": (template_cases, 200), "tokenizers": (tokenizer_cases, 300)}


def _limit_memory(extra_mib: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    limit = size + extra_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _hang(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _outcome(run: Callable[[], Any]) -> tuple[str, str]:
    from gguf_engine.errors import TemplateError, TokenizerError

    try:
        run()
    except (TemplateError, TokenizerError) as error:
        kind = "memory" if isinstance(error.__cause__, MemoryError) else "refused"
        return kind, str(error)
    except KeyboardInterrupt:
        return "hang", f"more than {HANG_CPU_S} s of processor time"
    except BaseException as error:  # noqa: BLE001 - a Rust panic is one
        return "wrong", f"{type(error).__name__}: {str(error)[:300]}"
    return "works", ""


def _tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main(corpus: str, pace: str = "thorough") -> None:
    """Judge a corpus; a "quick" run lets templates use a quarter of what they may, to save time."""
    cases, extra_mib = CORPORA[corpus]
    if pace == "quick":
        from gguf_engine.text import budget

        budget.MAX_STEPS, budget.MAX_CPU_S = budget.MAX_STEPS // 4, budget.MAX_CPU_S / 4
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGVTALRM, _hang)
    for n, (name, run) in enumerate(cases()):
        if n == 1:
            _limit_memory(extra_mib)
        _tell(name=name, outcome="begun")
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_VIRTUAL, HANG_CPU_S)
        began = time.process_time()
        outcome, says = _outcome(run)
        cpu_s = time.process_time() - began
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        gc.collect()
        _tell(name=name, outcome=outcome, says=says, cpu_s=cpu_s)


if __name__ == "__main__":
    main(*sys.argv[1:])
