"""
What `gguf-engine tune` found for a model on a machine: kept beside the model's hash, used by LLM.load.

A folder holds one small file for each pair of model and machine. Losing it costs nothing but speed;
nothing in it is used that does not parse and pass the checks of EngineParams.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gguf_engine.backend.attention import may_be_off
from gguf_engine.errors import OptionError
from gguf_engine.params import EngineParams

# What a choice may hold. Not what changes the answers, such as the type of the KV cache, and not n_batch,
# which bounds how long a running answer waits for somebody else's prompt.
TUNABLE = ("n_threads", "n_threads_batch", "n_ubatch", "flash_attention", "repack")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """
    What a choice holds for.

    Attributes:
        cpu: The processor's model.
        n_processors: Compute threads this process can run without sharing a core.
        llama_cpp: Version and processor features of the build.
        device: Where the model is loaded, such as "cpu" or "cuda:0".
    """

    cpu: str
    n_processors: int
    llama_cpp: str
    device: str


def this_machine(device: str) -> Machine:
    """Return the machine this runs on."""
    from gguf_engine.backend.llama import library_versions
    from gguf_engine.backend.processors import processor_name, usable_processors

    versions = library_versions()
    return Machine(
        cpu=processor_name(),
        n_processors=usable_processors(),
        llama_cpp=f"{versions['llama_cpp_python']} {versions['system_info']}",
        device=device,
    )


class TunedChoices:
    """
    The choices kept in a folder. One that cannot be written forgets; `write` says so.

    Args:
        folder: Where they are kept; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, folder: Path) -> TunedChoices:
        """Return the choices kept beside the folder of what is remembered of model files."""
        return cls(folder.with_name("tuned"))

    def _path(self, sha256: str, machine: Machine) -> Path:
        name = hashlib.sha256(json.dumps(asdict(machine), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{sha256}-{name[:16]}.json"

    def read(self, sha256: str, machine: Machine) -> dict[str, Any]:
        """Return the options chosen, empty when nothing (or nothing usable) is kept."""
        try:
            record = json.loads(self._path(sha256, machine).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(record, dict) or record.get("machine") != asdict(machine):
            return {}
        choice = record.get("choice")
        return choice if isinstance(choice, dict) and _is_usable(choice) else {}

    def write(self, sha256: str, machine: Machine, choice: Mapping[str, Any], **facts: Any) -> bool:
        """
        Keep a choice instead of what was kept before, whole or not at all.

        Args:
            sha256: Of the model.
            machine: What it was measured on.
            choice: Options of EngineParams, of those in TUNABLE.
            facts: Anything else that JSON can hold, for people.

        Returns:
            Whether it is kept: False where the folder cannot be written.
        """
        assert _is_usable(choice), choice
        record = {"machine": asdict(machine), "choice": dict(choice), **facts}
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, fresh = tempfile.mkstemp(dir=self.folder, suffix=".new")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(record, file, indent=1)
                Path(fresh).replace(self._path(sha256, machine))
            except BaseException:
                Path(fresh).unlink(missing_ok=True)
                raise
            return True
        return False

    def forget(self, sha256: str, machine: Machine) -> None:
        """Forget a choice, if one is kept."""
        with contextlib.suppress(OSError):
            self._path(sha256, machine).unlink(missing_ok=True)


def _is_usable(choice: Mapping[str, Any]) -> bool:
    try:
        EngineParams(n_batch=8192, **choice)
    except (OptionError, TypeError):
        return False
    return set(choice) <= set(TUNABLE)


def apply(choice: Mapping[str, Any], params: EngineParams) -> tuple[EngineParams, dict[str, Any]]:
    """
    Return the options with `choice` where the user gave no value, and what of it was used.

    Threads that adapt by themselves are left open: for them the choice is where they begin; see
    `start_threads`. Those of decode adapt by themselves only with "always".
    """
    used: dict[str, Any] = {}
    for name, value in choice.items():
        is_open = getattr(params, name) in (None, "auto")
        if name == "n_ubatch":
            is_open = is_open and value < params.n_batch
        if name == "flash_attention":
            is_open = is_open and (value != "off" or may_be_off(params))
        if is_open:
            used[name] = value
    fixed = {name: value for name, value in used.items() if not _adapts(name, params)}
    return replace(params, **fixed), used


def _adapts(name: str, params: EngineParams) -> bool:
    free = {"never": (), "exact": ("n_threads_batch",), "always": ("n_threads", "n_threads_batch")}
    return name in free[params.adapt_threads]


def start_threads(used: Mapping[str, Any], params: EngineParams) -> tuple[int, int] | None:
    """Return the threads that decode and prefill begin with, None for the most."""
    if params.adapt_threads == "never" or not {"n_threads", "n_threads_batch"} <= used.keys():
        return None
    return used["n_threads"], used["n_threads_batch"]


def tuned_options(
    parts: Sequence[Path], params: EngineParams, device: str, *, blobs: bool = False
) -> tuple[EngineParams, dict[str, Any]]:
    """
    Return options with what was tuned for a model here, and what else LlamaBackend should be told.

    Args:
        parts: The files of the model; see `Verdicts.identify`.
        params: The user's options, which win.
        device: Where the model will be loaded.
        blobs: See `Verdicts.identify`.
    """
    from gguf_engine.loader.hub import state_folder
    from gguf_engine.loader.verdicts import Verdicts

    folder = state_folder()
    try:
        sha256 = Verdicts.open(folder).identify(parts, blobs=blobs) if params.tuned else None
    except OSError:  # a part is missing, which the load will say
        sha256 = None
    if sha256 is None:
        return params, {}
    choice = TunedChoices.beside(folder).read(sha256, this_machine(device))
    params, used = apply(choice, params)
    if not used:
        return params, {}
    shown = ", ".join(f"{name}={value}" for name, value in used.items())
    return params, {"start_threads": start_threads(used, params), "note": f"; tuned: {shown}"}
