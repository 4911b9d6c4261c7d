"""
Speculation never changes an answer: looked up or guessed by a model, however much, in any company.

Bit for bit on FakeBackend, whose rows depend on everything a slot holds. How many ids are guessed hangs
on a clock that here tells what Hypothesis likes, so that every number of them comes up.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from engine_samples import Request, finish
from hypothesis import given, settings
from hypothesis import strategies as st
from speculation_samples import Habitual, Steps

from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.draft import DraftModel
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.lookup import PromptLookup
from gguf_engine.engine.speculative import Source, Speculation

N_VOCAB = 23
CTX = 96
SOURCES = ("lookup", "twin", "stranger", "small")

ids = st.integers(0, N_VOCAB - 1)
requests = st.fixed_dictionaries(
    {
        "prompt_ids": st.lists(ids, min_size=1, max_size=50),
        "seed": st.integers(0, 2**63 - 1),
        "temperature": st.sampled_from([0.0, 0.0, 0.7, 1.5]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "max_tokens": st.integers(1, 60),
        "repeat_penalty": st.sampled_from([1.0, 1.0, 1.2]),
        "stop": st.sampled_from([(), ("[3]",), ("[1][5]", "[7]")]),
        "logprobs": st.sampled_from([None, 2]),
    }
)
# Where all passes take the same every guess pays; with no sense in the times, some do and some do not.
steps = st.builds(
    Steps,
    st.randoms(use_true_random=False),
    st.sampled_from([(1.0,), (1.0,), (0.5, 1.0, 2.0), (1e-6, 3.0)]),
)


def machine(clock: Steps | None = None, **sizes: Any) -> Habitual:
    return Habitual(clock, **{"n_vocab": N_VOCAB, "n_ctx": CTX, "n_batch": 32, "end_id": 0, **sizes})


def source_of(kind: str, clock: Steps) -> Source:
    """Return what guesses: by looking up, the model itself, another one, or one with a short context."""
    if kind == "lookup":
        return PromptLookup()
    if kind == "stranger":
        return DraftModel(
            FakeBackend(n_vocab=N_VOCAB - 2, n_ctx=CTX, n_slots=4, n_cells=2 * CTX), N_VOCAB, clock
        )
    if kind == "small":
        return DraftModel(machine(n_ctx=40, n_slots=2, n_cells=41), N_VOCAB, clock)
    return DraftModel(machine(n_slots=4, n_cells=4 * CTX), N_VOCAB, clock)


def outcome(request: Request) -> Any:
    completion = request.completion
    return (
        completion.token_ids,
        completion.text,
        completion.logprobs,
        completion.top_logprobs,
        completion.finish_reason,
    )


class Allowed:
    """A grammar: after id i come ids that differ from it by less than a reach, and 0 to end."""

    def __init__(self, reach: int, last: int = 1) -> None:
        self.reach, self.last = reach, last

    def allows(self, token_id: int) -> bool:
        return token_id == 0 or abs(token_id - self.last) < self.reach

    def fill_mask(self, mask: bytearray) -> None:
        mask[:] = sum(1 << i for i in range(N_VOCAB) if self.allows(i)).to_bytes(len(mask), "little")

    def accept(self, token_id: int) -> None:
        assert self.allows(token_id), "an id that the mask did not allow"
        self.last = token_id

    def clone(self) -> Allowed:
        return Allowed(self.reach, self.last)


scenes = st.fixed_dictionaries(
    {
        "wanted": st.lists(requests, min_size=1, max_size=5),
        "n_cells": st.integers(CTX, 3 * CTX),
        "gaps": st.lists(st.integers(0, 6), min_size=5, max_size=5),
        "cuts": st.lists(st.booleans(), min_size=5, max_size=5),
        "reach": st.sampled_from([None, 4, 9]),
    }
)


def play(engine: Engine, scene: dict[str, Any]) -> list[Any]:
    """Run a scene's requests as they come, some of them preempted, and return what came out."""
    reach = scene["reach"]
    together = []
    for options, gap, is_cut in zip(scene["wanted"], scene["gaps"], scene["cuts"], strict=False):
        constraint = None if reach is None else Allowed(reach)
        together.append(Request(engine, constraint=constraint, **options))
        engine.submit(together[-1].sequence)
        for _ in range(gap):
            engine.step()
        if is_cut and engine.scheduler.running:
            engine.scheduler.preempt_youngest()
    finish(engine)
    return [outcome(request) for request in together]


@settings(max_examples=200)
@given(scene=scenes, kind=st.sampled_from(SOURCES), clock=steps, n_max=st.integers(1, 31))
def test_answers_are_those_of_plain_decoding(
    scene: dict[str, Any], kind: str, clock: Steps, n_max: int
) -> None:
    plain = [play(Engine(machine()), {**scene, "wanted": [one]}) for one in scene["wanted"]]
    speculation = Speculation(N_VOCAB, source_of(kind, clock), n_max, clock)
    engine = Engine(machine(clock, n_slots=4, n_cells=scene["n_cells"]), speculation)
    assert play(engine, scene) == [each for (each,) in plain]
    assert kind not in ("lookup", "twin") or speculation.n_faults == 0
    engine.close()


@pytest.mark.parametrize("kind", SOURCES[:2])
def test_and_guesses_are_made_and_taken(kind: str) -> None:
    """Without this the equality above could hold because nothing is ever guessed."""
    clock = Steps(random.Random(1))
    engine = Engine(machine(clock, end_id=None), Speculation(N_VOCAB, source_of(kind, clock), 31, clock))
    request = Request(engine, [1, 2, 3], max_tokens=80, temperature=0.0, repeat_penalty=1.0)
    engine.submit(request.sequence)
    finish(engine)
    assert request.completion.timings.n_accepted > 20


@settings(max_examples=60)
@given(
    options=requests,
    seeds=st.lists(st.integers(0, 99), min_size=6, max_size=6),
    kind=st.sampled_from(SOURCES),
)
def test_a_cancelled_request_leaves_nothing_behind(
    options: dict[str, Any], seeds: list[int], kind: str
) -> None:
    clock = Steps(random.Random(seeds[0]))
    source = source_of(kind, clock)
    engine = Engine(machine(clock, n_slots=2, n_cells=2 * CTX), Speculation(N_VOCAB, source, 15, clock))
    for seed in seeds:
        request = Request(engine, **{**options, "seed": seed})
        engine.submit(request.sequence)
        for _ in range(seed % 7):
            engine.step()
        engine.cancel(request.sequence)
    last = Request(engine, **options)
    engine.submit(last.sequence)
    finish(engine)
    assert last.completion.token_ids == outcome_alone(options)
    if isinstance(source, DraftModel):
        assert len(source._free) == source._backend.n_slots
        assert not source._states
        assert all(not source._backend.held(slot) for slot in range(source._backend.n_slots))  # type: ignore[attr-defined]
    else:
        assert isinstance(source, PromptLookup)
        assert not source._indexes


def outcome_alone(options: dict[str, Any]) -> tuple[int, ...]:
    engine = Engine(machine())
    request = Request(engine, **options)
    engine.submit(request.sequence)
    finish(engine)
    return request.completion.token_ids
