"""Quotas read from made-up cgroup trees."""

from __future__ import annotations

import math
from pathlib import Path

from gguf_engine.backend.processors import cgroup_quota, usable_processors


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def member(tmp_path: Path, line: str) -> Path:
    path = tmp_path / "membership"
    path.write_text(line + "\n")
    return path


def test_a_quota_of_version_two_is_quota_over_period(tmp_path: Path) -> None:
    group(tmp_path, "app", cpu__max="150000 100000")
    assert cgroup_quota(tmp_path, member(tmp_path, "0::/app")) == 1.5


def test_the_tightest_level_counts(tmp_path: Path) -> None:
    group(tmp_path, "slice", cpu__max="50000 100000")
    group(tmp_path, "slice/app", cpu__max="max 100000")
    assert cgroup_quota(tmp_path, member(tmp_path, "0::/slice/app")) == 0.5


def test_max_is_no_quota(tmp_path: Path) -> None:
    group(tmp_path, "app", cpu__max="max 100000")
    assert cgroup_quota(tmp_path, member(tmp_path, "0::/app")) == math.inf


def test_a_quota_of_version_one_is_read(tmp_path: Path) -> None:
    group(tmp_path, "cpu/app", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    assert cgroup_quota(tmp_path, member(tmp_path, "4:cpu,cpuacct:/app")) == 2.0


def test_minus_one_of_version_one_is_no_quota(tmp_path: Path) -> None:
    group(tmp_path, "cpu/app", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cgroup_quota(tmp_path, member(tmp_path, "4:cpu,cpuacct:/app")) == math.inf


def test_a_broken_file_is_no_quota(tmp_path: Path) -> None:
    group(tmp_path, "app", cpu__max="nonsense")
    assert cgroup_quota(tmp_path, member(tmp_path, "0::/app")) == math.inf


def test_a_machine_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path, tmp_path / "missing") == math.inf


def test_this_process_can_use_at_least_one_processor() -> None:
    assert usable_processors() >= 1
