"""The `llm` command with this engine behind it: the real command, the haiku model, no network."""

from __future__ import annotations

import asyncio
import json
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

from gguf_engine import LLM, Message, OptionError, llm_plugin
from gguf_engine.llm_plugin import AsyncGGUFModel, GGUFModel
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
