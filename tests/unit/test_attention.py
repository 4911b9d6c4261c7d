"""What `flash_attention="auto"` comes to, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_samples import Request, run
from make_gguf import ModelShape, write_model

from gguf_engine import LLM
from gguf_engine.backend.attention import MAX_CELLS_WITHOUT_FLASH, settle_attention
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.backend.llama import library_versions
from gguf_engine.backend.log import read_placement
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.presets import IDLE_PASSES
from gguf_engine.params import EngineParams

AVX512 = "CPU : AVX2 = 1 | FMA = 1 | AVX512 = 1 | AVX512_VBMI = 1 | LLAMAFILE = 1 | "
AVX2 = "CPU : AVX2 = 1 | FMA = 1 | LLAMAFILE = 1 | "


def settled(head_size: Any, *, features: str = AVX512, device: str = "cpu", **options: Any) -> str:
    metadata = {"general.architecture": "llama", "llama.attention.key_length": head_size}
    return settle_attention(EngineParams(**options), metadata, features, device).flash_attention


@pytest.mark.parametrize(
    ("head_size", "expected"),
    [
        (32, "on"),
        (64, "on"),
        (80, "off"),
        (96, "off"),
        (128, "on"),
        (160, "off"),
        (256, "on"),
        (None, "on"),
    ],
)
def test_heads_that_leave_numbers_over_have_none(head_size: int, expected: str) -> None:
    assert settled(head_size) == expected
    assert settled(head_size, features=AVX2) == "on"
    assert settled(head_size, device="cuda") == "auto"


@pytest.mark.parametrize(
    "options",
    [
        {"flash_attention": "on"},
        {"kv_cache_type": "q8_0"},
        {"n_cells": MAX_CELLS_WITHOUT_FLASH + 1},
        {"n_ctx": MAX_CELLS_WITHOUT_FLASH + 1},
    ],
)
def test_it_stays_where_it_is_asked_for_or_its_absence_would_cost_too_much(options: dict[str, Any]) -> None:
    assert settled(96, **options) == "on"


def test_what_the_user_says_stands() -> None:
    assert settled(64, flash_attention="off") == "off"
    assert settled(96, flash_attention="off", n_ctx=2 * MAX_CELLS_WITHOUT_FLASH) == "off"


def test_the_size_is_read_from_what_the_file_says() -> None:
    for metadata, expected in (
        ({"phi3.embedding_length": 3072, "phi3.attention.head_count": 32}, "off"),
        ({"phi3.embedding_length": 4096, "phi3.attention.head_count": 32}, "on"),
        ({"phi3.embedding_length": 3072, "phi3.attention.head_count": [32, 16]}, "on"),
        ({"phi3.embedding_length": 3072, "phi3.attention.head_count": 0}, "on"),
        ({"phi3.attention.key_length": 96, "phi3.attention.causal": False}, "on"),
        ({}, "on"),
    ):
        values = {"general.architecture": "phi3", **metadata}
        assert settle_attention(EngineParams(), values, AVX512, "cpu").flash_attention == expected


@pytest.fixture(scope="module")
def wide_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ModelShape(n_embd=192, n_head=2, n_head_kv=2, n_layer=2)
    return write_model(tmp_path_factory.mktemp("attention") / "wide.gguf", shape, tokenizer=True)


@pytest.mark.parametrize(("asked", "expected"), [("on", True), ("off", False)])
def test_a_load_says_what_it_came_to(wide_heads: Path, asked: Any, expected: bool) -> None:
    with LLM.load(wide_heads, device="cpu", tuned=False, flash_attention=asked) as llm:
        assert llm.placement is not None
        assert llm.placement.flash_attention is expected


def test_by_default_the_load_decides_by_shape_and_build(wide_heads: Path, tiny_model: Path) -> None:
    has_avx512 = "AVX512 = 1" in library_versions()["system_info"]
    for path, expected in ((wide_heads, not has_avx512), (tiny_model, True)):
        with LLM.load(path, device="cpu", tuned=False) as llm:
            assert llm.placement is not None
            assert llm.placement.flash_attention is expected


@pytest.mark.parametrize(
    ("flash_attention", "n_passes", "n_next", "kept"),
    [
        ("on", 2 * IDLE_PASSES, 1, True),
        ("off", IDLE_PASSES, 1, True),
        ("off", IDLE_PASSES + 1, 1, False),
        ("off", IDLE_PASSES + 1, 300, True),  # it is not small beside them
    ],
)
def test_where_idle_cells_cost_the_old_ones_make_way_for_small_requests(
    flash_attention: Any, n_passes: int, n_next: int, kept: bool
) -> None:
    backend = FakeBackend(n_slots=8, n_ctx=1024)
    backend.placement = read_placement([], "cpu", "", 1, n_threads=(1, 1), flash_attention=flash_attention)
    engine = Engine(backend)
    prompt = [1 + n % 50 for n in range(300)]
    run(engine, Request(engine, prompt, max_tokens=1))
    run(engine, Request(engine, [70], max_tokens=n_passes))
    n_used = engine.stats().n_cells_used
    run(engine, Request(engine, [80] * n_next, max_tokens=1))
    assert (engine.stats().n_cells_used > n_used) is kept
    again = Request(engine, prompt, max_tokens=1)
    run(engine, again)
    assert (again.sequence.n_cached > 0) is kept
    engine.close()
