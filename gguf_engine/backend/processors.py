"""The processors this process may really use: affinity, cgroup quota, one thread a core."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_processors() -> int:
    """
    Return how many compute threads this process can run without sharing a core, at least 1.

    The affinity mask counts, not the host's processors; hardware threads of one core count once; a
    cgroup's CPU quota (version 2 or 1) bounds the rest, rounded up.
    """
    allowed = _affinity()
    cores = {_core(cpu) for cpu in allowed}
    return max(1, math.ceil(min(len(cores), cgroup_quota(_CGROUP))))


def processor_name() -> str:
    """Return the model of the processor, as the system tells it."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _core(cpu: int) -> str:
    """Return a name that the hardware threads of one core share."""
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def cgroup_quota(root: Path, membership: Path = Path("/proc/self/cgroup")) -> float:
    """
    Return the CPU quota in processors, inf where there is none.

    Args:
        root: Where the cgroup file system is mounted.
        membership: The file that names this process's groups.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        group = path.strip("/")
        if not controllers:
            quota = min(quota, _along(root, group, _quota_v2))
        elif "cpu" in controllers.split(","):
            quota = min(quota, _along(root / "cpu", group, _quota_v1))
    return quota


def _along(root: Path, group: str, read: Callable[[Path], float]) -> float:
    """Return the tightest quota from the group up to the root: each level bounds those below."""
    parts = group.split("/") if group else []
    return min(read(root.joinpath(*parts[:n])) for n in range(len(parts) + 1))


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quota_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return math.inf if quota <= 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
