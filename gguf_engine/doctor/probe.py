"""
Load llama.cpp in a process of its own, and say what it is.

A build for another processor dies on its first instruction, a broken driver may never return: a doctor must
outlive both.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from gguf_engine.doctor.facts import Build, Trial

TIMEOUT_S = 120
N_TOKENS = 16
_BOOT = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from gguf_engine.doctor.probe import main
main()
"""


def run_probe(boot: str = _BOOT) -> tuple[Build | None, Trial | None, str]:
    """
    Return the build, a short generation, and what broke ("" when nothing did).

    Args:
        boot: The program that the process runs; another one in tests.
    """
    command = [sys.executable, "-I", "-c", boot, json.dumps(sys.path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, encoding="utf-8"
        )
        out, problem = done.stdout, _how_it_ended(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as late:
        out = (late.stdout or b"").decode("utf-8", "replace") if isinstance(late.stdout, bytes) else ""
        problem = f"it gave no answer within {TIMEOUT_S} s"
    answers: dict[str, Any] = {}
    for line in out.splitlines():
        if line.startswith("{"):  # a library may write to stdout, too
            answers |= json.loads(line)
    build = Build(**answers["build"]) if "build" in answers else None
    trial = Trial(**answers["trial"]) if "trial" in answers else None
    return build, trial, problem


def _how_it_ended(code: int, stderr: str) -> str:
    if code == 0:
        return ""
    words = [line for line in stderr.splitlines() if line.strip()]
    last = f": {words[-1].strip()}" if words else ""
    try:
        return f"it ended with {signal.Signals(-code).name}{last}"
    except ValueError:
        return f"it ended with exit code {code}{last}"


def main() -> None:
    """Print a line of JSON for each part that works."""
    _say({"build": _build()})
    _say({"trial": _trial()})


def _say(facts: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _build() -> dict[str, Any]:
    from gguf_engine.backend.devices import choose
    from gguf_engine.backend.llama import library_versions, list_devices

    system_info = library_versions()["system_info"]
    devices = list_devices()
    return {
        "system_info": system_info,
        "features": parse_system_info(system_info),
        "devices": {device.name: device.description for device in devices},
        "auto": choose("auto", devices).reason,
    }


def _trial() -> dict[str, Any]:
    from time import perf_counter

    from gguf_engine.llm import LLM

    start = perf_counter()
    with LLM.load("haiku", n_ctx=256) as llm:
        made = llm.generate("The ice", max_tokens=N_TOKENS, temperature=0.0)
        device = llm.placement.device if llm.placement else "cpu"
        return {"device": device, "n_tokens": made.usage.n_completion, "seconds": perf_counter() - start}


def parse_system_info(text: str) -> dict[str, dict[str, str]]:
    """Return back end -> feature -> value, of llama.cpp's "CPU : AVX = 1 | AVX2 = 1 | CUDA : ... |"."""
    features: dict[str, dict[str, str]] = {}
    of: dict[str, str] = {}
    for item in text.split("|"):
        match = re.fullmatch(r"(?:(\w+) : )?(?:(\w+) = (.*))?", item.strip())
        if match is None:
            continue
        if match[1]:
            of = features.setdefault(match[1], {})
        if match[2]:
            of[match[2]] = match[3].strip()
    return features
