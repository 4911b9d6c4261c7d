"""Which device a word means, and what a refusal says."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gguf_engine.backend.devices import Device, choose, choose_for
from gguf_engine.errors import DeviceError, ModelLoadError
from gguf_engine.params import EngineParams


def device(name: str, kind: str, free: int = 0) -> Device:
    return Device(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        description=f"the {name}",
        memory_total_bytes=free,
        memory_free_bytes=free,
        index=0,
    )


CPU = device("cpu", "cpu", 8)
SMALL, LARGE = device("cuda:0", "gpu", 10), device("cuda:1", "gpu", 20)
SHARED = device("vulkan:0", "igpu", 99)


def test_auto_takes_the_cpu_where_there_is_nothing_else_and_says_so() -> None:
    choice = choose("auto", [CPU])
    assert choice.device is CPU
    assert "sees no GPU" in choice.reason


def test_auto_takes_the_gpu_with_the_most_free_memory() -> None:
    assert choose("auto", [CPU, SMALL, LARGE]).device is LARGE


def test_auto_prefers_a_gpu_of_its_own_memory() -> None:
    assert choose("auto", [CPU, SHARED, SMALL]).device is SMALL


def test_cpu_means_cpu_beside_a_gpu() -> None:
    assert choose("cpu", [CPU, LARGE]).device is CPU


def test_a_family_means_its_first_device() -> None:
    assert choose("cuda", [CPU, SMALL, LARGE]).device is SMALL


def test_a_number_means_that_device() -> None:
    assert choose("cuda:1", [CPU, SMALL, LARGE]).device is LARGE


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("cuda", 'CMAKE_ARGS="-DGGML_CUDA=on" pip install'),
        ("vulkan:1", 'CMAKE_ARGS="-DGGML_VULKAN=on" pip install'),
        ("gpu", "allowed: auto, cpu, cuda[:N]"),
        ("cuda:x", "allowed: auto, cpu, cuda[:N]"),
    ],
)
def test_a_refusal_says_what_would_help(asked: str, says: str) -> None:
    with pytest.raises(DeviceError) as caught:
        choose(asked, [CPU])
    assert says in str(caught.value)
    assert asked in str(caught.value)


def test_a_number_too_high_lists_what_there_is() -> None:
    with pytest.raises(DeviceError, match=r"cpu, cuda:0, cuda:1"):
        choose("cuda:7", [CPU, SMALL, LARGE])


def test_this_machine_has_a_cpu_with_memory() -> None:
    from gguf_engine.backend.llama import list_devices

    cpu = next(found for found in list_devices() if found.kind == "cpu")
    assert cpu.name == "cpu"
    assert cpu.memory_total_bytes > 0
    assert cpu.description


@pytest.mark.gpu
def test_the_gpu_of_this_machine_is_what_auto_takes() -> None:
    from gguf_engine.backend.llama import list_devices

    assert choose("auto", list_devices()).device.kind in ("gpu", "igpu")


def test_several_devices_are_named_in_their_order_with_the_split() -> None:
    params = EngineParams(devices=("cuda:1", "cuda:0"), split_mode="row")
    choice = choose_for(params, [CPU, SMALL, LARGE])
    assert choice.devices == (LARGE, SMALL)
    assert choice.name == "cuda:1+cuda:0"
    assert choice.reason == "cuda:1 and cuda:0 were asked for, split by row"


def test_one_of_devices_is_as_device() -> None:
    assert choose_for(EngineParams(devices=("cuda:1",)), [CPU, SMALL, LARGE]).devices == (LARGE,)
    assert choose_for(EngineParams(device="cuda"), [CPU, SMALL, LARGE]).devices == (SMALL,)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("cuda:0", "cuda:7"), "no device of that number"),
        (("cuda:0", "cpu"), "a model is split over GPUs"),
        (("auto", "cuda:0"), "a model is split over GPUs"),
        (("cuda", "cuda:0"), "cuda:0 is named twice"),
        (("cuda:0", "nonsense"), "allowed: auto, cpu"),
    ],
)
def test_devices_that_cannot_be_had_together_are_refused(names: tuple[str, ...], says: str) -> None:
    with pytest.raises(DeviceError, match=says):
        choose_for(EngineParams(devices=names), [CPU, SMALL, LARGE])


@pytest.mark.parametrize(("split", "number"), [("layer", 1), ("row", 2)])
def test_llama_cpp_is_given_the_devices_and_the_split(
    monkeypatch: pytest.MonkeyPatch, split: Any, number: int
) -> None:
    from gguf_engine.backend import llama

    second = replace(LARGE, index=2)
    seen: list[Any] = []

    def load(_path: bytes, params: Any) -> None:
        handles = ctypes.cast(params.devices, ctypes.POINTER(ctypes.c_void_p))
        seen.extend([handles[0], handles[1], handles[2], params.split_mode, params.n_gpu_layers])

    monkeypatch.setattr(llama, "list_devices", lambda: (CPU, SMALL, second))
    monkeypatch.setattr(llama, "device_handle", lambda _library, index: 1000 + index)
    monkeypatch.setattr(llama._llama, "llama_model_load_from_file", load)
    params = EngineParams(devices=("cuda:1", "cuda:0"), split_mode=split)
    with pytest.raises(ModelLoadError):
        llama.LlamaBackend(Path("model.gguf"), params)
    assert seen == [1002, 1000, None, number, -1]
