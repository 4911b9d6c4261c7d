"""What was tuned: kept per model and machine, used where the user gave no value, never trusted blindly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_samples import thread_of

from gguf_engine import LLM
from gguf_engine.loader.hub import state_folder
from gguf_engine.loader.resolve import resolve_model
from gguf_engine.loader.verdicts import Verdicts
from gguf_engine.params import EngineParams
from gguf_engine.tuned import Machine, TunedChoices, apply, start_threads, this_machine, tuned_options

SHA = "0" * 64
HERE = Machine(cpu="a processor", n_processors=8, llama_cpp="0.5.0", device="cpu")
CHOICE = {"n_threads": 3, "n_threads_batch": 6, "n_ubatch": 128, "repack": True, "flash_attention": "off"}


@pytest.fixture
def haiku(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the bundled model's file; it counts as settled even if it was just installed."""
    monkeypatch.setattr("gguf_engine.loader.verdicts._SETTLED_NS", -1)
    return resolve_model("haiku").weights


@pytest.fixture
def choices(tmp_path: Path) -> TunedChoices:
    return TunedChoices(tmp_path / "tuned")


def test_a_choice_comes_back_on_the_same_machine_alone(choices: TunedChoices) -> None:
    assert choices.write(SHA, HERE, CHOICE, seconds=3.0)
    assert choices.read(SHA, HERE) == CHOICE
    assert choices.read("1" * 64, HERE) == {}
    for other in ({"cpu": "another"}, {"n_processors": 4}, {"llama_cpp": "0.6.0"}, {"device": "cuda:0"}):
        assert choices.read(SHA, replace(HERE, **other)) == {}


def test_a_record_of_another_machine_under_this_name_is_not_used(choices: TunedChoices) -> None:
    choices.write(SHA, HERE, CHOICE)
    (path,) = choices.folder.iterdir()
    choices.write(SHA, replace(HERE, cpu="another"), CHOICE)
    (other,) = set(choices.folder.iterdir()) - {path}
    other.replace(path)
    assert choices.read(SHA, HERE) == {}


def test_a_later_choice_replaces_an_earlier_one_and_can_be_forgotten(choices: TunedChoices) -> None:
    choices.write(SHA, HERE, CHOICE)
    choices.write(SHA, HERE, {"n_threads": 1})
    assert choices.read(SHA, HERE) == {"n_threads": 1}
    choices.forget(SHA, HERE)
    choices.forget(SHA, HERE)
    assert choices.read(SHA, HERE) == {}
    assert list(choices.folder.iterdir()) == []


@pytest.mark.parametrize(
    "choice",
    [{"n_threads": 0}, {"n_threads": "3"}, {"n_ctx": 64}, {"kv_cache_type": "q4_0"}, {"x": 1}, [], None],
)
def test_a_record_that_somebody_changed_is_not_used(choices: TunedChoices, choice: Any) -> None:
    choices.write(SHA, HERE, CHOICE)
    (path,) = choices.folder.iterdir()
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "choice": choice}))
    assert choices.read(SHA, HERE) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": 3}', "[" * 100_000])
def test_a_record_that_is_none_is_not_used(choices: TunedChoices, text: str) -> None:
    choices.write(SHA, HERE, CHOICE)
    (path,) = choices.folder.iterdir()
    path.write_text(text)
    assert choices.read(SHA, HERE) == {}


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not TunedChoices(tmp_path / "file" / "tuned").write(SHA, HERE, CHOICE)


def test_what_the_user_leaves_open_is_filled() -> None:
    params, used = apply(CHOICE, EngineParams(adapt_threads="never"))
    assert used == CHOICE
    assert {name: getattr(params, name) for name in CHOICE} == CHOICE


def test_what_the_user_says_stays() -> None:
    said = EngineParams(
        adapt_threads="never",
        n_threads=1,
        n_threads_batch=1,
        n_ubatch=64,
        repack=False,
        flash_attention="on",
    )
    assert apply(CHOICE, said) == (said, {})


def test_a_choice_that_does_not_fit_the_other_options_is_left_out() -> None:
    params, used = apply(CHOICE, EngineParams(n_batch=64, kv_cache_type="q8_0"))
    assert (params.n_ubatch, params.flash_attention) == (None, "auto")
    assert set(used) == {"n_threads", "n_threads_batch", "repack"}
    # Scores for each of so many cells would be gigabytes.
    params, used = apply({"flash_attention": "off"}, EngineParams(n_ctx=2**17))
    assert (params.flash_attention, used) == ("auto", {})


def test_threads_that_adapt_begin_with_the_tuned_number() -> None:
    params, used = apply(CHOICE, EngineParams(adapt_threads="always"))
    assert (params.n_threads, params.n_threads_batch) == (None, None)
    assert start_threads(used, params) == (3, 6)
    exact, used = apply(CHOICE, EngineParams())
    assert (exact.n_threads, exact.n_threads_batch) == (3, None)
    assert start_threads(used, exact) == (3, 6)
    never = EngineParams(adapt_threads="never")
    assert start_threads(apply(CHOICE, never)[1], never) is None
    assert start_threads({}, params) is None


def keep_for(model: Path, choice: dict[str, Any]) -> None:
    LLM.load(model, n_ctx=64, n_threads=1).close()  # its sha256 is remembered from now on
    folder = state_folder()
    sha256 = Verdicts.open(folder).identify([model])
    assert sha256 is not None
    assert TunedChoices.beside(folder).write(sha256, this_machine("cpu"), choice)


def test_load_uses_what_was_tuned_and_says_so(haiku: Path) -> None:
    keep_for(haiku, {"n_threads": 1, "n_threads_batch": 1, "repack": True})
    with LLM.load(haiku, n_ctx=64) as llm:
        assert llm.placement is not None
        assert llm.placement.reason.endswith("; tuned: n_threads=1, n_threads_batch=1, repack=True")
        assert any("REPACK" in name for name in llm.placement.weight_bytes)
        governor = thread_of(llm).call(lambda engine: engine.backend)._governor  # type: ignore[attr-defined]
        assert governor.n_threads(1) == 1
    with LLM.load(haiku, n_ctx=64, tuned=False) as llm:
        assert llm.placement is not None
        assert "tuned" not in llm.placement.reason
        assert not any("REPACK" in name for name in llm.placement.weight_bytes)


def test_what_was_tuned_crosses_to_another_process(haiku: Path) -> None:
    keep_for(haiku, {"repack": True})
    with LLM.load(haiku, n_ctx=64, n_threads=1, isolation="process") as llm:
        assert llm.placement is not None
        assert llm.placement.reason.endswith("; tuned: repack=True")


def test_a_model_of_unknown_bytes_has_nothing_tuned(haiku: Path) -> None:
    with LLM.load(haiku, n_ctx=64, n_threads=1, preflight=False) as llm:
        assert llm.placement is not None
        assert "tuned" not in llm.placement.reason


def test_a_missing_part_is_the_loaders_to_say(tmp_path: Path) -> None:
    params = EngineParams()
    assert tuned_options([tmp_path / "missing.gguf"], params, "cpu") == (params, {})


def test_this_machine_is_described() -> None:
    here = this_machine("cpu")
    assert here.cpu
    assert here.n_processors >= 1
    assert "CPU" in here.llama_cpp
