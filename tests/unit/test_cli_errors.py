"""The table of exit codes: every error has one, and says what happened in one sentence."""

from __future__ import annotations

import pytest
import typer
from cli_samples import run_cli

from gguf_engine import errors
from gguf_engine.cli.errors import EXIT_CODES, MEANINGS, report, sentence
from gguf_engine.errors import (
    BackendError,
    DeviceError,
    HubError,
    ModelFileError,
    ModelNotFoundError,
    OptionError,
    PromptTooLongError,
    TemplateError,
    TokenizerError,
)

SAMPLES = [
    (OptionError("top_k", -1, ">= 0"), 2),
    (ModelNotFoundError("x", "no such file"), 3),
    (ModelFileError("x.gguf", "magic", "", "an HTML page"), 3),
    (TokenizerError("broken"), 3),
    (TemplateError("missing"), 3),
    (HubError("offline", "no network"), 4),
    (DeviceError("cuda", "not there"), 5),
    (PromptTooLongError(100, 64, 4096), 6),
    (BackendError(-3, "llama.cpp failed"), 1),
    (OSError(28, "No space left on device"), 1),
    (ZeroDivisionError("our bug"), 1),
]


@pytest.mark.parametrize(("error", "code"), SAMPLES, ids=lambda value: type(value).__name__)
def test_an_error_is_one_line_and_its_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gguf-engine: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141)])
def test_being_stopped_is_quiet(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    assert capsys.readouterr() == ("", "")


def test_an_exit_of_typer_keeps_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(typer.Exit(130)) == 130
    assert capsys.readouterr() == ("", "")


def test_every_class_of_the_package_is_in_the_table() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, errors.GGUFEngineError):
            assert any(issubclass(kind, row) for row, _ in EXIT_CODES)


def test_every_code_has_a_meaning() -> None:
    assert {code for _, code in EXIT_CODES} | {0} == set(MEANINGS)


def test_no_value_is_called_as_it_is_typed() -> None:
    error = OptionError("--max-tokens", -1, "an integer >= 0, or None")
    assert sentence(error) == "--max-tokens is -1; allowed: an integer >= 0, or none"


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (("run", "--temprature", "1", "x"), "--temperature"),
        (("run", "--max-token", "1", "x"), "--max-tokens"),
        (("batch", "--inptu", "x"), "--input"),
    ],
)
def test_a_slip_in_an_option_is_told(args: tuple[str, ...], meant: str) -> None:
    code, _, err = run_cli(*args)
    assert code == 2
    assert f"unknown option {args[1]}; did you mean {meant}?" in err


@pytest.mark.parametrize(
    "args", [("serve", "--temperature", "1"), ("serve", "--top-k", "3"), ("run", "--temp", "1", "x")]
)
def test_an_option_that_is_like_none_gets_no_suggestion(args: tuple[str, ...]) -> None:
    code, _, err = run_cli(*args)
    assert (code, "did you mean" in err) == (2, False)
    assert f"unknown option {args[1]}; " in err


def test_a_long_prompt_names_the_option_that_helps() -> None:
    text = sentence(PromptTooLongError(100, 64, 4096))
    assert text == "prompt is 100 tokens, the context holds 64; shorten it or load with --n-ctx 128"


def test_a_file_that_cannot_be_opened_is_named() -> None:
    assert sentence(PermissionError(13, "Permission denied", "a.json")) == "a.json: Permission denied"


def test_a_bug_asks_to_be_reported_and_shows_its_place_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report(ZeroDivisionError("x")) == 1
    assert "please report it" in capsys.readouterr().err
    monkeypatch.setenv("GGUF_ENGINE_DEBUG", "1")
    report(ZeroDivisionError("x"))
    assert "ZeroDivisionError: x\n" in capsys.readouterr().err
