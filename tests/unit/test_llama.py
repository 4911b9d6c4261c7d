"""What LlamaBackend does to a process and to a bad load; the contract is tested beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_engine import DeviceError, ModelLoadError, OptionError
from gguf_engine.backend.llama import LlamaBackend, library_versions
from gguf_engine.params import EngineParams


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
