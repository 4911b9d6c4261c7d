"""Tuning on a machine that is made up, whose clock moves by what a pass costs there; then the real verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cli_samples import run_cli

from gguf_engine.backend.base import Batch, Rows
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.loader.hub import state_folder
from gguf_engine.params import EngineParams
from gguf_engine.tune import BUSY, TuneReport, tune


@dataclass
class MadeUp:
    """
    A machine and the seconds on its clock.

    Attributes:
        pass_s: Seconds of a pass, from its options, threads and tokens.
        load_s: Seconds of a load.
        opened, closed: Backends so far.
    """

    pass_s: Callable[[EngineParams, int, int], float]
    load_s: float = 0.5
    now: float = 100.0
    opened: int = 0
    closed: int = 0

    def clock(self) -> float:
        return self.now

    def load(self, params: EngineParams) -> Model:
        self.now += self.load_s
        self.opened += 1
        return Model(self, params)

    def tune(self, n_processors: int = 2, params: EngineParams | None = None, **options: Any) -> TuneReport:
        return tune(self.load, params or EngineParams(), n_processors, clock=self.clock, **options)


class Model(FakeBackend):
    """A loaded model of that machine."""

    def __init__(self, machine: MadeUp, params: EngineParams) -> None:
        super().__init__(n_ctx=params.n_ctx or 1024, n_slots=1, n_batch=params.n_batch)
        self.machine, self.params = machine, params
        self.threads = params.n_threads, params.n_threads_batch

    def use_threads(self, n_threads: int, n_threads_batch: int) -> None:
        self.threads = n_threads, n_threads_batch

    def forward(self, batch: Batch) -> Rows:
        n_threads = self.threads[len(batch) > 1]
        assert n_threads is not None
        self.machine.now += self.machine.pass_s(self.params, n_threads, len(batch))
        return np.zeros((1, self.n_vocab), np.float32)

    def close(self) -> None:
        self.machine.closed += 1
        super().close()


def even(_params: EngineParams, n_threads: int, n_tokens: int) -> float:
    """Two cores, twice as fast together; a prompt of 512 takes one second."""
    return 0.016 if n_tokens == 1 else n_tokens / 256 / n_threads


def of(report: TuneReport, **options: Any) -> Any:
    return next(row for row in report.measurements if row.options == options)


def test_more_threads_are_chosen_where_they_are_faster() -> None:
    report = MadeUp(lambda _, n_threads, n_tokens: 0.01 * n_tokens / n_threads).tune(4)
    assert report.choice == {"n_threads": 4, "n_threads_batch": 4}


def test_decode_and_prefill_have_their_own_numbers_and_ties_take_fewer() -> None:
    report = MadeUp(even).tune(2)
    assert report.choice == {"n_threads": 1, "n_threads_batch": 2}
    row = of(report, n_threads=2, n_threads_batch=2)
    assert row.decode_tokens_per_s == pytest.approx(1 / 0.016)
    assert row.prefill_tokens_per_s == pytest.approx(512)


def test_a_candidate_that_is_faster_on_the_whole_is_chosen() -> None:
    def repacked(params: EngineParams, n_threads: int, n_tokens: int) -> float:
        share = (0.85 if n_tokens > 1 else 0.97) if params.repack else 1.0
        return share * even(params, n_threads, n_tokens)

    report = MadeUp(repacked).tune()
    assert report.choice["repack"] is True
    assert of(report, repack=True).load_s == pytest.approx(0.5)


def test_a_candidate_that_gains_here_what_it_loses_there_is_not() -> None:
    def repacked(params: EngineParams, n_threads: int, n_tokens: int) -> float:
        share = (0.8 if n_tokens > 1 else 1.3) if params.repack else 1.0
        return share * even(params, n_threads, n_tokens)

    assert "repack" not in MadeUp(repacked).tune().choice


def test_a_coarser_cache_is_measured_and_never_chosen() -> None:
    def small_cache(params: EngineParams, n_threads: int, n_tokens: int) -> float:
        return even(params, n_threads, n_tokens) * (0.1 if params.kv_cache_type != "f16" else 1.0)

    report = MadeUp(small_cache).tune()
    assert of(report, kv_cache_type="q8_0").decode_tokens_per_s == pytest.approx(10 / 0.016)
    assert "kv_cache_type" not in report.choice


@pytest.mark.parametrize("auto", ["auto", "off"])
def test_attention_is_tried_the_other_way_than_untuned(auto: Any) -> None:
    other = "on" if auto == "off" else "off"

    def quick(params: EngineParams, n_threads: int, n_tokens: int) -> float:
        return even(params, n_threads, n_tokens) * (0.8 if params.flash_attention == other else 1.0)

    report = MadeUp(quick).tune(auto_attention=auto)
    assert report.choice["flash_attention"] == other
    needed = {"flash_attention": "on"} if auto == "off" else {}
    assert of(report, kv_cache_type="q8_0", **needed).decode_tokens_per_s


def test_decode_is_measured_after_the_prompt() -> None:
    depths: list[int] = []

    class Watched(MadeUp):
        def load(self, params: EngineParams) -> Model:
            model = super().load(params)
            forward = model.forward

            def watch(batch: Batch) -> Rows:
                if len(batch) == 1:
                    depths.append(batch.positions[0])
                return forward(batch)

            model.forward = watch  # type: ignore[method-assign]
            return model

    Watched(even).tune()
    # Before the first prompt there is one decode a load, which is not counted.
    assert sum(depth >= 512 for depth in depths) > 0.8 * len(depths)


def test_a_recurrent_model_computes_its_prompt_again_and_none_outgrows_the_context() -> None:
    class Recurrent(MadeUp):
        def load(self, params: EngineParams) -> Model:
            model = super().load(params)
            model._can_truncate = False
            held, forward, truncate = [0], model.forward, model.truncate

            def watch(batch: Batch) -> Rows:
                assert batch.positions[0] == held[0], "not where the slot ends"
                held[0] += len(batch)
                assert held[0] <= model.n_ctx
                return forward(batch)

            def cut(slot: int, length: int) -> bool:
                if length not in (0, held[0]):
                    return False
                held[0] = length
                return truncate(slot, 0) or True

            model.forward, model.truncate = watch, cut  # type: ignore[method-assign]
            return model

    slow = Recurrent(lambda _, n_threads, n_tokens: 0.002 * n_tokens / n_threads)
    assert slow.tune(4, EngineParams(n_ctx=600)).choice["n_threads"] == 4


def test_prompts_that_are_faster_in_parts_have_a_smaller_n_ubatch() -> None:
    def cached(params: EngineParams, n_threads: int, n_tokens: int) -> float:
        return even(params, n_threads, n_tokens) * (1.5 if n_tokens > 128 else 1.0)

    assert MadeUp(cached).tune().choice["n_ubatch"] == 128
    assert "n_ubatch" not in MadeUp(even).tune().choice


def test_a_slow_model_ends_in_time_and_says_what_was_left_out() -> None:
    slow = MadeUp(lambda _, n_threads, n_tokens: 0.4 * n_tokens**0.5 / n_threads, load_s=5.0)
    report = slow.tune(budget_s=40.0)
    assert slow.now - 100.0 < 60.0
    assert report.seconds == slow.now - 100.0
    assert "kv_cache_type=q4_0" in report.left_out
    assert any(text.startswith("n_ubatch=") for text in report.left_out)
    assert {"n_threads", "n_threads_batch"} <= report.choice.keys()


def test_a_machine_that_slows_down_meanwhile_slows_both_sides() -> None:
    machine = MadeUp(even)
    machine.pass_s = lambda params, n, n_tokens: even(params, n, n_tokens) * (1 + (machine.now - 100) / 20)
    assert set(machine.tune().choice) <= {"n_threads", "n_threads_batch"}


def test_one_pass_that_somebody_disturbed_decides_nothing() -> None:
    disturbed = [True]

    def once_slow(params: EngineParams, n_threads: int, n_tokens: int) -> float:
        return even(params, n_threads, n_tokens) * (
            2 if n_tokens == 512 and disturbed and disturbed.pop() else 1
        )

    assert set(MadeUp(once_slow).tune().choice) <= {"n_threads", "n_threads_batch"}


def test_what_the_user_says_is_not_measured() -> None:
    said = EngineParams(
        n_threads=1, n_threads_batch=2, n_ubatch=64, repack=True, flash_attention="on", kv_cache_type="q8_0"
    )
    report = MadeUp(even).tune(params=said)
    assert report.choice == {}
    assert not any(
        {"repack", "flash_attention", "kv_cache_type"} & row.options.keys() for row in report.measurements
    )


def test_every_model_that_was_loaded_is_closed_also_when_one_fails() -> None:
    machine = MadeUp(even)
    machine.tune()
    assert machine.opened == machine.closed > 1

    def refuse(params: EngineParams, n_threads: int, n_tokens: int) -> float:
        if params.repack:
            raise ZeroDivisionError
        return even(params, n_threads, n_tokens)

    failing = MadeUp(refuse)
    with pytest.raises(ZeroDivisionError):
        failing.tune()
    assert failing.opened == failing.closed


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure as little as can be."""
    for name, value in (("DECODE_S", 0.0), ("DECODE_PASSES", 1), ("PASS_S", 0.0), ("ROUNDS", 1)):
        monkeypatch.setattr(f"gguf_engine.tune.{name}", value)


def test_the_verb_keeps_its_choice_and_forgets_it(in_haste: None) -> None:
    kept = state_folder().with_name("tuned")
    code, out, _ = run_cli("tune", "haiku", "--json", "--device", "cpu", "--seconds", "5")
    assert code == 0
    values = json.loads(out)
    assert values["kept"] is True
    assert {"n_threads", "n_threads_batch"} <= values["report"]["choice"].keys()
    (path,) = kept.iterdir()
    assert json.loads(path.read_text())["choice"] == values["report"]["choice"]
    assert path.name.startswith(values["sha256"])
    assert run_cli("tune", "haiku", "--device", "cpu", "--forget").code == 0
    assert list(kept.iterdir()) == []


@pytest.mark.parametrize("typed", ["abc", "4", "nan", "3601"])
def test_a_time_out_of_range_is_refused_with_the_range(typed: str) -> None:
    code, out, err = run_cli("tune", "haiku", "--seconds", typed)
    assert (code, out) == (2, "")
    assert err.startswith("gguf-engine: --seconds is ")
    assert err.endswith("; allowed: a number in 5..3600\n")


def test_the_table_has_a_row_a_measurement_and_the_choice(
    in_haste: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (BUSY + 1, 0.0, 0.0))
    code, out, err = run_cli("tune", "haiku", "--no-keep", "--seconds", "5")
    assert code == 0
    assert "prefill, tokens/s" in out
    assert "n_threads=1, n_threads_batch=1" in out
    assert "choice: n_" in out
    assert "not kept" in out
    assert "the figures are those of a crowded machine" in err
    assert not state_folder().with_name("tuned").exists()
