"""What the doctor reads of a machine, and what it concludes: made-up machines, real processes."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakehub import FakeHub

from gguf_engine.backend.devices import install_lines, native_install_line
from gguf_engine.doctor.advice import judge
from gguf_engine.doctor.facts import Build, Cache, Facts, Gpu, Hub, Machine, Trial
from gguf_engine.doctor.gpus import find_gpus, parse_driver_line
from gguf_engine.doctor.hub import begin_asking, read_cache
from gguf_engine.doctor.machine import read_machine, swapped_bytes
from gguf_engine.doctor.probe import parse_system_info, run_probe
from gguf_engine.loader.hub import Hub as Connection

NATIVE = "build it natively"
INSTALL = {"native": NATIVE, "cuda": "build it for cuda", "rocm": "for rocm", "vulkan": "for vulkan"}
CPUPOWER = "sudo cpupower frequency-set -g performance"
FEATURES = ("AVX", "AVX2", "F16C", "FMA")
CACHE = Cache(folder="/c", n_repos=0, n_bytes=0, free_bytes=2**40, is_writable=True)
SYSTEM_INFO = (
    "CPU : AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | OPENMP = 1 | CUDA : ARCHS = 800,900 | X = 1 |"
)


def facts(**changes: Any) -> Facts:
    """Return a machine of which there is nothing to say, with changes."""
    build = Build(
        system_info="",
        features={"CPU": dict.fromkeys(FEATURES, "1")},
        devices={"cpu": "a processor"},
        auto="auto took cpu",
    )
    machine = Machine(
        system="Linux x86_64",
        release="6",
        processor="a processor",
        n_processors=4,
        n_threads=4,
        load_1m=0.1,
        features=FEATURES,
        memory_total_bytes=2**34,
        memory_available_bytes=2**33,
        swap_used_bytes=0,
    )
    if isinstance(changes.get("machine"), dict):
        changes["machine"] = replace(machine, **changes["machine"])
    if isinstance(changes.get("build"), dict):
        changes["build"] = replace(build, **changes["build"])
    start: dict[str, Any] = {
        "machine": machine,
        "gpus": (),
        "gpu_problem": "",
        "versions": {"numpy": "2"},
        "build": build,
        "trial": Trial(device="cpu", n_tokens=16, seconds=0.1),
        "probe_problem": "",
        "hub": Hub(endpoint="https://hub", is_offline=False, answer_s=0.1),
        "cache": CACHE,
        "settings": {},
        "install": INSTALL,
        "swapped_bytes": 0,
    }
    return Facts(**{**start, **changes})


NVIDIA = Gpu(vendor="NVIDIA", name="RTX 3050", driver="535.1")
CUDA_BUILD = {"features": {"CPU": dict.fromkeys(FEATURES, "1"), "CUDA": {}}}
WARNINGS: list[tuple[str, dict[str, Any], str, str]] = [
    ("features", {"build": {"features": {"CPU": {"AVX": "1", "FMA": "1"}}}}, "AVX2 and F16C", NATIVE),
    ("features", {"machine": {"features": (*FEATURES, "AVX512")}}, "use it: prompts", NATIVE),
    ("surplus", {"machine": {"features": ("AVX", "AVX2", "FMA")}}, "uses F16C, which", NATIVE),
    ("gpu_build", {"gpus": (NVIDIA,)}, "(RTX 3050)", "build it for cuda"),
    ("gpu_driver", {"gpus": (replace(NVIDIA, driver=None),)}, "no driver", "build it for cuda"),
    ("gpu_build", {"gpus": (replace(NVIDIA, vendor="AMD"),)}, "cannot use it", "for rocm"),
    ("gpu_hidden", {"gpus": (NVIDIA,), "build": CUDA_BUILD}, "CUDA_VISIBLE_DEVICES", ""),
    ("driver", {"gpu_problem": "NVIDIA-SMI has failed"}, "NVIDIA-SMI has failed", ""),
    ("translated", {"machine": {"is_translated": True}}, "arm64", ""),
    ("quota", {"machine": {"n_threads": 2, "quota": 1.5}}, "a quota of 1.5", "gguf-engine tune"),
    ("throttled", {"machine": {"throttled_share": 0.25}}, "25%", ""),
    ("busy", {"machine": {"load_1m": 1.2}}, "1.2 of 4 processors", ""),
    ("swap", {"swapped_bytes": 2**23}, "8 MiB", ""),
    ("swap", {"machine": {"swap_used_bytes": 2**32}}, "4.0 GiB", ""),
    ("memory", {"machine": {"memory_limit_bytes": 2**30}}, "1.0 GiB", ""),
    ("governor", {"machine": {"governor": "powersave"}}, "powersave", CPUPOWER),
    ("battery", {"machine": {"is_on_battery": True}}, "plug it in", ""),
    ("spin", {"settings": {"OMP_WAIT_POLICY": "ACTIVE"}}, "POLICY=ACTIVE", "unset OMP_WAIT_POLICY"),
    ("spin", {"settings": {"GOMP_SPINCOUNT": "infinity"}}, "GOMP_SPINCOUNT", "unset GOMP_SPINCOUNT"),
    ("spin", {"settings": {"OMP_WAIT_POLICY": "passive"}}, "sleep", "unset OMP_WAIT_POLICY"),
    ("hub", {"hub": Hub(endpoint="https://hub", is_offline=False, problem="no route")}, "no route", ""),
    ("cache", {"cache": replace(CACHE, is_writable=False)}, "/c", ""),
    ("disk", {"cache": replace(CACHE, free_bytes=2**30)}, "1.0", ""),
]  # fmt: skip


@pytest.mark.parametrize(("code", "changes", "words", "fix"), WARNINGS)
def test_each_thing_that_makes_it_slow_is_one_warning(
    code: str, changes: dict[str, Any], words: str, fix: str
) -> None:
    report = judge(facts(**dict(changes)))
    assert [finding.code for finding in report.warnings] == [code]
    assert words in report.warnings[0].sentence
    assert report.warnings[0].fix == fix
    assert report.broken == ()


def test_of_a_good_machine_there_is_nothing_to_say() -> None:
    report = judge(facts())
    assert (report.broken, report.warnings) == ((), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": {"governor": "powersave (balance_performance)"}},  # what laptops call automatic
        {"machine": {"n_threads": 2, "quota": 2.0}},
        {"machine": {"features": None}},
        {"gpus": (Gpu(vendor="Intel", name="PCI 8086:9a49", driver="i915"),)},
        {"gpus": (NVIDIA,), "build": {"devices": {"cpu": "c", "cuda:0": "RTX 3050"}}},
        {"settings": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "1000"}},
        {"hub": Hub(endpoint="https://hub", is_offline=True)},
    ],
)
def test_what_costs_nothing_is_no_warning(changes: dict[str, Any]) -> None:
    assert judge(facts(**dict(changes))).warnings == ()


def test_a_library_that_dies_is_broken_and_says_how() -> None:
    report = judge(facts(build=None, trial=None, probe_problem="it ended with SIGILL"))
    assert [finding.code for finding in report.broken] == ["library"]
    assert "SIGILL" in report.broken[0].sentence
    assert report.broken[0].fix == NATIVE


def test_a_build_for_another_processor_is_named_when_the_generation_dies() -> None:
    died = facts(machine={"features": ("AVX",)}, trial=None, probe_problem="it ended with SIGILL")
    report = judge(died)
    assert "uses AVX2, F16C and FMA, which this processor does not have" in report.broken[0].sentence
    assert report.broken[0].fix == NATIVE


def test_a_missing_package_is_broken() -> None:
    report = judge(facts(versions={"jinja2": ""}))
    assert [finding.fix for finding in report.broken] == ["pip install jinja2"]


# --- the process that loads llama.cpp -----------------------------------------------------------------


def test_the_probe_loads_llama_cpp_and_generates_with_the_bundled_model() -> None:
    build, trial, problem = run_probe()
    assert problem == ""
    assert build is not None
    assert "cpu" in build.devices
    assert build.features["CPU"]
    assert trial is not None
    assert trial.n_tokens > 0


@pytest.mark.parametrize(
    ("boot", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
        ("raise SystemExit('no such library')", "exit code 1: no such library"),
    ],
)
def test_a_probe_that_dies_says_how(boot: str, words: str) -> None:
    build, trial, problem = run_probe(boot)
    assert (build, trial) == (None, None)
    assert words in problem


def test_a_probe_that_hangs_is_ended_and_what_it_said_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_engine.doctor.probe.TIMEOUT_S", 2)
    boot = (
        "import time\n"
        "print('noise', flush=True)\n"
        'print(\'{"trial": {"device": "cpu", "n_tokens": 1, "seconds": 1}}\', flush=True)\n'
        "time.sleep(60)"
    )
    build, trial, problem = run_probe(boot)
    assert build is None
    assert trial == Trial(device="cpu", n_tokens=1, seconds=1)
    assert "no answer within 2 s" in problem


def test_what_llama_cpp_says_of_itself_is_told_apart_by_back_end() -> None:
    features = parse_system_info(SYSTEM_INFO)
    assert features["CUDA"] == {"ARCHS": "800,900", "X": "1"}
    assert set(features["CPU"]) == {"AVX", "AVX2", "F16C", "FMA", "OPENMP"}


def test_the_native_install_line_is_like_those_of_the_devices() -> None:
    assert "-DGGML_NATIVE=on" in native_install_line()
    for line in install_lines().values():
        assert line.split(" pip ")[1] == native_install_line().split(" pip ")[1]


# --- made-up machines ---------------------------------------------------------------------------------


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_a_laptop_in_a_group_with_limits(tmp_path: Path) -> None:
    cpufreq, supply = "sys/devices/system/cpu/cpu0/cpufreq", "sys/class/power_supply"
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nflags : pni ssse3 avx avx512f avx512bw avx512cd avx512dq f16c",
            "proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 50 kB\nSwapTotal: 40 kB\nSwapFree: 30 kB",
            "proc/vmstat": "pgfault 9\npswpin 3\npswpout 4",
            "proc/self/cgroup": "0::/app/job",
            "sys/fs/cgroup/app/job/cpu.max": "150000 100000",
            "sys/fs/cgroup/app/job/cpu.stat": "usage_usec 5\nnr_periods 200\nnr_throttled 50",
            "sys/fs/cgroup/app/job/memory.max": "max",
            "sys/fs/cgroup/app/memory.max": "1073741824",
            f"{cpufreq}/scaling_governor": "powersave",
            f"{cpufreq}/energy_performance_preference": "balance_power",
            f"{supply}/AC/type": "Mains",
            f"{supply}/AC/online": "0",
            f"{supply}/BAT0/type": "Battery",
        },
    )
    machine = read_machine(root)
    assert machine.features == ("SSE3", "SSSE3", "AVX", "F16C")  # AVX512 wants all five of its flags
    assert (machine.memory_total_bytes, machine.memory_available_bytes) == (102400, 51200)
    assert (machine.swap_used_bytes, swapped_bytes(root)) == (10240, 7 * os.sysconf("SC_PAGE_SIZE"))
    assert (machine.quota, machine.throttled_share) == (1.5, 0.25)
    assert machine.memory_limit_bytes == 2**30
    assert (machine.governor, machine.is_on_battery) == ("powersave (balance_power)", True)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    for name in ("quota", "throttled_share", "features", "governor", "is_on_battery", "memory_limit_bytes"):
        assert getattr(machine, name) is None, name
    assert swapped_bytes(tmp_path) is None


def test_gpus_on_the_bus_are_known_without_a_driver(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "sys/bus/pci/devices/0000:01:00.0/class": "0x030200",
            "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de",
            "sys/bus/pci/devices/0000:01:00.0/device": "0x2335",
            "sys/bus/pci/devices/0000:02:00.0/class": "0x020000",
            "sys/bus/pci/devices/0000:02:00.0/vendor": "0x8086",
            "sys/bus/pci/devices/0000:02:00.0/device": "0x1533",
        },
    )
    assert find_gpus(tmp_path, "/no/such/program")[0] == (Gpu(vendor="NVIDIA", name="PCI 10de:2335"),)


def program(folder: Path, script: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_driver_is_asked_for_its_gpus(tmp_path: Path) -> None:
    smi = program(tmp_path, "echo 'NVIDIA H200, 570.86.15, 143771, 4, 37'")
    gpus, problem = find_gpus(tmp_path, smi)
    assert problem == ""
    assert gpus[0].driver == "570.86.15"
    assert gpus[0].memory_total_bytes == 143771 * 2**20
    assert gpus[0].busy_share == 0.37


def test_a_driver_that_fails_says_why(tmp_path: Path) -> None:
    smi = program(tmp_path, "echo 'NVIDIA-SMI has failed because the driver is not loaded'; exit 9")
    assert find_gpus(tmp_path, smi) == ((), "NVIDIA-SMI has failed because the driver is not loaded")


def test_what_the_driver_does_not_know_is_none() -> None:
    gpu = parse_driver_line("NVIDIA GB10, Spark, 580.1, [N/A], [N/A], [N/A]")
    assert (gpu.name, gpu.driver) == ("NVIDIA GB10, Spark", "580.1")
    assert (gpu.memory_total_bytes, gpu.memory_used_bytes, gpu.busy_share) == (None, None, None)


# --- hub and cache ------------------------------------------------------------------------------------


def test_a_hub_that_answers_is_reached(hub: FakeHub) -> None:
    found = begin_asking(Connection.open())()
    assert found.endpoint == hub.endpoint
    assert found.answer_s is not None
    assert found.problem == ""


def test_a_hub_that_is_not_there_is_a_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = begin_asking(Connection.open(endpoint=f"http://127.0.0.1:{port}"))()
    assert found.answer_s is None
    assert str(port) in found.problem


def test_a_hub_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        found = begin_asking(Connection.open(endpoint=endpoint), timeout_s=0.5)()
    assert found.answer_s is None
    assert found.problem


def test_offline_no_hub_is_asked(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert begin_asking(Connection.open())() == Hub(endpoint=hub.endpoint, is_offline=True)
    assert hub.requests == []


def test_a_cache_counts_each_file_once(tmp_path: Path) -> None:
    blob = tmp_path / "models--org--m" / "blobs" / "1"
    snapshot = tmp_path / "models--org--m" / "snapshots" / "c"
    write(tmp_path, {str(blob): "x" * 999})
    snapshot.mkdir(parents=True)
    (snapshot / "m.gguf").hardlink_to(blob)
    cache = read_cache(tmp_path)
    assert (cache.n_repos, cache.n_bytes, cache.is_writable) == (1, 1000, True)
    assert cache.free_bytes


def test_a_cache_that_does_not_exist_yet_is_empty_and_has_room(tmp_path: Path) -> None:
    cache = read_cache(tmp_path / "a" / "b")
    assert (cache.n_repos, cache.n_bytes, cache.is_writable) == (0, 0, True)
