"""
Describe the native modules to cffi: API mode, stable ABI, settings from `.cargo-free-build`.

setuptools finds the builders through setup.py. Paths are relative to the root of the project, where
every build front end runs. Source: https://cffi.readthedocs.io/en/stable/cdef.html
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from pathlib import Path
from typing import Any, NamedTuple

from cffi import FFI

tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / ".cargo-free-build"

_SYSTEMS = {"darwin": "macos"}
_MACHINES = {"amd64": "x86_64"}
_SHAPE = "a target has c_flags and libraries, lists of strings, and cmake_args, a table of strings."


class Settings(NamedTuple):
    """One table of `.cargo-free-build`."""

    target: str
    c_flags: list[str]
    libraries: list[str]
    cmake_args: dict[str, str]
    """device -> the recommended CMAKE_ARGS of llama-cpp-python."""


def current_target() -> str:
    """Return the target of this interpreter, such as "x86_64-linux"."""
    system, machine = platform.system().lower(), platform.machine().lower()
    machine, system = _MACHINES.get(machine, machine), _SYSTEMS.get(system, system)
    return f"{'aarch64' if (machine, system) == ('arm64', 'windows') else machine}-{system}"


def load_settings(path: Path, target: str) -> Settings:
    """
    Return the settings of one target.

    Raises:
        SystemExit: The file has no such target, or its table has another shape than `Settings`.
            A build script ends with a sentence, not with a traceback.
    """
    tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    table = tables.get(target)
    if table is None:
        known = ", ".join(sorted(tables))
        raise SystemExit(
            f"{path.name} has no table for {target}; it has {known}. To add one, copy the nearest table to "
            f"[{target}], set its c_flags for the C compiler there, and build again."
        )
    if set(table) != set(Settings._fields) - {"target"}:
        raise SystemExit(f"{path.name}: [{target}] has the keys {sorted(table)}; {_SHAPE}")
    for key in ("c_flags", "libraries"):
        _check_strings(path, target, key, table[key], list)
    _check_strings(path, target, "cmake_args", table["cmake_args"], dict)
    return Settings(target, **table)


def declarations(header: str) -> str:
    """Return what cffi reads of the header: all between its two marks."""
    return header.split("/* cffi: begin.", 1)[1].split("*/", 1)[1].split("/* cffi: end */", 1)[0]


def make_builder(settings: Settings, module: str, header: str, sources: list[str]) -> FFI:
    """
    Return the cffi builder of one module.

    Beside what the header declares, the module has ge_build_settings(): a JSON object with the fields
    of `Settings`, for people who ask what their build was made with.
    """
    builder = FFI()
    text = (ROOT / "csrc" / header).read_text(encoding="utf-8")
    builder.cdef(declarations(text) + "const char *ge_build_settings(void);")
    facts = json.dumps(json.dumps(settings._asdict()))  # twice: a C string literal
    builder.set_source(
        module,
        f'#include "{header}"\nstatic const char *ge_build_settings(void) {{ return {facts}; }}\n',
        sources=[f"csrc/{source}" for source in sources],
        include_dirs=["csrc"],
        depends=[*sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*.h")), SETTINGS.name],
        extra_compile_args=settings.c_flags,
        libraries=settings.libraries,
    )
    return builder


def _check_strings(path: Path, target: str, key: str, value: Any, kind: type) -> None:
    items = value.values() if isinstance(value, dict) else value
    if not isinstance(value, kind) or not all(isinstance(item, str) for item in items):
        raise SystemExit(f"{path.name}: {key} of [{target}] is {value!r}; {_SHAPE}")


_settings = load_settings(SETTINGS, current_target())
sampling = make_builder(
    _settings, "gguf_engine.sampling._native", "sampler.h", ["sampler.c", "select.c", "passes.c"]
)
backend = make_builder(_settings, "gguf_engine.backend._native", "cancel.h", ["cancel.c"])
