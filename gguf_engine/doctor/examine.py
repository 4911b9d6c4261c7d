"""Everything the doctor looks at, in one call."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from gguf_engine.doctor.advice import judge
from gguf_engine.doctor.facts import Facts, Report
from gguf_engine.doctor.gpus import find_gpus
from gguf_engine.doctor.hub import begin_asking, read_cache
from gguf_engine.doctor.machine import read_machine, swapped_bytes
from gguf_engine.doctor.probe import run_probe
from gguf_engine.loader.hub import Hub

_PACKAGES = (
    "gguf-engine", "llama-cpp-python", "gguf", "huggingface_hub", "tokenizers", "numpy", "cffi", "jinja2",
)  # fmt: skip
# libgomp reads the first three, CUDA the last.
_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_THREAD_LIMIT", "CUDA_VISIBLE_DEVICES")


def examine(environment: Mapping[str, str]) -> Report:
    """
    Look at the machine, the llama.cpp build, the hub and the cache. Takes seconds, changes nothing.

    Args:
        environment: Of the process.

    Raises:
        OptionError: The environment names a hub that is no URL.
    """
    machine = read_machine()  # first: the rest of this is load
    swapped = swapped_bytes()
    connection = Hub.open()
    wait_for_hub = begin_asking(connection)
    gpus, gpu_problem = find_gpus()
    build, trial, problem = run_probe()
    after = swapped_bytes()
    return judge(
        Facts(
            machine=machine,
            gpus=gpus,
            gpu_problem=gpu_problem,
            versions={"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
            build=build,
            trial=trial,
            probe_problem=problem,
            hub=wait_for_hub(),
            cache=read_cache(connection.cache),
            settings={name: environment[name] for name in _SETTINGS if name in environment},
            install=_install_lines(),
            swapped_bytes=None if swapped is None or after is None else after - swapped,
        )
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _install_lines() -> dict[str, str]:
    try:
        from gguf_engine.backend.devices import install_lines, native_install_line
    except ImportError:  # our own native module is missing: the probe says so
        return {}
    return {"native": native_install_line(), **install_lines()}
