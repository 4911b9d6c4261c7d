"""
The run: every case in turn, round after round, each engine in a process started for that round.

One model is loaded at a time. The first round only warms up, and asks for the answers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from gguf_engine.bench.figures import drift
from gguf_engine.bench.machine import (
    Energy,
    busy_processors,
    gpu_bytes_used,
    load_1m,
    machine_card,
    memory_speed,
    software_card,
)
from gguf_engine.bench.model import OpenedModel, open_for_bench
from gguf_engine.bench.plan import FEW_TRIALS, BenchOptions, Lane
from gguf_engine.bench.process import ABOUT, EngineProcess, Peer, PeerError, busy_neighbour, run_llama_bench
from gguf_engine.bench.record import OURS, Anchor, Answers, Case, MemorySpeed, Record, Trial
from gguf_engine.bench.workload import SAMPLING, Prompts, default_lengths
from gguf_engine.errors import OptionError

DRIFT_LIMIT = 0.05
BUSY = 0.3  # processors that others use, from which figures are doubtful
ANCHOR_S = 0.5
N_GREEDY = 64

OnStep = Callable[[int, int, str], object]
"""Told how many steps are done, how many there are, and what comes next."""


def run_bench(
    model: str,
    options: BenchOptions,
    *,
    environment: Mapping[str, str] | None = None,
    on_step: OnStep = lambda *_: None,
    progress: Any = None,
    **hub: Any,
) -> Record:
    """
    Measure a model and return the record.

    Args:
        model: As in `LLM.load`.
        options: What to measure.
        environment: Of the processes that are started; None is this process's own.
        on_step: See OnStep.
        progress: As in `LLM.load`, while the model is fetched and checked.
        hub: Options of `resolve_model`.

    Raises:
        ModelError, HubError, TokenizerError, DeviceError: As `LLM.load`.
        OptionError: More depth than the model has context.
        PeerError: Our own engine failed. A peer that fails is left out, and the record's notes say why.
    """
    begin = time.perf_counter()
    ours = Peer(name=OURS, program=sys.executable)
    with EngineProcess(Peer(name=ABOUT, program=sys.executable), {}, environment) as probe:
        about = probe.facts
    opened = open_for_bench(model, about["devices"], options.devices, options.threads, progress, **hub)
    n_prompt, n_tokens = default_lengths(opened.model.weight_bytes_a_token)
    prompts = Prompts(
        opened.tokenizer, options.n_prompt or n_prompt, options.n_tokens or n_tokens, options.seed
    )
    card, busy = machine_card(about["devices"]), busy_processors()
    run = _Run(opened, options, prompts, environment, on_step)
    run.plan(ours)
    run.go()
    return Record(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - begin,
        machine=card,
        software=software_card(about["software"]),
        model=opened.model,
        workload=prompts.workload(),
        memory=run.memory(),
        cases=tuple(run.cases()),
        anchor=run.anchor(),
        answers=tuple(run.answers),
        marks=find_marks(run.anchor(), busy, options.n_trials),
        notes=tuple(run.notes),
    )


class _Run:
    def __init__(
        self,
        opened: OpenedModel,
        options: BenchOptions,
        prompts: Prompts,
        environment: Mapping[str, str] | None,
        on_step: OnStep,
    ) -> None:
        self._opened, self._options, self._prompts = opened, options, prompts
        self._environment, self._on_step = environment, on_step
        self._n_done = self._n_steps = 0
        self._lanes: list[Lane] = []
        self._anchors: list[float] = []
        self._speeds: dict[int, list[tuple[float, float]]] = {}
        self.answers: list[Answers] = []
        self.notes: list[str] = []
        deepest = max(options.depths) + prompts.n_prompt + prompts.n_tokens + 8
        if deepest > opened.n_ctx_train:
            allowed = f"at most {opened.n_ctx_train - deepest + max(options.depths)}"
            help_ = (
                f"depth, prompt and answer fit into the {opened.n_ctx_train} positions of the model then"
            )
            raise OptionError("--depth", max(options.depths), allowed, help_)
        self._n_ctx = min(opened.n_ctx_train, -(-deepest // 256) * 256)

    def plan(self, ours: Peer) -> None:
        """Make the lanes."""
        for peer in self._options.peers:
            if not peer.kind.many and max(self._options.concurrencies) > 1:
                self.notes.append(f"{peer.name} answers one request at a time: it has no case of several")
            if not peer.kind.depth and max(self._options.depths) > 0:
                self.notes.append(f"{peer.name} keeps no prefix: it has no case with a depth")
        self._lanes = [
            Lane(peer=peer, device=device, n_threads=n_threads, neighbour=neighbour)
            for neighbour in ((False, True) if self._options.neighbour else (False,))
            for device in self._opened.devices
            for n_threads in self._opened.threads
            for peer in (ours, *self._options.peers)
        ]
        self._n_steps = (self._options.n_trials + 1) * len(self._lanes)

    def go(self) -> None:
        """Run the round that warms up, then the measured ones."""
        for lane in list(self._lanes):
            self._step(f"warm-up: {lane.name}")
            try:
                self._warm_up(lane)
            except PeerError as error:
                if lane.peer.name == OURS:
                    raise
                self._leave_out(lane, error)
        for round_ in range(self._options.n_trials):
            for n_threads in self._opened.threads:
                self._speeds.setdefault(n_threads, []).append(memory_speed(n_threads))
            # Another one begins each round, so that none always has the same one before it.
            first = round_ % len(self._lanes)
            turn = self._lanes[first:] + self._lanes[:first]
            for i, lane in enumerate(turn):
                if i in (0, len(turn) // 2):
                    self._measure_anchor()
                self._step(f"round {round_ + 1} of {self._options.n_trials}: {lane.name}")
                try:
                    self._measure(lane)
                except PeerError as error:
                    if lane.peer.name == OURS:
                        raise
                    self._leave_out(lane, error)
        self._measure_anchor()
        self._on_step(self._n_steps, self._n_steps, "done")

    def _step(self, what: str) -> None:
        self._on_step(self._n_done, self._n_steps, what)
        self._n_done += 1

    def _leave_out(self, lane: Lane, error: PeerError) -> None:
        """Drop a lane, and say why once."""
        if lane in self._lanes:
            self._lanes.remove(lane)
        note = f"left out: {error}"
        if note not in self.notes:
            self.notes.append(note)

    def _cases(self, lane: Lane) -> Iterator[tuple[int, int]]:
        for depth in self._options.depths:
            for concurrency in self._options.concurrencies:
                if (concurrency == 1 or lane.peer.kind.many) and (not depth or lane.peer.kind.depth):
                    yield depth, concurrency

    def _start(self, lane: Lane) -> EngineProcess:
        config = {
            "path": str(self._opened.path),
            "tokenizer": self._opened.tokenizer_path,
            "device": lane.device,
            "n_threads": lane.n_threads,
            "n_ctx": self._n_ctx,
            "neighbour": lane.neighbour,
            "n_slots": max(self._options.concurrencies) if lane.peer.kind.many else 1,
        }
        process = EngineProcess(lane.peer, config, self._environment)
        try:
            lane.version = process.facts["version"]
            short = self._prompts.short()
            process.ask("warm_up", text=short.text, prompt=short.ids, sampling=SAMPLING)
        except BaseException:
            process.close()
            raise
        return process

    def _warm_up(self, lane: Lane) -> None:
        """Start the engine once, and ask for its answers unless another lane gives the same ones."""
        if not lane.peer.kind.file:
            run_llama_bench(
                lane.peer, self._opened.path, device=lane.device, n_threads=lane.n_threads,
                n_prompt=16, n_tokens=8, depth=0,
            )  # fmt: skip
            return
        with self._start(lane) as process:
            if lane.neighbour:
                return
            prompt = self._prompts.of(0, 0)
            n_tokens = min(N_GREEDY, self._prompts.n_tokens)
            greedy = process.ask("greedy", text=prompt.text, ids=prompt.ids, n_tokens=n_tokens)
            tops: dict[str, Any] = {"ids": [], "logprobs": []}
            if lane.peer.kind.forced:
                tops = process.ask("tops", ids=self._prompts.fixed)
        ids = tuple(greedy["ids"])
        self.answers.append(
            Answers(
                engine=lane.peer.name,
                device=lane.device,
                n_threads=lane.n_threads,
                greedy_ids=ids,
                greedy_text=self._opened.tokenizer.decode(ids) if ids else greedy["text"],
                top_ids=tuple(map(tuple, tops["ids"])),
                top_logprobs=tuple(map(tuple, tops["logprobs"])),
            )
        )

    def _measure_anchor(self) -> None:
        lane = next(lane for lane in self._lanes if lane.peer.name == OURS)
        with self._start(lane) as process:
            answer = process.ask(
                "anchor",
                prompt=self._prompts.short().ids,
                sampling=SAMPLING,
                n_tokens=min(32, self._prompts.n_tokens),
                seconds=ANCHOR_S,
            )
        self._anchors.append(answer["decode_tokens_per_s"])

    def _measure(self, lane: Lane) -> None:
        if not lane.peer.kind.file:
            for case in self._cases(lane):
                with busy_neighbour(lane.neighbour):
                    lane.trials.setdefault(case, []).append(self._llama_bench_trial(lane, case[0]))
            return
        on_gpu = lane.device != "cpu"
        before = gpu_bytes_used() if on_gpu else None
        with busy_neighbour(lane.neighbour), self._start(lane) as process:
            for case in self._cases(lane):
                trial = self._trial(lane, process, case, on_gpu, before)
                lane.trials.setdefault(case, []).append(trial)

    def _trial(
        self, lane: Lane, process: EngineProcess, case: tuple[int, int], on_gpu: bool, before: int | None
    ) -> Trial:
        depth, concurrency = case
        prompts = [self._prompts.of(depth, stream) for stream in range(concurrency)]
        load = load_1m()
        energy = Energy(on_gpu)
        try:
            done = process.ask(
                "trial",
                texts=[prompt.text for prompt in prompts],
                prompts=[prompt.ids for prompt in prompts],
                n_past=depth,
                n_tokens=self._prompts.n_tokens,
                seed=self._prompts.seed,
                sampling=SAMPLING,
            )
        finally:
            joules = energy.close()
        if not done.pop("same_ids"):
            note = f"{lane.peer.name} encodes the prompt to other ids; it was given ours"
            self.notes += [] if note in self.notes else [note]
        after = gpu_bytes_used() if on_gpu else None
        done["token_s"] = tuple(map(tuple, done["token_s"]))
        return Trial(
            import_s=process.facts["import_s"],
            load_s=process.facts["load_s"],
            peak_device_bytes=None if before is None or after is None else max(0, after - before),
            energy_j=joules,
            load_1m=load,
            **done,
        )

    def _llama_bench_trial(self, lane: Lane, depth: int) -> Trial:
        load = load_1m()
        rates = run_llama_bench(
            lane.peer, self._opened.path, device=lane.device, n_threads=lane.n_threads,
            n_prompt=self._prompts.n_prompt, n_tokens=self._prompts.n_tokens, depth=depth,
        )  # fmt: skip
        lane.version = rates.pop("version")
        return Trial(
            import_s=None,
            load_s=None,
            encode_s=None,
            token_s=(),
            total_s=None,
            stages={},
            load_1m=load,
            **rates,
        )

    def memory(self) -> tuple[MemorySpeed, ...]:
        """Return the memory's speeds."""
        return tuple(
            MemorySpeed(
                n_threads=n_threads,
                read_bytes_per_s=tuple(read for read, _ in speeds),
                copy_bytes_per_s=tuple(copy for _, copy in speeds),
            )
            for n_threads, speeds in self._speeds.items()
        )

    def anchor(self) -> Anchor:
        """Return the anchor's samples."""
        return Anchor(decode_tokens_per_s=tuple(self._anchors), limit=DRIFT_LIMIT)

    def cases(self) -> Iterator[Case]:
        """Yield what was measured."""
        for lane in self._lanes:
            for (depth, concurrency), trials in lane.trials.items():
                yield Case(
                    engine=lane.peer.name,
                    version=lane.version,
                    device=lane.device,
                    n_threads=lane.n_threads,
                    depth=depth,
                    concurrency=concurrency,
                    neighbour=lane.neighbour,
                    trials=tuple(trials),
                )


def find_marks(anchor: Anchor, busy: float | None, n_trials: int) -> tuple[str, ...]:
    """
    Return the reasons to doubt a run's figures, a sentence each.

    Args:
        anchor: Its samples.
        busy: Processors that others kept busy before the run; None where nobody knows.
        n_trials: Measured rounds.
    """
    marks = []
    drifted = drift(anchor)
    if drifted is not None and drifted > anchor.limit:
        marks.append(
            f"the machine did not keep its speed: the anchor's samples differ by up to {drifted:.0%} "
            f"from their median, more than {anchor.limit:.0%}"
        )
    if busy is not None and busy > BUSY:
        marks.append(
            f"the machine was busy before the run began: others had {busy:.2f} processors, more than {BUSY}"
        )
    if n_trials < FEW_TRIALS:
        marks.append(f"only {n_trials} trials, fewer than {FEW_TRIALS}")
    return tuple(marks)
