"""Every option has a range, and every refusal says the option, the value and what is allowed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_engine import LLM
from gguf_engine.errors import GGUFEngineError, OptionError
from gguf_engine.params import EngineParams, SamplingParams, build_params, keywords, split_adapter
from gguf_engine.prompts import _BESIDE

BAD_SAMPLING: list[tuple[str, Any]] = [
    *(("temperature", value) for value in (-0.1, math.inf, math.nan, "warm", True, None)),
    *(("top_k", value) for value in (-1, 1.5, True, 2**31)),
    *(("top_p", value) for value in (0, 0.0, -0.5, 1.01, math.nan)),
    *(("min_p", value) for value in (-0.1, 1.0, math.nan)),
    *(("repeat_penalty", value) for value in (0, -1, math.inf, math.nan)),
    *(("repeat_last_n", value) for value in (-2, 0.5)),
    *(("presence_penalty", value) for value in (-101, 101, math.nan)),
    *(("frequency_penalty", value) for value in (-101, 101, math.inf)),
    *(("seed", value) for value in (-1, 2**63, 1.0)),
    *(("max_tokens", value) for value in (-1, 1.5)),
    *(("stop", value) for value in ("", ["a", ""], [1], "x" * 4097, ["x"] * 65)),
    *(("logprobs", value) for value in (-1, 65)),
    *(("logit_bias", value) for value in ({-1: 1.0}, {1: math.nan}, {1: math.inf}, {"a": 1.0}, [1])),
    ("order", "candle"),
    ("ignore_eos", 1),
]
BAD_ENGINE: list[tuple[str, Any]] = [
    *(("n_ctx", value) for value in (0, 7, -1, 1.5)),
    *(("n_slots", value) for value in (0, 257)),
    *(("n_batch", value) for value in (31, 8193)),
    *(("n_threads", value) for value in (0, 513)),
    ("kv_cache_type", "q3"),
    *(("draft", value) for value in ("", 3)),
    *(("n_draft", value) for value in (0, 128, None)),
    ("device", ""),
    ("device", 3),
    ("use_mmap", "yes"),
    ("flash_attention", True),
    *(("n_ubatch", value) for value in (31, 513)),
    *(("devices", value) for value in ([""], [3], 3, ["cuda:0", "cuda:0"], ["x"] * 65)),
    *(("split_mode", value) for value in ("row", "columns")),  # a row split of one device
    *(("lora", value) for value in ([""], [3], 3, ["x=y"], ["=1"], ["x=nan"], ["x=101"])),
    ("repack", "yes"),
    *(("adapt_threads", value) for value in (True, "sometimes")),
    ("tuned", None),
    ("n_draft", 5),  # without a draft there is nothing it could mean
    ("prefix_cache_mb", 10),
]


@pytest.mark.parametrize(("name", "value"), BAD_SAMPLING)
def test_a_sampling_option_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        build_params(SamplingParams, {name: value})
    assert caught.value.option == name
    assert caught.value.allowed in str(caught.value)
    assert "allowed: " in str(caught.value)


@pytest.mark.parametrize(("name", "value"), BAD_ENGINE)
def test_an_engine_option_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        build_params(EngineParams, {name: value})
    assert caught.value.option == name


def test_an_unknown_option_is_refused_with_what_may_be_meant() -> None:
    with pytest.raises(OptionError, match=r"allowed: chat, temperature.*did you mean 'temperature'\?"):
        build_params(SamplingParams, {"temprature": 1}, beside=["chat"])
    with pytest.raises(OptionError, match=r"did you mean 'chat'\?"):
        build_params(SamplingParams, {"chatt": True}, beside=["chat"])
    with pytest.raises(OptionError, match="remove zzz=1"):
        build_params(SamplingParams, {"zzz": 1})


def test_what_requests_take_beside_their_options_is_what_stream_takes() -> None:
    for method in (LLM.stream, LLM.streams, LLM.astream, LLM.astreams):
        assert tuple(keywords(method)) == _BESIDE


def test_raw_log_probabilities_without_log_probabilities_are_refused() -> None:
    with pytest.raises(OptionError, match="logprobs"):
        SamplingParams(raw_logprobs=True)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(OptionError) as caught:
        SamplingParams(stop="x" * 5000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'temprature'.*temperature"):
        build_params(SamplingParams, {"temprature": 1.0})


def test_more_slots_than_a_batch_has_tokens_are_refused() -> None:
    with pytest.raises(OptionError, match="n_batch"):
        EngineParams(n_slots=64, n_batch=32)


def test_a_device_beside_devices_is_refused() -> None:
    with pytest.raises(OptionError, match="beside devices"):
        EngineParams(device="cpu", devices=("cuda:0",))
    EngineParams(device="cuda:0", devices=("cuda:0", "cuda:1"), split_mode="row")


def test_one_name_or_path_is_a_list_of_one() -> None:
    params = EngineParams(devices="cuda:0", lora=Path("a.gguf"))  # type: ignore[arg-type]
    assert (params.devices, params.lora) == (("cuda:0",), ("a.gguf",))


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("a.gguf", "a.gguf", 1.0),
        ("a.gguf=0.5", "a.gguf", 0.5),
        ("a.gguf=-1e-1", "a.gguf", -0.1),
        ("rank=8/a.gguf", "rank=8/a.gguf", 1.0),
        ("rank=8/a.gguf=2", "rank=8/a.gguf", 2.0),
    ],
)
def test_an_adapter_is_a_path_and_a_scale(text: str, path: str, scale: float) -> None:
    assert split_adapter(text) == (path, scale)


def test_the_edges_of_every_range_are_allowed() -> None:
    SamplingParams(temperature=0, top_p=1, top_k=0, min_p=0, repeat_last_n=-1, seed=2**63 - 1)
    SamplingParams(max_tokens=0, logprobs=64, logit_bias={3: -math.inf}, stop=("x" * 4096,))
    EngineParams(n_ctx=8, n_slots=1, n_batch=32)


def test_numpy_scalars_are_numbers() -> None:
    params = build_params(SamplingParams, {"temperature": np.float32(0.5), "top_k": np.int64(5)})
    assert (params.temperature, params.top_k) == (0.5, 5)
    assert type(params.top_k) is int


def test_options_win_over_the_params_they_come_with() -> None:
    base = SamplingParams(temperature=0.3, top_k=5)
    mixed = build_params(SamplingParams, {"top_k": 7}, base)
    assert (mixed.temperature, mixed.top_k) == (0.3, 7)


def test_one_stop_string_may_come_without_a_list() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]


def test_a_fresh_seed_differs_from_the_last_and_a_given_one_stays() -> None:
    assert SamplingParams().chosen_seed() != SamplingParams().chosen_seed()
    assert SamplingParams(seed=5).chosen_seed() == 5


def test_the_defaults_are_those_of_the_reference_program() -> None:
    params = SamplingParams()
    assert (params.temperature, params.max_tokens) == (1.0, 100)
    assert (params.repeat_penalty, params.repeat_last_n) == (1.2, 64)


def test_an_option_error_is_also_a_value_error() -> None:
    assert issubclass(OptionError, ValueError)
    assert issubclass(OptionError, GGUFEngineError)
