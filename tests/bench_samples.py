"""Records made by hand: every figure of theirs can be computed in one's head."""

from __future__ import annotations

from dataclasses import replace
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

STAGES = {
    "encode": 0.1,
    "prefill": 1.0,
    "decode": 0.6,
    "sampling": 0.1,
    "detokenising": 0.05,
    "hand_over": 0.05,
}


def trial(**changes: Any) -> Trial:
    """Four tokens, 0.2 s apart, the first after a second; 0.1 s of the total are unexplained."""
    plain = Trial(
        import_s=0.2,
        load_s=0.3,
        encode_s=0.1,
        token_s=((1.0, 1.2, 1.4, 1.6),),
        total_s=2.0,
        stages=STAGES,
        peak_host_bytes=5_000_000,
        load_1m=0.1,
    )
    return replace(plain, **changes)


def case(*trials: Trial, **changes: Any) -> Case:
    """Ours, on a CPU with one thread."""
    plain = Case(
        engine=OURS,
        version="1.0",
        device="cpu",
        n_threads=1,
        depth=0,
        concurrency=1,
        neighbour=False,
        trials=trials or (trial(), trial()),
    )
    return replace(plain, **changes)


def faster(factor: float) -> Trial:
    """A trial whose tokens come so many times as fast."""
    return trial(token_s=(tuple(time / factor for time in (1.0, 1.2, 1.4, 1.6)),))


def record(*cases: Case, **changes: Any) -> Record:
    """A good run of 100 prompt tokens on a model of 2,000 bytes a token."""
    card = DeviceCard(name="cpu", kind="cpu", description="A CPU", memory_bytes=0)
    machine = Machine(
        cpu="A CPU",
        n_processors=2,
        n_processors_total=4,
        memory_bytes=2**33,
        system="Linux",
        devices=(card,),
        driver=None,
        load_1m=0.1,
    )
    software = Software(
        gguf_engine="1",
        llama_cpp_python="2",
        llama_cpp="3",
        build_flags="AVX2 = 1",
        python="3",
        tokenizers="5",
        numpy="6",
    )
    model = Model(
        name="m.gguf",
        sha256="ab" * 32,
        commit=None,
        bytes=3000,
        architecture="phi3",
        type="Q4_K",
        n_params=500,
        n_params_a_token=400,
        weight_bytes_a_token=2000,
    )
    workload = Workload(
        prompt_sha256="cd" * 32,
        n_prompt=100,
        n_tokens=4,
        seed=1,
        sampling={"temperature": 1.0},
        fixed_sha256="ef" * 32,
        n_fixed=2,
    )
    answers = Answers(
        engine=OURS,
        device="cpu",
        n_threads=1,
        greedy_ids=(1, 2, 3),
        greedy_text="abc",
        top_ids=((1, 2), (3, 4)),
        top_logprobs=((-0.1, -2.4), (-0.1, -2.4)),
    )
    plain = Record(
        date="2026-01-01T00:00:00+00:00",
        seconds=10.0,
        machine=machine,
        software=software,
        model=model,
        workload=workload,
        memory=(MemorySpeed(n_threads=1, read_bytes_per_s=(30_000.0,), copy_bytes_per_s=(20_000.0,)),),
        cases=cases or (case(),),
        anchor=Anchor(decode_tokens_per_s=(100.0, 101.0, 99.0), limit=0.05),
        answers=(answers,),
        marks=(),
        notes=(),
    )
    return replace(plain, **changes)
