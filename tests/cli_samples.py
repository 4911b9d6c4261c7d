"""The command line inside this process, on a fake model: what it prints, and the code it ends with."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from text_samples import PHI3_TEMPLATE, from_json, spm_json

from gguf_engine import LLM
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.cli.main import run_command
from gguf_engine.text.chat import ChatTemplate


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@dataclass
class FakeModel:
    """
    Stands in for every model that the command line loads.

    Attributes:
        backend: Options of FakeBackend.
        template: Its chat template, None for none.
        asked: What `LLM.load` was last called with.
    """

    backend: dict[str, Any] = field(default_factory=lambda: {"n_ctx": 512})
    template: str | None = PHI3_TEMPLATE
    asked: dict[str, Any] = field(default_factory=dict)

    def load(self, model: str, **options: Any) -> LLM:
        """Take the place of `LLM.load`."""
        self.asked = {"model": model, **options}
        tokenizer = from_json(spm_json())
        template = self.template and ChatTemplate.for_tokenizer(self.template, tokenizer)
        return LLM(
            lambda: FakeBackend(n_vocab=tokenizer.n_vocab, **self.backend),
            tokenizer,
            template=template or None,
            model=model,
        )


def run_cli(*args: str, stdin: bytes = b"", model: FakeModel | None = None) -> Result:
    """Run one command with these arguments and this standard input."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LLM, "load", (model or FakeModel()).load)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code = run_command(args)
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
    return Result(code, *texts)
