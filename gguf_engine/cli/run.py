"""`gguf-engine run`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from gguf_engine.cli.answer import check_logprobs, figures, record, stream_answer
from gguf_engine.cli.errors import INTERRUPTED
from gguf_engine.cli.loading import Raw, System, Timings, decode, loaded, make_prompt, note
from gguf_engine.cli.options import HubOptions, ModelOptions
from gguf_engine.params import EngineParams, SamplingParams


def run(
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin, less one final newline."),
    ],
    *,
    model: ModelOptions,
    hub: HubOptions,
    engine: EngineParams,
    sampling: SamplingParams,
    system: System = None,
    raw: Raw = False,
    as_object: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the text.")
    ] = False,
    timings: Timings = False,
) -> None:
    """Answer one prompt. It is a turn of a chat, unless --raw; the text is printed as it is made."""
    check_logprobs(sampling, json=as_object)
    request = make_prompt(_read_stdin() if prompt == "-" else prompt, system, raw=raw)
    with loaded(model, hub, engine) as llm:
        stream = llm.stream(request, sampling)
        completion = stream_answer(stream, (lambda _: None) if as_object else None)
        if as_object:
            print(json.dumps(record(completion, llm), ensure_ascii=False))
        if timings:
            note(*figures(completion, llm))
        elif sampling.seed is None and sys.stderr.isatty():
            note(f"seed {completion.seed}")
    if completion.finish_reason == "cancelled":
        raise typer.Exit(INTERRUPTED)


def _read_stdin() -> str:
    text = decode("stdin", sys.stdin.buffer.read())
    return text.removesuffix("\n").removesuffix("\r")
