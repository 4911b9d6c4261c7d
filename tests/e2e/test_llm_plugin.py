"""The `llm` command with this engine behind it: the real command, the haiku model, no network."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import llm
import pytest
from engine_samples import thread_of
from fakehub import FakeHub
from llm.parts import Message as Turn
from llm.parts import TextPart, ToolCallPart
from pydantic import ValidationError

from gguf_engine import LLM, Message, OptionError, llm_plugin
from gguf_engine.llm_plugin import AsyncGGUFModel, GGUFModel
from gguf_engine.loader.catalog import ModelSpec
from gguf_engine.loader.resolve import resolve_model

pytestmark = pytest.mark.e2e

MOSS = "Write a haiku about moss"
WEIGHTS = Path(llm_plugin.__file__).parent / "data" / "haiku-q4_k_m.gguf"


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give `llm` a folder of its own and no network, and close what a test loaded."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded: dict[str, LLM] = {}
    monkeypatch.setattr(llm_plugin, "_loaded", loaded)
    yield tmp_path
    for model in loaded.values():
        model.close()


def command(*args: str) -> subprocess.CompletedProcess[str]:
    program = [str(Path(sys.executable).with_name("llm")), *args]
    return subprocess.run(program, capture_output=True, text=True, timeout=60)


def registered() -> dict[str, str | None]:
    places: dict[str, str | None] = {}

    def register(model: GGUFModel, _: AsyncGGUFModel) -> None:
        places[model.model_id] = model._place

    llm_plugin.register_models(register)
    return places


def listed() -> list[str]:
    lines: list[str] = []
    llm_plugin.register_models(lambda model, _: lines.append(str(model)))
    return lines


def test_the_command_answers_goes_on_and_counts_tokens() -> None:
    first = command("-m", "gguf-engine/haiku", "-o", "seed", "7", "-s", "You are a poet.", MOSS)
    assert (first.returncode, first.stderr) == (0, "")
    second = command("-c", "And one about bread", "-o", "seed", "7", "--usage")
    system: Message = {"role": "system", "content": "You are a poet."}
    said: Message = {"role": "assistant", "content": first.stdout.removesuffix("\n")}
    with LLM.load("haiku") as model:
        turn: list[Message] = [system, {"role": "user", "content": MOSS}]
        assert first.stdout == model.chat(turn, seed=7, max_tokens=None).text + "\n"
        turn += [said, {"role": "user", "content": "And one about bread"}]
        answer = model.chat(turn, seed=7, max_tokens=None)
    assert second.stdout == answer.text + "\n"
    usage = f"Token usage: {answer.usage.n_prompt} input, {answer.usage.n_completion} output"
    assert second.stderr.strip() == usage


def test_a_path_is_a_model_and_is_found_again_from_elsewhere(
    user_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(WEIGHTS.parent)
    name = f"gguf-engine/./{WEIGHTS.name}"
    assert command("-m", name, MOSS).returncode == 0
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    again = command("-c", "And one about bread")
    assert (again.returncode, again.stderr) == (0, "")
    (user_folder / "gguf-engine.json").write_text("[1]")
    listed = command("models", "list")
    assert "gguf-engine.json is no list of models: [1]; remove it" in listed.stderr
    assert "gguf-engine/haiku" in listed.stdout


def test_the_command_refuses_in_sentences() -> None:
    wrong = command("-m", "gguf-engine/haiku", "-o", "min_p", "abc", MOSS)
    assert wrong.returncode == 1
    assert "min_p is 'abc'; allowed: a number in [0, 1) (0 is off)" in wrong.stderr
    missing = command("-m", "gguf-engine/./none.gguf", MOSS)
    assert missing.returncode == 1
    assert "no such file" in missing.stderr
    assert "Traceback" not in missing.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("temprature", "0.7", "'temprature' is no option; did you mean 'temperature'?"),
        ("grammar", "x", "'grammar' is no option; allowed: temperature, top_k, "),
        ("logprobs", "2", "'logprobs' is no option here: llm shows text alone; remove it"),
        ("top_p", "2", "top_p is 2.0; allowed: a number in (0, 1] (1 is off)"),
        (
            "stop",
            '["a", ""]',
            "stop is ''; allowed: non-empty strings, at most 64 of at most 4096 characters",
        ),
        ("logit_bias", "5=1", "logit_bias is '5=1'; allowed: a JSON object of token ids and numbers: "),
        ("logit_bias", "[" * 10**5, "allowed: a JSON object of token ids and numbers: "),
        ("logit_bias", '{"x": 1}', "logit_bias is 'x'; allowed: a mapping of token ids (>= 0) to finite"),
        ("logit_bias", '{"5": NaN}', "logit_bias is nan; allowed: a mapping of token ids (>= 0) to finite"),
        ("logit_bias", '{"5": 1, "05": 2}', "allowed: each token id once"),
    ],
)
def test_an_option_is_refused_in_one_sentence(name: str, value: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        GGUFModel.Options(**{name: value})
    (error,) = caught.value.errors()
    assert error["loc"] == (name,)
    assert said in error["msg"]


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("stop", "a", ("a",)),
        ("stop", '["a", "b"]', ("a", "b")),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", '["a", 5]', ('["a", 5]',)),
        ("stop", "5", ("5",)),
        ("stop", "[" * 4000, ("[" * 4000,)),
        ("logit_bias", '{"5": 1, "7": -Infinity, "9": "-inf"}', {5: 1, 7: -math.inf, 9: -math.inf}),
        ("logit_bias", {5: 1}, {5: 1}),
        ("logit_bias", {"5": 1}, {5: 1}),
        ("logit_bias", "{}", {}),
    ],
)
def test_options_of_several_values_are_texts_or_json(name: str, given: object, read: object) -> None:
    options = GGUFModel.Options(**{name: given})
    assert getattr(options, name) == read
    stored = json.loads(json.dumps(options.model_dump(mode="json")))  # as a template of `llm` does
    if -math.inf not in (read.values() if isinstance(read, dict) else ()):
        assert getattr(GGUFModel.Options(**stored), name) == read


def test_the_command_takes_two_stops_and_a_bias_and_names_what_it_does_not_know() -> None:
    with LLM.load("haiku") as model:
        plain = model.chat(MOSS, seed=7, max_tokens=None)
        first = model.encode(plain.text)[0]
        asked = model.chat(MOSS, seed=7, max_tokens=None, stop=["~", "e"], logit_bias={first: -math.inf})
    assert asked.finish_reason == "stop"
    options = ["-o", "seed", "7", "-o", "stop", '["~", "e"]', "-o", "logit_bias", f'{{"{first}": "-inf"}}']
    done = command("-m", "gguf-engine/haiku", *options, MOSS)
    assert (done.returncode, done.stdout) == (0, asked.text + "\n")
    wrong = command("-m", "gguf-engine/haiku", "-o", "temprature", "0.7", MOSS)
    assert (wrong.returncode, "did you mean 'temperature'?" in wrong.stderr) == (1, True)


@pytest.mark.parametrize("system", [[], ["-s", "You are a poet."]])
def test_an_empty_prompt_is_a_turn_as_it_is_for_run(system: list[str]) -> None:
    done = command("-m", "gguf-engine/haiku", "-o", "seed", "7", *system, "")
    messages: list[Message] = [{"role": "system", "content": text} for text in system[1:]]
    with LLM.load("haiku") as model:
        asked = model.chat([*messages, {"role": "user", "content": ""}], seed=7, max_tokens=None)
    assert (done.returncode, done.stdout) == (0, asked.text + "\n")


def test_no_prompt_at_all_is_refused() -> None:
    with pytest.raises(OptionError, match="prompt is None; allowed: a text"):
        GGUFModel("haiku", None).prompt().text()


def test_a_catalog_name_says_in_the_list_that_it_has_to_be_downloaded(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert listed() == [
        "GGUFModel: gguf-engine/haiku",
        "GGUFModel: gguf-engine/phi3-mini (not downloaded yet)",
    ]
    spec = ModelSpec(name="phi3-mini", repo="org/repo", file="m.gguf")
    monkeypatch.setattr(llm_plugin, "CATALOG", {"phi3-mini": spec})
    monkeypatch.delenv("HF_HUB_OFFLINE")
    resolve_model("org/repo:m.gguf")
    assert listed() == ["GGUFModel: gguf-engine/phi3-mini", "GGUFModel: gguf-engine/org/repo:m.gguf"]


def test_what_is_cached_is_listed_without_a_connection(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("org/repo:m.gguf", "org/repo:m.gguf@main"):
        resolve_model(name)
    n_asked = len(hub.requests)
    assert [name for name in registered() if "org/" in name] == ["gguf-engine/org/repo:m.gguf"]
    assert len(hub.requests) == n_asked
    monkeypatch.setenv("HF_ENDPOINT", "no address")
    assert [*registered()] == ["gguf-engine/haiku", "gguf-engine/phi3-mini"]


@pytest.mark.parametrize("args", [["-m", "gguf-engine/a/b:c.gguf"], ["--model=gguf-engine/a/b:c.gguf"]])
def test_a_name_on_the_command_line_is_a_model(monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["llm", "what is gguf-engine/x?", *args])
    assert [*registered()][2:] == ["gguf-engine/a/b:c.gguf"]


def test_pieces_are_streamed_and_leaving_early_ends_the_request() -> None:
    response = GGUFModel("haiku", None).prompt(MOSS, ignore_eos=True, seed=7)
    pieces = iter(response)
    assert next(pieces)
    (model,) = llm_plugin._loaded.values()
    assert model.stats().n_running == 1
    pieces.close()  # type: ignore[attr-defined]
    del pieces, response
    thread_of(model).call(lambda engine: None)
    assert model.stats().n_running == 0


def test_both_faces_give_the_same_text_load_once_and_say_how_it_was_made() -> None:
    system = "You are a poet of few words, and you never say more than is needed. " * 3
    plain = GGUFModel("haiku", None).prompt(MOSS, system=system, seed=7, stop="\n")
    text = plain.text()

    async def ask() -> tuple[str, llm.AsyncResponse]:
        response = AsyncGGUFModel("haiku", None).prompt(MOSS, system=system, seed=7, stop="\n")
        return await response.text(), response

    again, response = asyncio.run(ask())
    assert text == again
    assert len(llm_plugin._loaded) == 1
    assert plain.input_tokens == response.input_tokens
    assert plain.token_details is None
    assert response.token_details is not None
    assert 0 < response.token_details["cached"] < response.input_tokens
    assert plain.response_json is not None
    assert (plain.response_json["finish_reason"], plain.response_json["seed"]) == ("stop", 7)
    json.dumps(plain.response_json)


def test_what_is_no_text_is_refused() -> None:
    call = Turn(role="assistant", parts=[ToolCallPart(name="f", arguments={}, tool_call_id="1")])
    asked = Turn(role="user", parts=[TextPart(text="x")])
    response = GGUFModel("haiku", None).prompt(messages=[call, asked])
    with pytest.raises(OptionError, match="assistant: ToolCallPart"):
        response.text()
    assert not llm_plugin._loaded
