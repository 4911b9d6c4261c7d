"""What LlamaBackend does to a process and to a bad load; the contract is tested beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_engine import BackendError, DeviceError, ModelLoadError, OptionError
from gguf_engine.backend import llama
from gguf_engine.backend.base import Batch
from gguf_engine.backend.llama import LlamaBackend, library_versions
from gguf_engine.backend.threads import ThreadGovernor
from gguf_engine.loader.resolve import resolve_model
from gguf_engine.params import EngineParams, KVCacheType


def openmp_settings(**variables: str) -> str:
    """Return what libgomp says of its settings when llama.cpp is loaded in a fresh process."""
    environment = {**os.environ, "OMP_DISPLAY_ENV": "VERBOSE", **variables}
    code = "import gguf_engine.backend.llama"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is llama.cpp's OpenMP on Linux")
def test_the_spin_at_barriers_is_bounded() -> None:
    assert "GOMP_SPINCOUNT = '1000'" in openmp_settings()


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is llama.cpp's OpenMP on Linux")
def test_a_spin_that_the_user_set_stays() -> None:
    assert "GOMP_SPINCOUNT = '77'" in openmp_settings(GOMP_SPINCOUNT="77")


def test_a_device_that_is_not_there_is_refused(tiny_model: Path) -> None:
    with pytest.raises(DeviceError, match="nonsense"):
        LlamaBackend(tiny_model, EngineParams(device="nonsense"))


def test_layers_for_a_gpu_on_the_cpu_are_refused(tiny_model: Path) -> None:
    with pytest.raises(OptionError, match="n_gpu_layers"):
        LlamaBackend(tiny_model, EngineParams(device="cpu", n_gpu_layers=5))


def test_fewer_cells_than_a_context_are_refused(tiny_model: Path) -> None:
    with pytest.raises(OptionError, match="n_cells"):
        LlamaBackend(tiny_model, EngineParams(n_ctx=256, n_cells=128))


def test_a_file_that_llama_cpp_refuses_is_a_load_error_with_its_words(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\x03\x00\x00\x00" + b"\x00" * 16)
    with pytest.raises(ModelLoadError, match="could not load"):
        LlamaBackend(path, EngineParams())


def test_the_context_is_never_longer_than_asked_for(tiny_model: Path) -> None:
    backend = LlamaBackend(tiny_model, EngineParams(n_ctx=100, n_threads=1))
    assert (backend.n_ctx, backend.n_cells) == (100, 100)
    backend.close()


def held() -> list[int]:
    """Return how many descriptors and threads this process has."""
    return [len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task")]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in Linux's /proc")
def test_opening_and_closing_leaves_no_threads_and_no_descriptors(tiny_model: Path) -> None:
    LlamaBackend(tiny_model, EngineParams(n_ctx=64, n_threads=1)).close()
    before = held()
    for _ in range(20):
        LlamaBackend(tiny_model, EngineParams(n_ctx=64, n_threads=1)).close()
    assert held() == before


def test_the_versions_name_the_build() -> None:
    versions = library_versions()
    assert versions["llama_cpp_python"]
    assert "CPU" in versions["system_info"]


def one_pass(backend: LlamaBackend, slot: int, start: int, token_ids: list[int]) -> NDArray[np.float32]:
    batch = Batch()
    batch.add(slot, start, token_ids, 1)
    row: NDArray[np.float32] = backend.forward(batch)[0].copy()
    return row


CACHE_TYPES: list[KVCacheType] = ["f16", "q8_0", "q4_0"]


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_a_slot_of_every_cache_type_is_saved_and_restored(
    make_tiny_model: Callable[..., Path], kind: KVCacheType
) -> None:
    model = make_tiny_model(n_embd=256, n_head=4)  # a quantized row is a multiple of 32
    params = EngineParams(n_ctx=64, n_slots=2, n_threads=1, kv_cache_type=kind)
    with closing(LlamaBackend(model, params)) as backend:
        one_pass(backend, 0, 0, [5, 6, 7, 8])
        state = backend.save(0)
        expected = one_pass(backend, 0, 4, [9])
        backend.load(1, state)
        assert np.array_equal(one_pass(backend, 1, 4, [9]), expected)
        placement = backend.placement
    assert placement is not None
    per_number = {"f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}[kind]
    # Keys and values of 2 layers, 2 heads of 64 numbers each; llama.cpp rounds 64 cells up to 256.
    n_numbers = 2 * 2 * 2 * 64 * 256
    assert sum(placement.kv_cache_bytes.values()) == pytest.approx(n_numbers * per_number, rel=0.04)


def test_a_state_of_another_cache_type_is_refused(make_tiny_model: Callable[..., Path]) -> None:
    model = make_tiny_model(n_embd=256, n_head=4)
    with closing(LlamaBackend(model, EngineParams(n_ctx=64, n_threads=1))) as backend:
        one_pass(backend, 0, 0, [5, 6, 7, 8])
        state = backend.save(0)
    other = LlamaBackend(model, EngineParams(n_ctx=64, n_threads=1, kv_cache_type="q8_0"))
    with closing(other), pytest.raises(BackendError, match="does not fit this model"):
        other.load(0, state)


@pytest.mark.parametrize("option", [{"flash_attention": "off"}, {"n_ubatch": 32}, {"repack": True}])
def test_how_it_is_computed_changes_only_last_bits(tiny_model: Path, option: dict[str, Any]) -> None:
    rows = []
    for options in ({}, option):
        with closing(LlamaBackend(tiny_model, EngineParams(n_ctx=256, n_threads=1, **options))) as backend:
            rows.append(one_pass(backend, 0, 0, list(range(5, 105))))
    assert np.abs(rows[0]).max() > 5
    assert np.abs(rows[0] - rows[1]).max() < 0.02  # attention over f16, in tiles of another size


def test_a_logits_row_is_llama_cpps_own_memory(tiny_model: Path) -> None:
    with closing(LlamaBackend(tiny_model, EngineParams(n_ctx=64, n_threads=1))) as backend:
        batch = Batch()
        batch.add(0, 0, [5, 6, 7], 2)
        rows = backend.forward(batch)
        assert rows.ctypes.data == backend._get_logits(backend._context)
        assert rows.shape == (2, backend.n_vocab)


class Script:
    """A governor that always says the same, and keeps what it is told."""

    def __init__(self, *answers: int) -> None:
        self.answers, self.told = list(answers), list[tuple[int, float]]()

    def n_threads(self, n_tokens: int) -> int:
        return self.answers.pop(0)

    def record(self, n_tokens: int, seconds: float) -> None:
        self.told.append((n_tokens, seconds))


def test_each_pass_has_the_threads_that_the_governor_says(tiny_model: Path) -> None:
    with closing(LlamaBackend(tiny_model, EngineParams(n_ctx=64, n_threads=2))) as backend:
        assert isinstance(backend._governor, ThreadGovernor)
        script = Script(1, 1, 2)
        backend._governor = script  # type: ignore[assignment]
        seen = []
        for start, token_ids in ((0, [5, 6, 7]), (3, [8]), (4, [9])):
            one_pass(backend, 0, start, token_ids)
            seen.append(n_threads_of(backend))
    assert seen == [(2, 1), (1, 1), (2, 1)]
    assert [n_tokens for n_tokens, _ in script.told] == [3, 1, 1]
    assert all(seconds > 0 for _, seconds in script.told)


def n_threads_of(backend: LlamaBackend) -> tuple[int, int]:
    context = backend._context
    return llama._llama.llama_n_threads(context), llama._llama.llama_n_threads_batch(context)


def test_threads_that_shall_not_adapt_stay(tiny_model: Path) -> None:
    params = EngineParams(n_ctx=64, n_threads=1, n_threads_batch=2, adapt_threads="never")
    with closing(LlamaBackend(tiny_model, params)) as backend:
        assert backend._governor is None
        one_pass(backend, 0, 0, [5, 6])
        assert n_threads_of(backend) == (1, 2)


def free_kinds(model: Path, **options: Any) -> tuple[bool, bool]:
    """Return whether passes over one token and over several may get fewer threads."""
    with closing(LlamaBackend(model, EngineParams(n_threads=2, **options))) as backend:
        governor = backend._governor
        assert governor is not None
        assert (governor.n_threads(1), governor.n_threads(2)) == (2, 2)
        climbers = [governor._kinds[n_tokens.bit_length()] for n_tokens in (1, 2)]
        return len(climbers[0]._rungs) > 1, len(climbers[1]._rungs) > 1


def test_one_token_at_a_time_adapts_only_where_that_changes_no_bit(
    make_tiny_model: Callable[..., Path],
) -> None:
    model = make_tiny_model(n_embd=256, n_head=4)
    assert free_kinds(model, n_ctx=512) == (False, True)
    assert free_kinds(model, n_ctx=256) == (True, True)
    assert free_kinds(model, n_ctx=512, flash_attention="off") == (True, True)
    assert free_kinds(model, n_ctx=512, kv_cache_type="q8_0") == (True, True)
    assert free_kinds(model, n_ctx=512, adapt_threads="always") == (True, True)


def long_rows(n_threads: int, widths: tuple[int, ...], **options: Any) -> list[NDArray[np.float32]]:
    """Return the rows of the bundled model after a prompt of 600 tokens, of so many slots at a time."""
    path = resolve_model("haiku").weights
    params = EngineParams(
        n_ctx=1024, n_cells=2048, n_slots=2, n_threads=n_threads, adapt_threads="never", **options
    )
    rows = []
    with closing(LlamaBackend(path, params)) as backend:
        for start in range(0, 600, 100):
            rows += [one_pass(backend, s, start, list(range(start, start + 100))) for s in range(2)]
        for i, width in enumerate(widths):
            batch = Batch()
            for slot in range(width):
                batch.add(slot, 600 + i, [7 + i], 1)
            rows.append(backend.forward(batch)[:width].copy())
    return rows


@pytest.mark.parametrize(
    ("widths", "options"),
    [((2, 2, 2), {}), ((1, 1), {"flash_attention": "off"}), ((1, 1), {"kv_cache_type": "q8_0"})],
)
def test_the_number_of_threads_changes_no_bit(widths: tuple[int, ...], options: dict[str, Any]) -> None:
    one, several = (long_rows(n_threads, widths, **options) for n_threads in (1, 2))
    assert all(map(np.array_equal, one, several))


def test_but_in_flash_attention_of_one_row_over_many_cells_it_does() -> None:
    # Why "exact" leaves these alone; if this fails, llama.cpp has changed and it need not any more.
    one, several = (long_rows(n_threads, (1,)) for n_threads in (1, 2))
    assert all(map(np.array_equal, one[:-1], several[:-1]))
    assert not np.array_equal(one[-1], several[-1])


def test_the_governor_begins_where_it_is_told_and_the_placement_has_the_note(tiny_model: Path) -> None:
    params = EngineParams(n_ctx=64, n_threads=2)
    backend = LlamaBackend(tiny_model, params, start_threads=(1, 2), note="; tuned: n_threads=1")
    with closing(backend):
        assert backend._governor is not None
        assert (backend._governor.n_threads(1), backend._governor.n_threads(9)) == (1, 2)
        assert backend.placement is not None
        assert backend.placement.reason.endswith("; tuned: n_threads=1")


def test_a_local_model_is_loaded_without_the_slow_imports_of_other_uses() -> None:
    code = (
        "import sys; from gguf_engine import LLM; llm = LLM.load('haiku', n_ctx=64, n_threads=1); "
        "llm.generate('x', max_tokens=1); llm.close(); "
        "print({'asyncio', 'ssl', 'http.client', 'email', 'pydantic', 'rich', 'typer'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "set()\n"
