"""Which device a word means, and what a refusal says."""

from __future__ import annotations

import pytest

from gguf_engine.backend.devices import Device, choose
from gguf_engine.errors import DeviceError


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
