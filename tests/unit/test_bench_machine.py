"""What is read from the machine."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_engine.bench import machine
from gguf_engine.bench.machine import Energy, busy_processors, load_1m, machine_card, memory_speed


def write(folder: Path, microjoules: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")


def test_joules_of_the_packages_and_of_nothing_inside_them(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        write(tmp_path / name, 1_000_000)
    energy = Energy(on_gpu=False, powercap=tmp_path)
    write(tmp_path / "intel-rapl:0", 3_000_000)
    write(tmp_path / "intel-rapl:1", 1_500_000)
    write(tmp_path / "intel-rapl:0:0", 9_000_000)
    assert energy.close() == 2.5


def test_no_joules_where_a_counter_began_anew_or_there_is_none(tmp_path: Path) -> None:
    assert Energy(on_gpu=False, powercap=tmp_path / "nowhere").close() is None
    write(tmp_path / "intel-rapl:0", 5)
    energy = Energy(on_gpu=False, powercap=tmp_path)
    write(tmp_path / "intel-rapl:0", 1)
    assert energy.close() is None


def test_the_card_names_no_host() -> None:
    devices = [{"name": "cpu", "kind": "cpu", "description": "A CPU", "memory_total_bytes": 7}]
    card = machine_card(devices)
    assert card.devices[0].memory_bytes == 7
    assert card.n_processors >= 1
    host = platform.node()
    assert not host or re.search(rf"\b{re.escape(host)}\b", repr(card)) is None


def test_memory_has_a_speed() -> None:
    assert min(memory_speed(1)) > 0


def test_what_others_use_is_seen_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        busy = max(busy_processors(0.3) or 0.0 for _ in range(5))
    finally:
        process.kill()
        process.wait()
    assert busy > 0.5


def test_busy_is_the_growth_of_what_the_processors_have_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 10 20 9000 500 1 2 3 50 60\ncpu0 1 1\n")
    monkeypatch.setattr(machine, "_STAT", stat)
    assert machine._busy_ticks() == 100 + 10 + 20 + 1 + 2 + 3
    assert busy_processors(0.0) == 0.0
    monkeypatch.setattr(machine, "_STAT", tmp_path / "none")
    assert busy_processors(0.0) == load_1m()
