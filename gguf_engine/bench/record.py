"""
A benchmark's record: one JSON document of raw samples. What follows from them is computed, never stored.

Units stand in the names: `_s` seconds, `_bytes`, `_per_s`. A record holds no name of a host or a folder.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from gguf_engine.errors import GGUFEngineError

FORMAT = "gguf_engine.bench"
VERSION = 1
OURS = "gguf_engine"
"""What `Case.engine` says of this package; every other engine is a peer."""

STAGES = ("encode", "prefill", "decode", "sampling", "detokenising", "hand_over")
"""What a request's time goes into, in order; what no stage explains is the rest."""


class RecordError(GGUFEngineError):
    """A file that is no record of ours, or records that cannot be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCard:
    """
    A device, as llama.cpp names it.

    Attributes:
        name: "cpu", "cuda:0", ...
        kind: "cpu", "gpu", "igpu" or "accelerator".
        description: Its model.
        memory_bytes: In all; 0 where the driver does not tell.
    """

    name: str
    kind: str
    description: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """
    What it ran on, read from the machine.

    Attributes:
        cpu: The processor's model.
        n_processors: Compute threads a process can run here without sharing a core; a quota counts.
        n_processors_total: Hardware threads the system has.
        memory_bytes: Of the host; 0 where it does not tell.
        system: Operating system, its version, and architecture.
        devices: What llama.cpp can use.
        driver: Of the GPU; None where there is none that tells.
        load_1m: Load average before the run; None where the system has none.
    """

    cpu: str
    n_processors: int
    n_processors_total: int
    memory_bytes: int
    system: str
    devices: tuple[DeviceCard, ...]
    driver: str | None
    load_1m: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """Versions; `build_flags` is what llama.cpp says of its own build, its processor features among it."""

    gguf_engine: str
    llama_cpp_python: str
    llama_cpp: str
    build_flags: str
    python: str
    tokenizers: str
    numpy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """
    The file.

    Attributes:
        name: As it was asked for; of a path the last part.
        sha256: Of the file; of a split model, of its first part.
        commit: Of the repository it came from; None for a local file.
        bytes: Of the file, or of all parts.
        architecture: As its header says.
        type: The type that most bytes of weights have.
        n_params: Weights.
        n_params_a_token: Weights that one token is multiplied with: without an embedding that is only
            looked up, and of experts only those that are used.
        weight_bytes_a_token: The bytes of those.
    """

    name: str
    sha256: str
    commit: str | None
    bytes: int
    architecture: str
    type: str
    n_params: int
    n_params_a_token: int
    weight_bytes_a_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """
    What every case computes.

    Attributes:
        prompt_sha256: Of the ids of all prompts.
        n_prompt: Ids of one prompt, beyond the depth.
        n_tokens: Ids of one answer.
        seed: Of the draws.
        sampling: Options of the draws, by their names.
        fixed_sha256: Of the ids of the text over which answers are compared.
        n_fixed: How many.
    """

    prompt_sha256: str
    n_prompt: int
    n_tokens: int
    seed: int
    sampling: dict[str, float]
    fixed_sha256: str
    n_fixed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """
    One measured request, or `concurrency` of them at once, in a process started for it.

    Attributes:
        import_s: From the process's start until the engine is imported; None where nobody sees it.
        load_s: From there until the model is loaded; None likewise.
        encode_s: The first prompt's text to ids; None where the engine does not show it.
        token_s: For each stream the time of each token, from the moment the ids were handed over; empty
            where the engine shows no single tokens.
        total_s: From the prompt's text to the last piece of the answers; None as for token_s.
        stages: Seconds by stage, of STAGES; only those that the engine shows.
        prefill_tokens_per_s, decode_tokens_per_s: What the engine says itself; None where token_s
            says it.
        peak_host_bytes: Most memory the process held; None where the system does not tell.
        peak_device_bytes: On the GPU; None without one, or where the driver does not tell.
        energy_j: Joules meanwhile, of processor packages or of the GPU; None where nobody counts.
        load_1m: Load average before it; None where the system has none.
    """

    import_s: float | None
    load_s: float | None
    encode_s: float | None
    token_s: tuple[tuple[float, ...], ...]
    total_s: float | None
    stages: dict[str, float]
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    energy_j: float | None = None
    load_1m: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    One way to run the workload, and what its trials gave.

    Attributes:
        engine: "gguf_engine", or a peer's name.
        version: Of the engine.
        device: "cpu", "cuda:0", ...
        n_threads: Compute threads.
        depth: Ids in the KV cache before the prompt.
        concurrency: Requests at once.
        neighbour: Beside a process that keeps one processor busy.
        trials: In the order they were made, not sorted.
    """

    engine: str
    version: str
    device: str
    n_threads: int
    depth: int
    concurrency: int
    neighbour: bool
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """
    One short case that is measured again and again between the others.

    Attributes:
        decode_tokens_per_s: In the order measured.
        limit: Share of the median by which a sample may differ before the run is marked.
    """

    decode_tokens_per_s: tuple[float, ...]
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySpeed:
    """
    What plain loops over large buffers reach.

    Attributes:
        n_threads: So many at once.
        read_bytes_per_s, copy_bytes_per_s: A sample a round; a copy counts what it reads and writes.
    """

    n_threads: int
    read_bytes_per_s: tuple[float, ...]
    copy_bytes_per_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """
    What one engine says on one device: to find out whether two say the same.

    Attributes:
        engine, device, n_threads: As in Case.
        greedy_ids: The most probable continuation of the prompt, id by id.
        greedy_text: The same as text.
        top_ids: For each position of the fixed text the most probable next ids, best first; empty where
            the engine does not show them.
        top_logprobs: Their natural logarithms.
    """

    engine: str
    device: str
    n_threads: int
    greedy_ids: tuple[int, ...]
    greedy_text: str
    top_ids: tuple[tuple[int, ...], ...] = ()
    top_logprobs: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """
    One run.

    Attributes:
        date: UTC, ISO 8601.
        seconds: How long the run took.
        marks: Sentences, each a reason to doubt the figures; none for a good run.
        notes: Sentences: what was left out, and why.
    """

    date: str
    seconds: float
    machine: Machine
    software: Software
    model: Model
    workload: Workload
    memory: tuple[MemorySpeed, ...]
    cases: tuple[Case, ...]
    anchor: Anchor
    answers: tuple[Answers, ...]
    marks: tuple[str, ...]
    notes: tuple[str, ...]
    format: str = FORMAT
    version: int = VERSION

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self), allow_nan=False)


def read_record(path: str | Path) -> Record:
    """
    Read a record.

    Raises:
        RecordError: The file cannot be read, is no record, or of another version of the format.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    return parse_record(text, str(path))


def parse_record(text: str, name: str) -> Record:
    """
    Return the record that a text holds.

    Args:
        text: What `Record.to_json` returned.
        name: What errors call it.

    Raises:
        RecordError: As `read_record`.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{name} is no JSON: {error}; a record is made by `bench --json FILE`") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise RecordError(f"{name} is no record of this program; make one with `bench --json FILE`")
    if data.get("version") != VERSION:
        raise RecordError(
            f"{name} has version {data.get('version')!r} of the record format, this program reads "
            f"{VERSION}; make both records with the same version of gguf-engine"
        )
    return _build(Record, data, name)


_T = TypeVar("_T")


def _build(kind: type[_T], data: Any, place: str) -> _T:
    """Return a dataclass made of JSON, every field checked against its type."""
    if not isinstance(data, Mapping):
        raise RecordError(f"{place} is {_shown(data)}, an object was expected")
    hints = get_type_hints(kind)
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if set(data) != names:
        odd = sorted(set(data) ^ names)
        raise RecordError(f"{place}: the fields {', '.join(odd)} are missing, or are none of a record")
    return kind(**{name: _value(hints[name], data[name], f"{place}: {name}") for name in names})


def _value(hint: Any, data: Any, place: str) -> Any:
    if isinstance(hint, types.UnionType):
        choices = [choice for choice in get_args(hint) if choice is not types.NoneType]
        return None if data is None else _value(choices[0], data, place)
    if is_dataclass(hint):
        return _build(hint, data, place)  # type: ignore[arg-type]
    if get_origin(hint) is tuple and isinstance(data, list):
        inner = get_args(hint)[0]
        return tuple(_value(inner, each, f"{place}[{i}]") for i, each in enumerate(data))
    if get_origin(hint) is dict and isinstance(data, Mapping):
        inner = get_args(hint)[1]
        return {str(key): _value(inner, each, f"{place}.{key}") for key, each in data.items()}
    allowed = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}.get(hint, ())
    if not isinstance(data, allowed) or (isinstance(data, bool) and hint is not bool):
        raise RecordError(f"{place} is {_shown(data)}, which is of another type than a record has there")
    return data


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
