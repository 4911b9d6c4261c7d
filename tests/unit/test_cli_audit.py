"""`inspect --tokenizer`: the table, the JSON, the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_samples import run_cli

NAMES = [
    "ids",
    "pieces",
    "control tokens",
    "BOS",
    "text begins with BOS",
    "end of an answer",
    "sample texts",
]


@pytest.fixture
def wrong(tiny_model: Path, tmp_path: Path) -> Path:
    """A tokenizer.json in which two pieces of the model's changed places."""
    data = json.loads(tiny_model.with_name("tokenizer.json").read_text("utf-8"))
    vocab = data["model"]["vocab"]
    (first, one), (second, other) = list(vocab.items())[300:302]
    vocab[first], vocab[second] = other, one
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_the_file_beside_the_model_is_audited(tiny_model: Path) -> None:
    for args in ((str(tiny_model), "--tokenizer"), ("--tokenizer", str(tiny_model))):
        code, out, err = run_cli("inspect", *args)
        assert (code, err) == (0, "")
        assert all(any(line.startswith(name + " ") for line in out.splitlines()) for name in NAMES)
        assert "DIFFERS" not in out


def test_json_holds_every_check(tiny_model: Path) -> None:
    code, out, _ = run_cli("inspect", str(tiny_model), "--tokenizer", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["same"] is True
    assert [check["name"] for check in told["checks"]] == NAMES
    assert set(told["checks"][0]) == {"name", "gguf", "tokenizer_json", "verdict", "detail"}


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_difference_is_printed_and_is_three(tiny_model: Path, wrong: Path, more: tuple[str, ...]) -> None:
    code, out, err = run_cli("inspect", str(tiny_model), "--tokenizer", str(wrong), *more)
    assert code == 3
    assert err.count("\n") == 1
    assert "is not this model's: id 300 is" in err
    if more:
        assert json.loads(out)["same"] is False
    else:
        assert "DIFFERS" in out


def test_a_model_without_a_file_asks_for_one(make_tiny_model: Callable[..., Path]) -> None:
    code, out, err = run_cli("inspect", str(make_tiny_model(n_ctx=96)), "--tokenizer")
    assert (code, out) == (3, "")
    assert "inspect MODEL --tokenizer FILE" in err


def test_a_second_file_goes_with_the_flag_only(tiny_model: Path, wrong: Path) -> None:
    code, out, err = run_cli("inspect", str(tiny_model), str(wrong))
    assert (code, out) == (2, "")
    assert "--tokenizer" in err
