"""Errors are sentences made of facts, and survive pickling."""

from __future__ import annotations

import pickle

import pytest

from gguf_engine import errors

SAMPLES = [
    errors.OptionError("top_p", 2, "(0, 1]", "pass 1 for off"),
    errors.NotBuiltError(),
    errors.ModelNotFoundError("phi9", "no such name", "try phi3-mini"),
    errors.ModelFileError("a.gguf", "magic", "offset 0", "the file begins with b'<htm'", "fetch it again"),
    errors.ModelLoadError("a.gguf", "out of memory", "last words"),
    errors.HubError("network", "the hub cannot be reached", "try later"),
    errors.TokenizerError("broken"),
    errors.TemplateError("no template"),
    errors.DeviceError("cuda", "not here", "install it"),
    errors.PromptTooLongError(9214, 8192, 131072),
    errors.SamplingError("NaN"),
    errors.BackendError(-3, "llama.cpp failed"),
    errors.EmbeddingError("it scores texts"),
    errors.StateError("truncated", "a.state", "it has 5 of 90 bytes", "start anew"),
    errors.SessionBusyError("busy"),
    errors.EngineCrashed(4711, "ended with SIGSEGV", "last words"),
    errors.EngineSilentError(5.0),
    errors.EngineClosedError("closed"),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_with_its_facts(error: errors.GGUFEngineError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_every_error_has_the_one_root() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(c, errors.GGUFEngineError) for c in classes if issubclass(c, BaseException))
    assert len(SAMPLES) == len([c for c in classes if issubclass(c, Exception)]) - 2  # root and ModelError


def test_a_prompt_too_long_says_both_numbers_and_what_would_hold_it() -> None:
    assert str(errors.PromptTooLongError(9214, 8192, 131072)) == (
        "prompt is 9214 tokens, the context holds 8192; shorten it or load with n_ctx=16384"
    )


def test_a_prompt_longer_than_the_model_was_trained_for_has_to_be_shortened() -> None:
    assert "trained for 4096" in str(errors.PromptTooLongError(5000, 4096, 4096))
