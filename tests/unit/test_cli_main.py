"""The program itself: help, version, usage, and what it does not import before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_samples import FakeModel, run_cli

from gguf_engine import __version__
from gguf_engine.cli.errors import MEANINGS

HEAVY = ("llama_cpp", "numpy", "rich", "huggingface_hub", "tokenizers", "jinja2", "gguf_engine.llm")


def test_help_lists_the_verbs_and_the_exit_codes() -> None:
    code, out, err = run_cli("--help")
    assert (code, err) == (0, "")
    for verb in ("run", "chat", "batch", "pull", "inspect", "devices"):
        assert f"\n  {verb} " in out
    for number, meaning in MEANINGS.items():
        assert f"{number}" in out
        assert meaning in out


def test_help_of_a_verb_has_a_section_a_class_of_options() -> None:
    out = run_cli("run", "--help").out
    titles = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Arguments:", "Options:", "Model:", "Hub:", "Loading:", "Sampling:"]


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["chat", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    script = (
        "import sys; from gguf_engine.cli.main import run_command; code = run_command(sys.argv[1:]);"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True)
    assert done.stderr == "HEAVY [] 0\n"


def test_version_is_the_package_version() -> None:
    assert run_cli("--version") == (0, f"gguf-engine {__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "missing command"),
        (["rnu"], "'run'"),
        (["run"], "'PROMPT'"),
        (["run", "a", "b"], "unexpected extra argument"),
        (["run", "--temprature", "1", "x"], "unknown option --temprature; did you mean --temperature?"),
        (["run", "-5 degrees"], "put -- before a prompt"),
        (["run", "x", "--seed"], "'--seed' requires an argument"),
        (["run", "--top-k", "-1", "x"], "--top-k is -1; allowed"),
        (["run", "--temperature", "nan", "x"], "--temperature is nan; allowed"),
        (["batch", "--n-slots", "0"], "--n-slots is 0; allowed: an integer in 1..256"),
        (["chat", "--logprobs", "1"], "unknown option --logprobs"),
        (["run", "--logprobs", "1", "x"], "add --json"),
        (
            ["run", "--json", "--raw-logprobs", "x"],
            "--raw-logprobs is True; allowed: together with logprobs",
        ),
        (["run", "--raw", "--system", "a", "x"], "drop --raw or --system"),
        (["run", "a\udcff"], "UTF-8"),
    ],
)
def test_wrong_usage_is_one_sentence_and_two(args: list[str], says: str) -> None:
    model = FakeModel()
    code, out, err = run_cli(*args, model=model)
    assert (code, out) == (2, "")
    assert err.startswith("gguf-engine: ")
    assert err.count("\n") == 1
    assert says in err
    assert model.asked == {}  # nothing was loaded to find out


def test_a_prompt_may_begin_with_a_dash_after_two() -> None:
    assert run_cli("run", "--", "-5 degrees").code == 0
