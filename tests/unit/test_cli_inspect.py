"""`inspect`: everything a header says, for people and for programs, and nothing that steers a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_samples import run_cli

from gguf_engine.cli.inspect import visible
from gguf_engine.loader.gguf import read_gguf


def test_tables_show_every_key_and_every_tensor(tiny_model: Path) -> None:
    code, out, err = run_cli("inspect", str(tiny_model))
    gguf = read_gguf(tiny_model)
    lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert {line[0] for line in lines} >= set(gguf.metadata) | {tensor.name for tensor in gguf.tensors}
    for tensor in gguf.tensors:
        row = next(line for line in lines if line[0] == tensor.name)
        assert row[1:] == [*" x ".join(map(str, tensor.shape)).split(), tensor.type, str(tensor.n_bytes)]


def test_json_is_the_header_with_long_arrays_cut(tiny_model: Path) -> None:
    code, out, err = run_cli("inspect", "--json", str(tiny_model))
    values, gguf = json.loads(out), read_gguf(tiny_model)
    assert (code, err) == (0, "")
    assert [tensor["name"] for tensor in values["tensors"]] == [tensor.name for tensor in gguf.tensors]
    tokens = values["metadata"]["tokenizer.ggml.tokens"]
    assert tokens["length"] == len(gguf.metadata["tokenizer.ggml.tokens"])
    assert tokens["first"] == list(gguf.metadata["tokenizer.ggml.tokens"][:8])
    assert values["metadata"]["general.architecture"] == {"type": "string", "value": "phi3"}


def test_full_leaves_nothing_out(tiny_model: Path) -> None:
    gguf = read_gguf(tiny_model)
    values = json.loads(run_cli("inspect", "--json", "--full", str(tiny_model)).out)
    assert values["metadata"]["tokenizer.ggml.tokens"]["value"] == list(
        gguf.metadata["tokenizer.ggml.tokens"]
    )
    assert (
        repr(gguf.metadata["tokenizer.ggml.tokens"][-1])
        in run_cli("inspect", "--full", str(tiny_model)).out
    )


def test_a_catalog_name_and_a_folder_will_do(make_tiny_model: Callable[..., Path]) -> None:
    assert run_cli("inspect", "haiku").out.startswith("/")
    alone = make_tiny_model(n_ctx=96)
    assert run_cli("inspect", str(alone.parent)) == run_cli("inspect", str(alone))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"", "the file is empty"),
        (b"GGUF\3\0\0\0", "truncated"),
    ],
)
@pytest.mark.parametrize("verb", ["inspect", "run"])
def test_a_file_that_is_no_model_is_three(tmp_path: Path, content: bytes, says: str, verb: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    args = (str(path),) if verb == "inspect" else ("--model", str(path), "x")
    code, out, err = run_real(verb, *args)
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(("name", "says"), [("nowhere.gguf", "no such file"), (".", "no .gguf")])
def test_a_missing_file_is_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli("inspect", name)
    assert (code, out) == (3, "")
    assert says in err


def test_what_is_not_cached_is_not_downloaded() -> None:
    code, out, err = run_cli("inspect", "phi3-mini")
    assert (code, out) == (4, "")
    assert "gguf-engine pull" in err
    assert "inspect downloads nothing; run `gguf-engine pull phi3-mini` first" in err


def test_text_of_strangers_cannot_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"


def run_real(*args: str) -> tuple[int, str, str]:
    """Run a command with the real `LLM.load`: it refuses these files before any backend is made."""
    from gguf_engine import LLM

    class Real:
        load = LLM.load

    return run_cli(*args, model=Real())  # type: ignore[arg-type]


def test_a_file_that_would_be_refused_is_shown_first(tmp_path: Path) -> None:
    from make_gguf import write_tiny_model
    from test_preflight import put

    path = write_tiny_model(tmp_path / "m.gguf", edit=put("phi3.attention.head_count_kv", 3))
    for option in ((), ("--json",)):
        code, out, err = run_cli("inspect", *option, str(path))
        assert code == 3
        assert "phi3.attention.head_count_kv" in out
        assert err == (
            f"gguf-engine: {path}: phi3.attention.head_count_kv: is 3, which does not divide the 4 heads "
            "[hyperparameter]\n"
        )
