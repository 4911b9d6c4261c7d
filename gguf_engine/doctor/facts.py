"""What the doctor finds: plain data, as `gguf-engine doctor --json` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """
    The machine, as the system tells it; None where it does not tell.

    Attributes:
        system, release: Such as "Linux x86_64", and the kernel's version.
        processor: Its model.
        n_processors: Hardware threads of the machine.
        n_threads: Compute threads the engine may use: affinity, one a core, the cgroup's quota rounded up.
        quota: Processors' worth of time a cgroup allows.
        throttled_share: Share of the quota's periods in which it ran out, 0..1.
        load_1m: Programs that wanted to run, mean of the last minute.
        features: What the processor has of the instructions ggml can use, in ggml's words.
        governor: Of the clock, and what it was told to prefer, such as "powersave (balance_power)".
        is_on_battery: No mains supply is connected.
        is_translated: This is an x86 Python on an Apple processor.
        memory_total_bytes, memory_available_bytes: Of the machine.
        memory_limit_bytes: What a cgroup allows.
        swap_used_bytes: What lies on the disk instead of in memory.
    """

    system: str
    release: str
    processor: str
    n_processors: int
    n_threads: int
    quota: float | None = None
    throttled_share: float | None = None
    load_1m: float | None = None
    features: tuple[str, ...] | None = None
    governor: str | None = None
    is_on_battery: bool | None = None
    is_translated: bool = False
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_limit_bytes: int | None = None
    swap_used_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """
    A GPU that the system knows, whether or not llama.cpp can use it.

    Attributes:
        vendor: "NVIDIA", "AMD", "Intel" or "Apple".
        name: Its model; of a GPU without its driver, the numbers on the PCI bus.
        driver: Version, or the kernel module; None without a driver.
        memory_total_bytes, memory_used_bytes: None where nothing tells.
        busy_share: Of the last moments, 0..1.
    """

    vendor: str
    name: str
    driver: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    busy_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """
    The llama.cpp in use.

    Attributes:
        system_info: What it says of itself.
        features: Back end -> what it was compiled with, such as {"CPU": {"AVX2": "1"}}.
        devices: Name -> model, of what it can load on.
        auto: Which of them auto takes, and why.
    """

    system_info: str
    features: Mapping[str, Mapping[str, str]]
    devices: Mapping[str, str]
    auto: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """
    A short generation with the bundled model.

    Attributes:
        device: Where it ran.
        n_tokens: Made.
        seconds: Load and generation.
    """

    device: str
    n_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """
    Whether models can be downloaded.

    Attributes:
        endpoint: Which hub.
        is_offline: Connections are switched off.
        answer_s: Seconds until it answered; None when it did not, or was not asked.
        problem: Why it did not, "" when it did or was not asked.
    """

    endpoint: str
    is_offline: bool
    answer_s: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """
    The hub cache.

    Attributes:
        folder: Where it is; it need not exist.
        n_repos: Models in it.
        n_bytes: On the disk.
        free_bytes: On that disk; None when nothing tells.
        is_writable: Models can be put there.
    """

    folder: str
    n_repos: int
    n_bytes: int
    free_bytes: int | None
    is_writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    Something to know, in a sentence.

    Attributes:
        code: A stable name, such as "features".
        sentence: What is the case and what it costs.
        fix: A command that changes it; "" where there is none.
    """

    code: str
    sentence: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """
    Everything that was found, before it is judged.

    Attributes:
        machine: What ran this.
        gpus: What the system knows of.
        gpu_problem: What `nvidia-smi` said instead of an answer; "" when it answered or is not there.
        versions: Package -> version; "" for one that is missing.
        build: None when llama.cpp could not be asked.
        trial: None when it failed.
        probe_problem: What broke in the process that loads llama.cpp, with its last words; "" when nothing.
        hub, cache: Of models.
        settings: Variables of the environment that change how fast it runs.
        install: Device family, or "native" -> the command that builds llama-cpp-python for it.
        swapped_bytes: To and from the disk while this ran; None where the system does not count.
    """

    machine: Machine
    gpus: tuple[Gpu, ...]
    gpu_problem: str
    versions: Mapping[str, str]
    build: Build | None
    trial: Trial | None
    probe_problem: str
    hub: Hub
    cache: Cache
    settings: Mapping[str, str]
    install: Mapping[str, str]
    swapped_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    The facts and what follows from them.

    Attributes:
        facts: What was found.
        broken: What does not work at all.
        warnings: What works, but slower or less than it could.
    """

    facts: Facts
    broken: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
