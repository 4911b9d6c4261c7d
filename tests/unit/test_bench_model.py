"""What a token reads of a model's weights, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_engine.bench.model import describe
from gguf_engine.loader.gguf import GGUFFile, TensorInfo


def gguf(*tensors: tuple[str, int], **metadata: Any) -> GGUFFile:
    """A header whose tensors have a row of so many F32 weights each."""
    values = {
        "general.architecture": "llama",
        **{f"llama.{name}": value for name, value in metadata.items()},
    }
    infos = tuple(
        TensorInfo(name=name, shape=(n,), type="F32", offset=0, n_bytes=4 * n) for name, n in tensors
    )
    return GGUFFile(
        path=Path("m.gguf"), size=1000, version=3, alignment=32, data_offset=0, metadata=values,
        tensors=infos, value_types={},
    )  # fmt: skip


def test_an_embedding_that_is_only_looked_up_is_not_read() -> None:
    header = gguf(("token_embd.weight", 50), ("blk.0.w.weight", 20), ("output.weight", 50))
    model = describe("m", [header], "00", None)
    assert (model.n_params, model.n_params_a_token, model.weight_bytes_a_token) == (120, 70, 280)


def test_an_embedding_that_is_the_output_too_is_read() -> None:
    model = describe("m", [gguf(("token_embd.weight", 50), ("blk.0.w.weight", 20))], "00", None)
    assert (model.n_params, model.n_params_a_token, model.weight_bytes_a_token) == (70, 70, 280)


def test_of_experts_only_those_used_are_read() -> None:
    header = gguf(
        ("token_embd.weight", 10), ("blk.0.ffn_up_exps.weight", 80), expert_count=8, expert_used_count=2
    )
    assert describe("m", [header], "00", None).n_params_a_token == pytest.approx(10 + 80 * 2 / 8)


def test_the_parts_of_a_split_model_are_one_model() -> None:
    parts = [gguf(("token_embd.weight", 50)), gguf(("output.weight", 50))]
    model = describe("m", parts, "00", "c0ffee")
    assert (model.bytes, model.n_params, model.n_params_a_token, model.commit) == (2000, 100, 50, "c0ffee")
