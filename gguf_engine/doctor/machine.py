"""The system's own files and tables → `Machine`. Reads, changes nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from gguf_engine.backend.processors import cgroup_quota, processor_name, usable_processors
from gguf_engine.doctor.facts import Machine

# ggml's word -> the kernel's flags that it takes (x86: all of them; arm64: one).
_LINUX_FLAGS: dict[str, tuple[str, ...]] = {
    "SSE3": ("pni",),
    "SSSE3": ("ssse3",),
    "AVX": ("avx",),
    "AVX2": ("avx2",),
    "F16C": ("f16c",),
    "FMA": ("fma",),
    "BMI2": ("bmi2",),
    "AVX_VNNI": ("avx_vnni",),
    "AVX512": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "AVX512_VBMI": ("avx512vbmi",),
    "AVX512_VNNI": ("avx512_vnni",),
    "AVX512_BF16": ("avx512_bf16",),
    "AMX_INT8": ("amx_int8",),
    "NEON": ("asimd",),
    "DOTPROD": ("asimddp",),
    "FP16_VA": ("asimdhp",),
    "MATMUL_INT8": ("i8mm",),
    "SVE": ("sve",),
}
_MACOS_NAMES = {
    "AVX": "hw.optional.avx1_0",
    "AVX2": "hw.optional.avx2_0",
    "F16C": "hw.optional.f16c",
    "FMA": "hw.optional.fma",
    "AVX512": "hw.optional.avx512f",
    "NEON": "hw.optional.neon",
    "DOTPROD": "hw.optional.arm.FEAT_DotProd",
    "FP16_VA": "hw.optional.arm.FEAT_FP16",
    "MATMUL_INT8": "hw.optional.arm.FEAT_I8MM",
}


def read_machine(root: Path = Path("/")) -> Machine:
    """
    Return what the system tells of this machine.

    Args:
        root: Where /proc and /sys are; another folder in tests.
    """
    is_mac = platform.system() == "Darwin"
    sysctl = _sysctl() if is_mac else {}
    memory = _meminfo(root)
    total, swap = memory.get("MemTotal"), None
    if "SwapTotal" in memory:
        swap = memory["SwapTotal"] - memory["SwapFree"]
    quota = cgroup_quota(root / "sys/fs/cgroup", root / "proc/self/cgroup")
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        release=platform.release(),
        processor=sysctl.get("machdep.cpu.brand_string") or processor_name(),
        n_processors=os.cpu_count() or 1,
        n_threads=usable_processors(),
        quota=None if quota == float("inf") else quota,
        throttled_share=_throttled(root),
        load_1m=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        features=_macos_features(sysctl) if is_mac else _linux_features(root),
        governor=_governor(root),
        is_on_battery=_is_on_battery(root),
        is_translated=sysctl.get("sysctl.proc_translated") == "1",
        memory_total_bytes=int(sysctl["hw.memsize"]) if "hw.memsize" in sysctl else total,
        memory_available_bytes=memory.get("MemAvailable"),
        memory_limit_bytes=_memory_limit(root),
        swap_used_bytes=swap,
    )


def swapped_bytes(root: Path = Path("/")) -> int | None:
    """Return how much this machine has swapped since it started, both ways; None if nothing tells."""
    lines = _text(root / "proc/vmstat").splitlines()
    pages = [int(line.split()[1]) for line in lines if line.startswith(("pswpin ", "pswpout "))]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") if pages else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _meminfo(root: Path) -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    rows = (line.split() for line in _text(root / "proc/meminfo").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}


def _linux_features(root: Path) -> tuple[str, ...] | None:
    """Return what the first processor has; None where the kernel does not list it."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            has = set(flags.split())
            return tuple(word for word, needs in _LINUX_FLAGS.items() if has.issuperset(needs))
    return None


def _macos_features(sysctl: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(word for word, name in _MACOS_NAMES.items() if sysctl.get(name) == "1")


def _sysctl() -> dict[str, str]:
    names = ["machdep.cpu.brand_string", "hw.memsize", "sysctl.proc_translated", *_MACOS_NAMES.values()]
    found: dict[str, str] = {}
    for name in names:  # one at a time: a name that this Mac does not have fails alone
        try:
            done = subprocess.run(
                ["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return found
        if done.returncode == 0 and done.stdout.strip():
            found[name] = done.stdout.strip()
    return found


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of those above it (version 2 only)."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            parts = [part for part in path.split("/") if part]
            for n in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:n])


def _throttled(root: Path) -> float | None:
    for group in _groups(root):
        rows = (line.split() for line in _text(group / "cpu.stat").splitlines())
        counts = {row[0]: int(row[1]) for row in rows if len(row) == 2}
        if counts.get("nr_periods"):
            return counts.get("nr_throttled", 0) / counts["nr_periods"]
    return None


def _memory_limit(root: Path) -> int | None:
    limits = [_text(group / "memory.max") for group in _groups(root)]
    return min((int(limit) for limit in limits if limit.isdecimal()), default=None)


def _governor(root: Path) -> str | None:
    """Return the first processor's, with what it prefers where the driver decides by that."""
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    governor = _text(folder / "scaling_governor")
    prefers = _text(folder / "energy_performance_preference")
    return (f"{governor} ({prefers})" if prefers else governor) or None


def _is_on_battery(root: Path) -> bool | None:
    """Return whether every mains supply is unplugged; None where there is none, as in a desktop."""
    supplies = sorted((root / "sys/class/power_supply").glob("*"))
    mains = [_text(supply / "online") for supply in supplies if _text(supply / "type") == "Mains"]
    return all(online == "0" for online in mains) if mains else None
