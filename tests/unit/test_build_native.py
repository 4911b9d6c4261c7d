"""The settings of the native build: read from `.cargo-free-build`, and compiled in."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from gguf_engine.sampling._native import ffi, lib

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ["x86_64-linux", "aarch64-linux", "aarch64-windows", "arm64-macos", "x86_64-windows"]


@pytest.fixture(scope="module")
def build_native() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_native", ROOT / "csrc" / "build_native.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_has_flags_and_a_native_recipe(build_native: ModuleType, target: str) -> None:
    settings = build_native.load_settings(build_native.SETTINGS, target)
    assert settings.target == target
    assert settings.c_flags
    assert settings.cmake_args["native"].startswith("-DGGML_NATIVE=on")


@pytest.mark.parametrize("target", TARGETS)
def test_no_target_contracts_or_reorders_floating_point(build_native: ModuleType, target: str) -> None:
    flags = build_native.load_settings(build_native.SETTINGS, target).c_flags
    assert "-ffp-contract=off" in flags or "/fp:precise" in flags
    assert not {"-ffast-math", "-Ofast", "/fp:fast"} & set(flags)


def test_an_unknown_target_names_the_known_ones_and_the_way_to_add_it(build_native: ModuleType) -> None:
    with pytest.raises(SystemExit) as raised:
        build_native.load_settings(build_native.SETTINGS, "riscv64-linux")
    for text in ("riscv64-linux", *TARGETS, "copy the nearest table"):
        assert text in str(raised.value)


@pytest.mark.parametrize(
    "table",
    [
        "c_flags = []",
        'c_flags = "-O3"\nlibraries = []\ncmake_args = {}',
        "c_flags = [3]\nlibraries = []\ncmake_args = {}",
        "c_flags = []\nlibraries = []\ncmake_args = []",
        "c_flags = []\nlibraries = []\ncmake_args = {}\nc_flag = []",
    ],
)
def test_a_table_of_another_shape_is_refused(build_native: ModuleType, tmp_path: Path, table: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(f"[here]\n{table}\n")
    with pytest.raises(SystemExit, match=r"settings\.toml: .*\[here\]"):
        build_native.load_settings(path, "here")


@pytest.mark.parametrize(
    ("system", "machine", "target"),
    [
        ("Linux", "x86_64", "x86_64-linux"),
        ("Linux", "aarch64", "aarch64-linux"),
        ("Darwin", "arm64", "arm64-macos"),
        ("Windows", "AMD64", "x86_64-windows"),
        ("Windows", "ARM64", "aarch64-windows"),
    ],
)
def test_targets_are_named_as_the_platform_module_names_them(
    build_native: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, target: str
) -> None:
    monkeypatch.setattr(build_native.platform, "system", lambda: system)
    monkeypatch.setattr(build_native.platform, "machine", lambda: machine)
    assert build_native.current_target() == target


def test_the_extension_holds_the_settings_it_was_built_with(build_native: ModuleType) -> None:
    compiled_in = json.loads(ffi.string(lib.ge_build_settings()))
    settings = build_native.load_settings(build_native.SETTINGS, build_native.current_target())
    assert compiled_in == settings._asdict()


def test_cffi_reads_every_function_of_the_header(build_native: ModuleType) -> None:
    declarations = build_native.declarations((ROOT / "csrc" / "sampler.h").read_text())
    assert "ge_sample_rows" in declarations
    assert "#" not in declarations
