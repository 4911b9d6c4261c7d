"""One streamed answer: its text to stdout as it comes, its figures to stderr or into JSON."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from gguf_engine.cli.loading import as_json
from gguf_engine.errors import OptionError
from gguf_engine.params import SamplingParams

if TYPE_CHECKING:
    from gguf_engine.llm import LLM
    from gguf_engine.outputs import Completion
    from gguf_engine.streams import Stream


@contextlib.contextmanager
def ctrl_c_cancels(stream: Stream) -> Iterator[None]:
    """While the block runs Ctrl-C ends the answer, not the loop that reads it: no piece gets lost."""

    def cancel(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)  # a second one interrupts whatever hangs
        stream.cancel()

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # a background job of a shell: Ctrl-C is meant for another program
        yield
        return
    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def stream_answer(stream: Stream, write: Callable[[str], object] | None = None) -> Completion:
    """
    Pass the text of each piece to `write` (default: stdout, flushed) and return the whole answer.

    The last line is ended, also where an error cuts it off.
    """
    from gguf_engine.streams import join

    write = write_out if write is None else write
    pieces = []
    line = ""
    try:
        with stream, ctrl_c_cancels(stream):
            for piece in stream:
                pieces.append(piece)
                if piece.text:
                    line = piece.text
                    write(line)
    except BaseException:
        if line:
            _end(line, write)
        raise
    _end(line, write)
    return join(pieces, stream.seed)


def _end(line: str, write: Callable[[str], object]) -> None:
    if not line.endswith("\n"):
        write("\n")


def write_out(text: str) -> None:
    """Print a part of an answer, now."""
    sys.stdout.write(text)
    sys.stdout.flush()


def check_logprobs(sampling: SamplingParams, *, json: bool) -> None:
    """Refuse log-probabilities that nobody would see."""
    if sampling.logprobs is not None and not json:
        raise OptionError("logprobs", sampling.logprobs, "with --json only", "add --json")


def record(completion: Completion, llm: LLM) -> dict[str, Any]:
    """Return a completion as JSON shows it; log-probabilities only when there are some."""
    values: dict[str, Any] = {"model": llm.model, **as_json(completion)}
    return {name: value for name, value in values.items() if "logprobs" not in name or value}


def figures(completion: Completion, llm: LLM) -> list[str]:
    """Return the figures of one answer as lines for people."""
    usage, timings = completion.usage, completion.timings
    lines = [
        f"seed           {completion.seed}",
        f"prompt tokens  {usage.n_prompt} ({usage.n_cached} from the cache)",
        f"answer tokens  {usage.n_completion}",
        f"first token    {timings.ttft_s * 1e3:.1f} ms",
        f"prefill        {timings.prefill_tokens_per_s:.1f} tokens/s",
        f"decode         {timings.decode_tokens_per_s:.1f} tokens/s",
        f"finish reason  {completion.finish_reason}",
    ]
    if timings.n_drafted:
        lines.append(f"guessed        {timings.n_drafted} tokens, {timings.n_accepted} of them right")
    placed = llm.placement
    if placed is not None:
        lines.append(f"device         {placed.device} ({placed.reason})")
        lines.append(f"threads        {placed.n_threads}, {placed.n_threads_batch} for prompts")
        attention = "flash attention" if placed.flash_attention else "no flash attention"
        lines.append(f"KV cache       {placed.kv_cache_type}, {attention}")
        lines += [f"adapter        {path} (scale {scale:g})" for path, scale in placed.adapters.items()]
    if llm.draft_placement is not None:
        n_bytes = sum(llm.draft_placement.weight_bytes.values())
        lines.append(f"draft model    {llm.draft_placement.device}, {n_bytes / 1e6:.0f} MB of weights")
    return lines
