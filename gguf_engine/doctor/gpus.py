"""The GPUs that the system knows, whether or not llama.cpp can use them."""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from gguf_engine.doctor.facts import Gpu

_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_QUERY = ("name", "driver_version", "memory.total", "memory.used", "utilization.gpu")
_TIMEOUT_S = 15  # a driver that starts for this call alone takes some seconds


def find_gpus(root: Path = Path("/"), nvidia_smi: str | None = None) -> tuple[tuple[Gpu, ...], str]:
    """
    Return the GPUs, and what `nvidia-smi` said instead of an answer ("" when it answered or is missing).

    Args:
        root: Where /sys is; another folder in tests.
        nvidia_smi: The program; None looks for it.
    """
    program = nvidia_smi or shutil.which("nvidia-smi")
    from_driver, problem = _ask_driver(program) if program else ((), "")
    on_bus = tuple(_on_bus(root))
    others = tuple(gpu for gpu in on_bus if not (from_driver and gpu.vendor == "NVIDIA"))
    apple: tuple[Gpu, ...] = ()
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        apple = (Gpu(vendor="Apple", name="the GPU of this Apple processor", driver="Metal"),)
    return (*from_driver, *others, *apple), problem


def _ask_driver(program: str) -> tuple[tuple[Gpu, ...], str]:
    command = [program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return (), f"it did not answer within {_TIMEOUT_S} s"
    except OSError as error:
        return (), error.strerror or str(error)
    if done.returncode:
        said = (done.stdout or done.stderr).strip().splitlines()
        return (), said[0] if said else f"it ended with {done.returncode}"
    return tuple(parse_driver_line(line) for line in done.stdout.splitlines() if line.strip()), ""


def parse_driver_line(line: str) -> Gpu:
    """Return the GPU of one line of nvidia-smi's CSV: MiB and percent; "[N/A]" where it does not know."""
    # From the right: a model's name may hold a comma.
    name, driver, total, used, busy = (field.strip() for field in line.rsplit(",", len(_QUERY) - 1))
    return Gpu(
        vendor="NVIDIA",
        name=name,
        driver=driver,
        memory_total_bytes=_scaled(total, 2**20),
        memory_used_bytes=_scaled(used, 2**20),
        busy_share=None if (share := _scaled(busy, 1)) is None else share / 100,
    )


def _scaled(field: str, unit: int) -> int | None:
    with contextlib.suppress(ValueError):
        return int(float(field) * unit)
    return None


def _on_bus(root: Path) -> Iterator[Gpu]:
    """Yield the display controllers of the PCI bus that are of a known vendor."""
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        kind, vendor, number = (_text(device / name) for name in ("class", "vendor", "device"))
        if kind.startswith("0x03") and vendor in _VENDORS:
            driver = device / "driver"
            yield Gpu(
                vendor=_VENDORS[vendor],
                name=f"PCI {vendor[2:]}:{number[2:]}",
                driver=driver.resolve().name if driver.exists() else None,
            )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
