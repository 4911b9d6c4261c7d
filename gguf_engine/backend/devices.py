"""The devices that this machine and this build of llama.cpp have, and the choice among them."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gguf_engine.errors import DeviceError, NotBuiltError
from gguf_engine.params import EngineParams

try:
    from gguf_engine.backend._native import ffi, lib
except ModuleNotFoundError:
    raise NotBuiltError from None

DeviceKind = Literal["cpu", "gpu", "igpu", "accelerator"]

# enum ggml_backend_dev_type of ggml-backend.h; 4 wraps other devices and is no choice of its own.
_KINDS: dict[int, DeviceKind] = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator"}
# Our word, and the name under which ggml registers the back end.
_FAMILIES = {"cuda": "CUDA", "rocm": "ROCm", "metal": "MTL", "vulkan": "Vulkan", "sycl": "SYCL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """
    One device of ggml.

    Attributes:
        name: What to pass as `device`: "cpu", "cuda:0", ...; an accelerator's own name.
        kind: "cpu", "gpu" (own memory), "igpu" (shares host memory) or "accelerator" (helps the CPU).
        description: The model of the device.
        memory_total_bytes, memory_free_bytes: As the driver tells; 0 when it does not.
        index: Its place in ggml's list.
    """

    name: str
    kind: DeviceKind
    description: str
    memory_total_bytes: int
    memory_free_bytes: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChoice:
    """
    What a model is loaded on.

    Attributes:
        device: The device taken; of several, the first.
        reason: Why, in a sentence.
        others: Further devices that the model is split over.
    """

    device: Device
    reason: str
    others: tuple[Device, ...] = ()

    @property
    def devices(self) -> tuple[Device, ...]:
        """Return all devices, in the order they were named."""
        return (self.device, *self.others)

    @property
    def name(self) -> str:
        """Return the names of all devices as one text."""
        return "+".join(device.name for device in self.devices)


def read_devices(library: ctypes.CDLL) -> tuple[Device, ...]:
    """
    Ask ggml for its devices.

    Args:
        library: A loaded libllama; ggml's functions are found through its dependencies.
    """
    count = _function(library, "ggml_backend_dev_count", ctypes.c_size_t, ())
    devices: list[Device] = []
    n_of_family: dict[str, int] = {}
    for index in range(count()):
        handle = device_handle(library, index)
        kind = _KINDS.get(_function(library, "ggml_backend_dev_type", ctypes.c_int)(handle))
        if kind is None:
            continue
        registry = _function(library, "ggml_backend_dev_backend_reg", ctypes.c_void_p)(handle)
        family = _text(_function(library, "ggml_backend_reg_name", ctypes.c_char_p)(registry))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory = _function(library, "ggml_backend_dev_memory", None, (ctypes.c_void_p,) * 3)
        memory(handle, ctypes.byref(free), ctypes.byref(total))
        number = n_of_family.get(family, 0)
        n_of_family[family] = number + 1
        own_name = _text(_function(library, "ggml_backend_dev_name", ctypes.c_char_p)(handle))
        description = _function(library, "ggml_backend_dev_description", ctypes.c_char_p)(handle)
        devices.append(
            Device(
                name=_name(kind, family, number, own_name),
                kind=kind,
                description=_text(description),
                memory_total_bytes=total.value,
                memory_free_bytes=free.value,
                index=index,
            )
        )
    return tuple(devices)


def device_handle(library: ctypes.CDLL, index: int) -> int:
    """Return ggml's `ggml_backend_dev_t` of a device, as an address."""
    handle = _function(library, "ggml_backend_dev_get", ctypes.c_void_p, (ctypes.c_size_t,))(index)
    return int(handle)


def _function(
    library: ctypes.CDLL,
    name: str,
    returns: type | None,
    takes: tuple[type, ...] = (ctypes.c_void_p,),
) -> ctypes._NamedFuncPointer:
    function = library[name]  # indexing makes a fresh object: nobody else's types are changed
    function.restype, function.argtypes = returns, takes
    return function


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _name(kind: DeviceKind, family: str, number: int, own_name: str) -> str:
    if kind == "cpu":
        return "cpu"
    if kind == "accelerator":
        return own_name
    ours = {theirs: word for word, theirs in _FAMILIES.items()}
    return f"{ours.get(family, family.lower())}:{number}"


def choose_for(params: EngineParams, devices: Sequence[Device]) -> DeviceChoice:
    """
    Return what `params.device`, or `params.devices`, mean.

    Raises:
        DeviceError: One is not there, or is named together with others and is no GPU.
    """
    if not params.devices:
        return choose(params.device, devices)
    chosen: list[Device] = []
    for asked in params.devices:
        device = choose(asked, devices).device
        if len(params.devices) > 1 and (asked == "auto" or device.kind == "cpu"):
            help_ = "name several GPUs, such as cuda:0 and cuda:1, or one device"
            raise DeviceError(asked, "no GPU; a model is split over GPUs", help_)
        if device in chosen:
            raise DeviceError(asked, f"{device.name} is named twice", "name each device once")
        chosen.append(device)
    if len(chosen) == 1:
        return choose(params.devices[0], devices)
    names = " and ".join(device.name for device in chosen)
    reason = f"{names} were asked for, split by {params.split_mode}"
    return DeviceChoice(device=chosen[0], reason=reason, others=tuple(chosen[1:]))


def choose(asked: str, devices: Sequence[Device]) -> DeviceChoice:
    """
    Return the device that `asked` means.

    Args:
        asked: "auto", "cpu", a family ("cuda", "metal", "vulkan", "rocm", "sycl": its first
            device) or one of its devices ("cuda:1").
        devices: What `read_devices` found.

    Raises:
        DeviceError: No such device: says what there is, and the install line that would change it.
    """
    gpus = [device for device in devices if device.kind in ("gpu", "igpu")]
    cpu = next(device for device in devices if device.kind == "cpu")
    if asked == "auto":
        if not gpus:
            return DeviceChoice(device=cpu, reason="auto took cpu: this llama.cpp build sees no GPU")
        best = max(gpus, key=lambda gpu: (gpu.kind == "gpu", gpu.memory_free_bytes))
        reason = f"auto took {best.name}: {best.description} has the most free memory of {len(gpus)} GPU(s)"
        return DeviceChoice(device=best, reason=reason)
    if asked == "cpu":
        return DeviceChoice(device=cpu, reason="cpu was asked for")
    for gpu in gpus:
        if gpu.name in (asked, f"{asked}:0"):
            return DeviceChoice(device=gpu, reason=f"{asked} was asked for")
    raise _refusal(asked, [device.name for device in (cpu, *gpus)])


def _refusal(asked: str, names: Sequence[str]) -> DeviceError:
    there_is = f"this machine and this llama.cpp build have: {', '.join(names)}"
    family, _, number = asked.partition(":")
    if family not in _FAMILIES or (number and not number.isdigit()):
        words = ", ".join(f"{word}[:N]" for word in _FAMILIES)
        return DeviceError(asked, f"no such name; allowed: auto, cpu, {words}", there_is)
    if any(name.startswith(f"{family}:") for name in names):
        return DeviceError(asked, f"no device of that number; {there_is}", "run `gguf-engine devices`")
    line = install_lines().get(family)
    if line is None:
        return DeviceError(asked, f"llama.cpp does not offer {family} on this system; {there_is}")
    what = f"not in this llama.cpp build, or no driver for it; {there_is}"
    return DeviceError(asked, what, f"to build with it: {line}")


def install_lines() -> dict[str, str]:
    """Return the commands that build llama-cpp-python with each device family this system can have."""
    return {family: _install_line(family) for family in _cmake_args() if family in _FAMILIES}


def native_install_line() -> str:
    """Return the command that builds llama-cpp-python with all that this machine's processor has."""
    return _install_line("native")


def _install_line(name: str) -> str:
    return (
        f'CMAKE_ARGS="{_cmake_args()[name]}" pip install --force-reinstall --no-deps --no-cache-dir '
        "--no-binary llama-cpp-python llama-cpp-python"
    )


def _cmake_args() -> dict[str, str]:
    """Return those of `.cargo-free-build`, which was compiled into the native module."""
    arguments: dict[str, str] = json.loads(ffi.string(lib.ge_build_settings()))["cmake_args"]
    return arguments
