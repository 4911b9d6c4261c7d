"""What is read from the machine: its card, its memory's speed, joules, bytes on a GPU."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gguf_engine.backend.processors import processor_name, usable_processors
from gguf_engine.bench.record import DeviceCard, Machine, Software

_POWERCAP = Path("/sys/class/powercap")
_STAT = Path("/proc/stat")
BUFFER_BYTES = 2**27  # far larger than the caches


def machine_card(devices: Sequence[Any]) -> Machine:
    """
    Return what this runs on; no names of hosts or folders.

    Args:
        devices: What `list_devices` found, as dicts.
    """
    return Machine(
        cpu=processor_name(),
        n_processors=usable_processors(),
        n_processors_total=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        # Only the number: what distributions and owners add to it may name them.
        system=f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        devices=tuple(
            DeviceCard(
                name=each["name"],
                kind=each["kind"],
                description=each["description"],
                memory_bytes=each["memory_total_bytes"],
            )
            for each in devices
        ),
        driver=_nvidia("driver_version"),
        load_1m=load_1m(),
    )


def software_card(versions: dict[str, str]) -> Software:
    """Return the versions in use; those of llama.cpp are what `library_versions` returned."""
    from gguf_engine import __version__

    return Software(
        gguf_engine=__version__,
        llama_cpp_python=versions["llama_cpp_python"],
        llama_cpp=versions["llama_cpp"],
        build_flags=versions["system_info"],
        python=platform.python_version(),
        tokenizers=version("tokenizers"),
        numpy=version("numpy"),
    )


def load_1m() -> float | None:
    """Return the load average of the last minute; None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy_processors(seconds: float = 1.0) -> float | None:
    """
    Return how many processors others keep busy now; the load average where that cannot be seen.

    Args:
        seconds: How long to watch. A load average would still hold the run before this one.
    """
    before, begin = _busy_ticks(), time.perf_counter()
    if before is None:
        return load_1m()
    time.sleep(seconds)
    after = _busy_ticks()
    assert after is not None
    return (after - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - begin)


def _busy_ticks() -> int | None:
    """Return the clock ticks that all processors together have worked; None where /proc does not tell."""
    try:
        words = _STAT.read_text(encoding="utf-8").split(maxsplit=9)
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, words[1:9])
    return user + nice + system + irq + softirq + steal


def _memory_bytes() -> int:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _nvidia(field: str) -> str | None:
    """Return the first line that nvidia-smi gives for a field; None without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip() or None
    return None


def gpu_bytes_used() -> int | None:
    """Return the bytes in use on all GPUs; None where the driver does not tell."""
    try:
        return sum(int(line) for line in (_nvidia("memory.used") or "").splitlines()) << 20 or None
    except ValueError:
        return None


def memory_speed(n_threads: int) -> tuple[float, float]:
    """Return the bytes per second that plain reads and plain copies reach with so many threads."""
    sources = [np.ones(BUFFER_BYTES // 4, np.float32) for _ in range(n_threads)]
    targets = [np.empty_like(source) for source in sources]
    for source, target in zip(sources, targets, strict=True):
        np.copyto(target, source)  # the pages are there from now on
    read_s = _together(n_threads, lambda i: np.dot(sources[i], sources[i]))
    copy_s = _together(n_threads, lambda i: np.copyto(targets[i], sources[i]))
    return BUFFER_BYTES * n_threads / read_s, 2 * BUFFER_BYTES * n_threads / copy_s


def _together(n_threads: int, work: Callable[[int], object]) -> float:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n_threads)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


class Energy:
    """
    Counts joules from when it is made: of processor packages, or of a GPU by its draw. Close it in the end.

    Args:
        on_gpu: Count the GPU; else the processor.
        powercap: Where the system shows its counters.
    """

    def __init__(self, on_gpu: bool, powercap: Path = _POWERCAP) -> None:
        self._powercap = powercap
        self._begin = {} if on_gpu else self._counters()
        self._began_at = time.perf_counter()
        self._watts: list[float] = []
        self._stop = threading.Event()
        if on_gpu:
            threading.Thread(target=self._watch, daemon=True).start()

    def _counters(self) -> dict[str, int]:
        """Return microjoules by package; what lies inside a package is counted with it."""
        counters = {}
        for folder in self._powercap.glob("intel-rapl:*"):
            if folder.name.count(":") == 1:
                with contextlib.suppress(OSError, ValueError):
                    counters[folder.name] = int((folder / "energy_uj").read_text())
        return counters

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            with contextlib.suppress(ValueError):
                watts = [float(line) for line in (_nvidia("power.draw") or "").splitlines()]
                self._watts += [sum(watts)] if watts else []

    def close(self) -> float | None:
        """Return joules so far; None where nobody counts, or a counter began anew."""
        self._stop.set()
        if self._watts:
            return sum(self._watts) / len(self._watts) * (time.perf_counter() - self._began_at)
        now = self._counters()
        spent = [now[name] - before for name, before in self._begin.items() if name in now]
        return sum(spent) / 1e6 if spent and min(spent) >= 0 else None
