"""Made-up records of benchmarks: a laptop, a machine with a GPU, one case alone."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from gguf_engine.bench.record import (
    OURS,
    Anchor,
    Answers,
    Case,
    DeviceCard,
    Machine,
    MemorySpeed,
    Model,
    Record,
    Software,
    Trial,
    Workload,
)

N_TOKENS = 32
MODEL = Model(
    name="phi3.gguf",
    sha256="ab" * 32,
    commit=None,
    bytes=2_393_000_000,
    architecture="phi3",
    type="Q4_K",
    n_params=3_820_000_000,
    n_params_a_token=3_720_000_000,
    weight_bytes_a_token=2_200_000_000,
)
CPU = DeviceCard(name="cpu", kind="cpu", description="AMD EPYC", memory_bytes=25_000_000_000)
GPU = DeviceCard(name="cuda:0", kind="gpu", description="NVIDIA H200", memory_bytes=150_000_000_000)
MACHINE = Machine(
    cpu="AMD EPYC",
    n_processors=2,
    n_processors_total=2,
    memory_bytes=25_000_000_000,
    system="Linux 6 x86_64",
    devices=(CPU,),
    driver=None,
    load_1m=0.05,
)
SOFTWARE = Software(
    gguf_engine="0.1.0",
    llama_cpp_python="0.3.36",
    llama_cpp="b6000",
    build_flags="CPU : AVX2 = 1 | OPENMP = 1 |",
    python="3.11.7",
    tokenizers="0.23",
    numpy="2.4",
)
WORKLOAD = Workload(
    prompt_sha256="cd" * 32,
    n_prompt=128,
    n_tokens=N_TOKENS,
    seed=1,
    sampling={"temperature": 1.0, "min_p": 0.1},
    fixed_sha256="ef" * 32,
    n_fixed=64,
)


def trial(
    rate: float, prefill: float = 120.0, *, n_streams: int = 1, seed: int = 0, **changes: Any
) -> Trial:
    """Return a trial of streams that share `rate` tokens per second, with a little jitter."""
    rng = Random(seed)
    streams = []
    for _ in range(n_streams):
        now = WORKLOAD.n_prompt * n_streams / prefill
        times = [now]
        for _ in range(N_TOKENS - 1):
            now += n_streams / rate * rng.uniform(0.95, 1.05)
            times.append(now)
        streams.append(tuple(times))
    last = max(times[-1] for times in streams)
    first = max(times[0] for times in streams)
    values: dict[str, Any] = {
        "import_s": 0.4,
        "load_s": 1.1,
        "encode_s": 0.001,
        "token_s": tuple(streams),
        "total_s": last + 0.002,
        "stages": {"encode": 0.001, "prefill": first, "decode": (last - first) * 0.97, "sampling": 0.004},
        "peak_host_bytes": 2_600_000_000,
        "load_1m": 0.3,
    }
    return Trial(**{**values, **changes})


def case(rate: float, prefill: float = 120.0, *, n_trials: int = 5, **changes: Any) -> Case:
    """Return a case whose trials lie within 2 % of `rate`."""
    values: dict[str, Any] = {
        "engine": OURS,
        "version": "0.1.0",
        "device": "cpu",
        "n_threads": 2,
        "depth": 0,
        "concurrency": 1,
        "neighbour": False,
    }
    values.update(changes)
    trials = tuple(
        trial(
            rate * (0.98 + 0.01 * i), prefill * (0.99 + 0.005 * i), n_streams=values["concurrency"], seed=i
        )
        for i in range(n_trials)
    )
    return Case(**{"trials": trials, **values})


def record(*cases: Case, **changes: Any) -> Record:
    """Return a record of these cases on the machine without a GPU."""
    values: dict[str, Any] = {
        "date": "2026-01-02T03:04:05+00:00",
        "seconds": 61.0,
        "machine": MACHINE,
        "software": SOFTWARE,
        "model": MODEL,
        "workload": WORKLOAD,
        "memory": (
            MemorySpeed(n_threads=1, read_bytes_per_s=(11e9, 12e9), copy_bytes_per_s=(14e9, 15e9)),
            MemorySpeed(n_threads=2, read_bytes_per_s=(22e9, 23e9), copy_bytes_per_s=(24e9, 26e9)),
        ),
        "anchor": Anchor(decode_tokens_per_s=(9.9, 10.0, 10.1), limit=0.05),
        "answers": (),
        "marks": (),
        "notes": (),
    }
    return Record(cases=cases, **{**values, **changes})


def answers(ids: tuple[int, ...], **changes: Any) -> Answers:
    """Return the answers of our engine on the cpu: these ids, and two sure guesses at a fixed text."""
    start = Answers(
        engine=OURS,
        device="cpu",
        n_threads=2,
        greedy_ids=ids,
        greedy_text="text",
        top_ids=((1, 2), (3, 4)),
        top_logprobs=((-0.1, -2.4), (-0.2, -1.8)),
    )
    return replace(start, **changes)


def laptop() -> Record:
    """Return a run over threads, depths, company, a neighbour and peers."""
    return record(
        case(10.0, n_threads=2),
        case(6.5, 61, n_threads=1),
        case(5.4, 60, n_threads=2, neighbour=True),
        case(9.7, n_threads=2, engine="llama-cpp-python", version="0.3.36"),
        case(9.9, n_threads=2, engine="bare", version="0.3.36"),
        case(8.1, 100, n_threads=2, depth=2048),
        case(22.0, n_threads=2, concurrency=4),
        case(31.0, n_threads=2, concurrency=8),
        answers=(
            answers((5, 6, 7, 8)),
            answers((5, 6, 7, 8), n_threads=1),
            answers((5, 6, 9, 8), engine="llama-cpp-python", top_ids=(), top_logprobs=()),
        ),
        notes=("mistralrs was left out: it is not installed; `pip install mistralrs`",),
    )


def workstation() -> Record:
    """Return a run on a processor and a GPU, doubted."""
    machine = replace(MACHINE, cpu="Intel Xeon", n_processors=16, devices=(CPU, GPU), driver="570.86")
    return record(
        case(210.0, 9000, device="cuda:0"),
        case(24.0, 410, n_threads=16),
        case(900.0, 9000, device="cuda:0", concurrency=8),
        machine=machine,
        memory=(MemorySpeed(n_threads=16, read_bytes_per_s=(90e9,), copy_bytes_per_s=(95e9,)),),
        answers=(answers((5, 6, 7, 1), device="cuda:0", top_ids=((1, 2), (4, 3))), answers((5, 6, 7, 8))),
        marks=("the machine was busy before the run began: others had 0.80 processors, more than 0.3",),
    )
