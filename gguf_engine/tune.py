"""
Measure how a model is loaded best on this machine: threads, batch size, load mode, attention.

Every candidate is measured right after the options it would replace, so that a machine that becomes
busy slows both. What bounds the time: the slowest pass, and `budget_s`; what did not fit in is listed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from gguf_engine.backend.base import Backend, Batch
from gguf_engine.backend.threads import ladder
from gguf_engine.params import EngineParams, FlashAttention
from gguf_engine.tuned import TunedChoices, this_machine

if TYPE_CHECKING:
    from gguf_engine.loader.gguf import GGUFFile

N_CTX = 1024
N_BATCH = 512
FIRST_PREFILL = 32
PASS_S = 2.5  # a prompt is not made longer once its pass takes about that long
DECODE_S, DECODE_PASSES = 0.3, 4  # of one measurement, at the least
ROUNDS = 3
GAIN = 1.03  # what a candidate must be faster by, in decode and prefill on the average
BUSY = 0.3  # load of the machine from which figures are doubtful


class Tunable(Backend, Protocol):
    """A backend whose threads can be set between passes."""

    def use_threads(self, n_threads: int, n_threads_batch: int) -> None:
        """Compute the passes from now on with so many threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """
    The speeds of one way to load and run the model.

    Attributes:
        options: What it differs in from the ones before it.
        decode_tokens_per_s: One row a pass after that prompt; None where it was not measured.
        prefill_tokens_per_s: One prompt of `n_prefill` tokens; None where it was not measured.
        n_prefill: Tokens of that prompt.
        load_s: Seconds that the load took; 0 where the model was loaded already.
    """

    options: dict[str, Any]
    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    n_prefill: int = 0
    load_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class TuneReport:
    """
    What was measured, and what follows.

    Attributes:
        choice: Options of EngineParams that are worth setting here.
        measurements: In the order they were made.
        left_out: Candidates that the time did not allow, as "option=value".
        seconds: How long it took.
    """

    choice: dict[str, Any] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0


def tune(
    make_backend: Callable[[EngineParams], Tunable],
    params: EngineParams,
    n_processors: int,
    *,
    auto_attention: FlashAttention = "auto",
    budget_s: float = 45.0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[str], object] = lambda _: None,
) -> TuneReport:
    """
    Find the options that make a model fast on this machine.

    Args:
        make_backend: Loads the model.
        params: The user's options; what they leave open is measured.
        n_processors: Most threads to try.
        auto_attention: What `flash_attention="auto"` comes to for this model untuned.
        budget_s: Seconds after which nothing new is begun.
        clock: Monotonic seconds.
        progress: Told what is measured next.
    """
    tuner = _Tuner(make_backend, params, auto_attention, clock=clock, budget_s=budget_s, progress=progress)
    return tuner.run(n_processors)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOutcome:
    """
    A model's report, and whether its choice is kept for later loads.

    Attributes:
        sha256: Of the model.
        kept: False if it was not asked for, or the folder cannot be written.
    """

    sha256: str
    report: TuneReport
    kept: bool


Progress = Callable[[str, str, int, int | None], object]
"""Called with a stage ("download", "check"), a file, the bytes done and the bytes in all."""


def tune_model(
    model: str,
    params: EngineParams,
    *,
    budget_s: float = 45.0,
    keep: bool = True,
    progress: Progress | None = None,
    on_step: Callable[[str], object] = lambda _: None,
    **hub: Any,
) -> TuneOutcome:
    """
    Find the options that make a model fast on this machine, and keep them for later loads.

    Args:
        model: As in `LLM.load`.
        params: Options that are given; what they leave open is measured.
        budget_s: Seconds after which nothing new is begun.
        keep: Keep the choice; else it is only reported.
        progress: See Progress.
        on_step: Told what is measured next.
        hub: Options of `resolve_model`.

    Raises:
        ModelError, HubError, DeviceError: As `LLM.load`.
    """
    from gguf_engine.backend.attention import settle_attention
    from gguf_engine.backend.devices import choose_for
    from gguf_engine.backend.llama import LlamaBackend, library_versions, list_devices
    from gguf_engine.backend.processors import usable_processors

    device = choose_for(params, list_devices())
    gguf, sha256 = _checked(model, progress, hub)
    features = library_versions()["system_info"]
    settled = settle_attention(params, gguf.metadata, features, device.device.kind)
    report = tune(
        lambda tried: LlamaBackend(gguf.path, tried),
        params,
        usable_processors(),
        auto_attention=settled.flash_attention,
        budget_s=budget_s,
        progress=on_step,
    )
    is_kept = keep and _choices().write(sha256, this_machine(device.name), report.choice)
    return TuneOutcome(sha256=sha256, report=report, kept=is_kept)


def forget_choice(
    model: str, params: EngineParams, *, progress: Progress | None = None, **hub: Any
) -> None:
    """Forget what was chosen for a model on this machine; the arguments are those of `tune_model`."""
    from gguf_engine.backend.devices import choose_for
    from gguf_engine.backend.llama import list_devices

    device = choose_for(params, list_devices()).name
    _, sha256 = _checked(model, progress, hub)
    _choices().forget(sha256, this_machine(device))


def _choices() -> TunedChoices:
    from gguf_engine.loader.hub import state_folder

    return TunedChoices.beside(state_folder())


def _checked(model: str, progress: Progress | None, hub: dict[str, Any]) -> tuple[GGUFFile, str]:
    """Return the checked header of a model and its sha256."""
    from gguf_engine.backend.llama import has_finite_numbers
    from gguf_engine.loader.gguf import read_gguf
    from gguf_engine.loader.hub import state_folder
    from gguf_engine.loader.parts import read_parts
    from gguf_engine.loader.preflight import preflight
    from gguf_engine.loader.resolve import resolve_model
    from gguf_engine.loader.tensor_check import check_tensors
    from gguf_engine.loader.verdicts import Verdicts

    def stage(name: str) -> Callable[[str, int, int | None], None] | None:
        if progress is None:
            return None

        def show(*done: Any) -> None:
            progress(name, *done)

        return show

    files = resolve_model(model, progress=stage("download"), **hub)
    gguf = read_gguf(files.weights)
    preflight(gguf)
    verdict = check_tensors(
        read_parts(gguf),
        Verdicts.open(state_folder()),
        has_finite_numbers,
        blobs=files.commit is not None,
        progress=stage("check"),
    )
    return gguf, verdict.sha256


class _Tuner:
    def __init__(
        self,
        make_backend: Callable[[EngineParams], Tunable],
        params: EngineParams,
        auto_attention: FlashAttention,
        *,
        clock: Callable[[], float],
        budget_s: float,
        progress: Callable[[str], object],
    ) -> None:
        self._make, self._clock, self._progress = make_backend, clock, progress
        self._begin, self._budget_s = clock(), budget_s
        self._report = TuneReport()
        self._load_s = 0.0  # of the last load
        self._may_choose_attention = params.flash_attention == "auto" and params.kv_cache_type == "f16"
        self._params = replace(
            params,
            flash_attention=auto_attention if self._may_choose_attention else params.flash_attention,
            n_ctx=N_CTX if params.n_ctx is None else min(params.n_ctx, N_CTX),
            n_cells=None,
            n_slots=1,
            n_batch=max(N_BATCH, params.n_ubatch or 0),
            adapt_threads="never",
            tuned=False,
        )

    def run(self, n_processors: int) -> TuneReport:
        base = replace(self._params, n_threads=n_processors, n_threads_batch=n_processors)
        with self._opened(base) as (backend, load_s):
            bench = _Bench(backend, self._clock)
            self._progress("prompt sizes")
            self._measure_sizes(bench, load_s)
            threads = self._measure_threads(bench, ladder(n_processors))
            self._params = replace(
                base, n_threads=threads["n_threads"], n_threads_batch=threads["n_threads_batch"]
            )
            backend.use_threads(threads["n_threads"], threads["n_threads_batch"])
            for options, may_choose in self._candidates():
                self._try(bench, options, may_choose=may_choose)
        self._report.seconds = self._clock() - self._begin
        return self._report

    @contextmanager
    def _opened(self, params: EngineParams) -> Iterator[tuple[Tunable, float]]:
        begin = self._clock()
        backend = self._make(params)
        self._load_s = self._clock() - begin
        try:
            yield backend, self._load_s
        finally:
            backend.close()

    def _is_over(self, seconds: float = 0.0) -> bool:
        return self._clock() - self._begin + seconds > self._budget_s

    def _measure_sizes(self, bench: _Bench, load_s: float) -> None:
        """Find how fast a prompt is by its length: what a smaller n_ubatch would gain is in there."""
        bench.decode()  # what the first passes take comes from the disk
        sizes = [FIRST_PREFILL]
        found = {FIRST_PREFILL: [bench.prefill(FIRST_PREFILL)]}
        while sizes[-1] < bench.n_most and 2 * sizes[-1] / found[sizes[-1]][0] < PASS_S:
            sizes.append(2 * sizes[-1])
            found[sizes[-1]] = [bench.prefill(sizes[-1])]
        for order in (sizes[::-1], sizes):  # so that a machine that slows down slows all of them
            for n_tokens in order:
                found[n_tokens].append(bench.prefill(n_tokens))
        rates = {n_tokens: median(values) for n_tokens, values in found.items()}
        for n_tokens, rate in rates.items():
            self._add(Measurement(options={}, prefill_tokens_per_s=rate, n_prefill=n_tokens, load_s=load_s))
            load_s = 0.0
        bench.n_prefill = sizes[-1]
        best = max(rates.values())
        fastest = max(n_tokens for n_tokens, rate in rates.items() if rate * GAIN >= best)
        if self._params.n_ubatch is None and N_BATCH in rates and rates[fastest] > GAIN**2 * rates[N_BATCH]:
            self._report.choice["n_ubatch"] = fastest
        elif self._params.n_ubatch is None and N_BATCH not in rates:
            self._report.left_out.append(f"n_ubatch={2 * bench.n_prefill} and more")

    def _measure_threads(self, bench: _Bench, rungs: tuple[int, ...]) -> dict[str, int]:
        """Return the best numbers of threads; of two about as fast the smaller one."""
        decode: dict[int, list[float]] = {n: [] for n in rungs}
        prefill: dict[int, list[float]] = {n: [] for n in rungs}
        for round_ in range(ROUNDS):
            for n in rungs:
                self._progress(f"{n} threads" if n > 1 else "1 thread")
                bench.backend.use_threads(n, n)
                if round_ == 0 or bench.n_prefill / median(prefill[n]) < 0.5:
                    speeds = bench.measure()
                    prefill[n].append(speeds[1])
                else:
                    speeds = bench.decode(), 0.0
                decode[n].append(speeds[0])
        for n in rungs:
            options = {"n_threads": n, "n_threads_batch": n}
            self._add(_measured(options, median(decode[n]), median(prefill[n]), bench.n_prefill))
        best = {
            "n_threads": self._params.n_threads or _fewest_of_the_best(decode),
            "n_threads_batch": self._params.n_threads_batch or _fewest_of_the_best(prefill),
        }
        self._report.choice |= {name: n for name, n in best.items() if getattr(self._params, name) is None}
        return best

    def _candidates(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield options, and whether they may be chosen: a coarser cache changes the answers."""
        params = self._params
        if params.repack is None:
            yield {"repack": True}, True
        if self._may_choose_attention:
            yield {"flash_attention": "on" if params.flash_attention == "off" else "off"}, True
        is_open = self._may_choose_attention or params.flash_attention != "off"
        if params.kv_cache_type == "f16" and is_open:
            needed = {"flash_attention": "on"} if params.flash_attention == "off" else {}
            yield {"kv_cache_type": "q8_0", **needed}, False
            yield {"kv_cache_type": "q4_0", **needed}, False

    def _try(self, bench: _Bench, options: dict[str, Any], *, may_choose: bool) -> None:
        """Measure a candidate beside what it would replace, and take it if it is faster on the whole."""
        name = " and ".join(f"{option}={value}" for option, value in options.items())
        if self._is_over(4 * bench.measure_s + 2 * self._load_s):
            self._report.left_out.append(name)
            return
        self._progress(name)
        with self._opened(replace(self._params, **options)) as (backend, load_s):
            other = _Bench(backend, self._clock, bench.n_prefill)
            other.decode()
            pairs = [(bench.measure(), other.measure()) for _ in range(2)]
        decode, prefill = (median(pair[1][i] for pair in pairs) for i in range(2))
        before = [median(pair[0][i] for pair in pairs) for i in range(2)]
        self._add(_measured(options, decode, prefill, bench.n_prefill, load_s))
        if may_choose and (decode / before[0]) * (prefill / before[1]) > GAIN**2:
            self._report.choice |= options

    def _add(self, measurement: Measurement) -> None:
        self._report.measurements.append(measurement)


class _Bench:
    """Measures one loaded backend."""

    def __init__(
        self, backend: Tunable, clock: Callable[[], float], n_prefill: int = FIRST_PREFILL
    ) -> None:
        self.backend, self._clock = backend, clock
        self.n_prefill = n_prefill
        self.n_most = min(backend.n_batch, backend.n_ctx // 2)
        self.measure_s = 0.0
        self._n_held = 0  # of the last prompt; decode goes on from there, with attention in its time

    def _pass(self, start: int, n_tokens: int) -> float:
        batch = Batch()
        # Any ids do: speed depends on shapes, not on values.
        batch.add(0, start, [(7 * i + 3) % self.backend.n_vocab for i in range(start, start + n_tokens)], 1)
        begin = self._clock()
        self.backend.forward(batch)
        return self._clock() - begin

    def prefill(self, n_tokens: int | None = None) -> float:
        """Return tokens/s of a prompt."""
        n_tokens = self.n_prefill if n_tokens is None else n_tokens
        self.backend.truncate(0, 0)
        seconds = self._pass(0, n_tokens)
        self._n_held = n_tokens
        return n_tokens / seconds

    def decode(self) -> float:
        """Return tokens/s of one row at a time: the mean, for a neighbour slows few passes by much."""
        if not self.backend.truncate(0, self._n_held):  # a recurrent model forgets all or nothing
            self.prefill(self._n_held)
        seconds, n_passes = 0.0, 0
        n_most = min(self.n_most, self.backend.n_ctx - self._n_held)
        while n_passes < n_most and (seconds < DECODE_S or n_passes < DECODE_PASSES):
            seconds += self._pass(self._n_held + n_passes, 1)
            n_passes += 1
        return n_passes / seconds

    def measure(self) -> tuple[float, float]:
        """Return tokens/s of decode and of prefill."""
        begin = self._clock()
        prefill = self.prefill()
        decode = self.decode()
        self.measure_s = self._clock() - begin
        return decode, prefill


def _measured(
    options: Mapping[str, Any], decode: float, prefill: float, n_prefill: int, load_s: float = 0.0
) -> Measurement:
    return Measurement(
        options=dict(options),
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        n_prefill=n_prefill,
        load_s=load_s,
    )


def _fewest_of_the_best(rates: Mapping[int, list[float]]) -> int:
    speeds = {n: median(values) for n, values in rates.items()}
    best = max(speeds.values())
    return min(n for n, speed in speeds.items() if speed * GAIN >= best)
