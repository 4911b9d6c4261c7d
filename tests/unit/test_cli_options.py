"""Options made from the dataclasses: nothing is typed twice, and nothing is lost on the way."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

import pytest
from cli_samples import FakeModel, run_cli

from gguf_engine import EngineParams, OptionError, SamplingParams
from gguf_engine.cli.app import make_command
from gguf_engine.cli.options import (
    HubOptions,
    ModelOptions,
    Without,
    describe,
    expand,
    help_texts,
    params_from_json,
    parse_number,
    parse_typed,
    typed_name,
)

CLASSES = (ModelOptions, HubOptions, EngineParams, SamplingParams)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_has_its_help_in_the_docstring(kind: type[Any]) -> None:
    texts = help_texts(kind)
    assert [name for name in texts if texts[name]] == [field.name for field in fields(kind)]


def test_help_of_several_lines_is_one_paragraph() -> None:
    assert help_texts(SamplingParams)["logprobs"].startswith("None for no log-probabilities, 0 for")
    assert "\n" not in help_texts(SamplingParams)["logprobs"]


@pytest.mark.parametrize("verb", ["run", "chat", "batch"])
def test_every_field_is_an_option_of_every_verb_that_answers(verb: str) -> None:
    names = {parameter.name for parameter in make_command().commands[verb].params}
    wanted = {field.name for kind in CLASSES for field in fields(kind)}
    hidden = {"logprobs", "raw_logprobs"} if verb == "chat" else set()
    assert wanted - names == hidden


def test_no_two_options_of_a_verb_share_a_flag() -> None:
    for verb in make_command().commands.values():
        flags = [flag for parameter in verb.params for flag in (*parameter.opts, *parameter.secondary_opts)]
        assert len(flags) == len(set(flags))


def test_defaults_stand_in_the_help_as_the_class_has_them() -> None:
    texts = {parameter.name: describe(parameter)[1] for parameter in make_command().commands["run"].params}
    assert texts["temperature"].endswith("[default: 1.0]")
    assert texts["max_tokens"].endswith("[default: 100]")
    assert texts["repeat_last_n"].endswith("[default: 64]")
    assert "[default" not in texts["n_ctx"]


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("temperature", "0.5", 0.5),
        ("top_k", "40", 40),
        ("seed", "none", None),
        ("seed", "7", 7),
        ("max_tokens", "None", None),
        ("ignore_eos", "on", True),
        ("ignore_eos", False, False),
        ("order", "llama.cpp", "llama.cpp"),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", "none", ("none",)),
        ("logit_bias", ["5=1.5", "6=-inf"], {5: 1.5, 6: float("-inf")}),
        ("logit_bias", "5=1", {5: 1.0}),
    ],
)
def test_what_is_typed_becomes_the_type_of_the_field(name: str, typed: Any, value: Any) -> None:
    assert parse_typed(SamplingParams, name, typed) == value
    SamplingParams(**{name: value})


def test_a_path_may_be_called_none() -> None:
    assert parse_typed(ModelOptions, "tokenizer", "none") == "none"


@pytest.mark.parametrize(
    ("name", "typed"),
    [("temperature", "warm"), ("top_k", "1.5"), ("seed", "x"), ("ignore_eos", "2"), ("order", "best")],
)
def test_what_cannot_be_converted_is_refused_by_the_class(name: str, typed: str) -> None:
    value = parse_typed(SamplingParams, name, typed)
    with pytest.raises(OptionError) as caught:
        SamplingParams(**{name: value})
    assert (caught.value.option, caught.value.value) == (name, typed)


@pytest.mark.parametrize("typed", [["5"], ["5=1", "5=2"]])
def test_a_bias_without_a_value_or_given_twice_is_refused(typed: list[str]) -> None:
    with pytest.raises(OptionError, match="ID=VALUE"):
        parse_typed(SamplingParams, "logit_bias", typed)


def test_a_verb_gets_objects_and_leaves_out_what_was_not_typed() -> None:
    seen: list[Any] = []

    def verb(*, engine: EngineParams, sampling: Annotated[SamplingParams, Without(("stop",))]) -> None:
        seen.append((engine, sampling))

    typed = {field.name: None for kind in (EngineParams, SamplingParams) for field in fields(kind)}
    del typed["stop"]
    expand(verb)(**{**typed, "n_ctx": "64", "use_mmap": False, "top_k": "3", "ignore_eos": True})
    assert seen == [(EngineParams(n_ctx=64, use_mmap=False), SamplingParams(top_k=3, ignore_eos=True))]


def test_json_options_have_ids_as_text_and_keep_the_rest_of_the_base() -> None:
    base = SamplingParams(top_k=3, seed=1)
    read = params_from_json({"logit_bias": {"5": -1.5}, "seed": 2, "stop": ["x"]}, base)
    assert read == SamplingParams(top_k=3, seed=2, logit_bias={5: -1.5}, stop=("x",))


def test_json_options_of_other_names_are_refused() -> None:
    with pytest.raises(OptionError, match="'temprature'"):
        params_from_json({"temprature": 1}, SamplingParams())


@pytest.mark.parametrize(
    ("verb", "name", "typed"),
    [
        ("run", "n_ctx", "--n-ctx"),
        ("run", "max_tokens", "--max-tokens"),
        ("run", "use_mmap", "--mmap"),
        ("run", "model", "--model"),
        ("bundle", "model", "NAME"),
        ("batch", "output", "--output"),
        ("batch", "column", "--column"),
        ("bundle", "n_ctx", "n_ctx"),
        ("run", "line", "line"),
    ],
)
def test_a_value_is_called_what_the_verb_has_it_typed_as(verb: str, name: str, typed: str) -> None:
    assert typed_name(name, make_command().commands[verb].params) == typed


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("run", "-n", "-1", "x"), "--max-tokens is -1; allowed: an integer >= 0, or none"),
        (("bundle", "haiku", "-o", "x.tar"), "NAME is 'haiku'; allowed: a model of a hub"),
    ],
)
def test_an_error_says_it_as_it_was_typed(args: tuple[str, ...], sentence: str) -> None:
    code, _, err = run_cli(*args)
    assert code == 2
    assert err.startswith(f"gguf-engine: {sentence}")


def test_a_number_that_was_typed() -> None:
    assert parse_number("--seconds", "7.5", float, 5, 3600) == 7.5
    assert parse_number("--trials", "2", int, 2, 1000) == 2


@pytest.mark.parametrize(
    ("typed", "says"),
    [("abc", "--x is 'abc'"), ("nan", "--x is nan"), ("4", "--x is 4.0"), ("3601", "--x is 3601.0")],
)
def test_a_number_out_of_range_or_none_is_refused_with_the_range(typed: str, says: str) -> None:
    with pytest.raises(OptionError, match=f"^{says}; allowed: a number in 5..3600$"):
        parse_number("--x", typed, float, 5, 3600)


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ([], {"repack": None, "lora": (), "devices": (), "tuned": True, "adapt_threads": "exact"}),
        (["--repack"], {"repack": True}),
        (["--no-repack", "--no-tuned"], {"repack": False, "tuned": False}),
        (["--lora", "a.gguf", "--lora", "b.gguf=0.5"], {"lora": ("a.gguf", "b.gguf=0.5")}),
        (
            ["--devices", "cuda:0", "--devices", "cuda:1", "--split-mode", "row"],
            {"devices": ("cuda:0", "cuda:1"), "split_mode": "row"},
        ),
    ],
)
def test_what_may_be_left_open_or_said_several_times_reaches_load(
    typed: list[str], asked: dict[str, Any]
) -> None:
    model = FakeModel()
    assert run_cli("run", "x", *typed, model=model).code == 0
    assert {name: model.asked[name] for name in asked} == asked
