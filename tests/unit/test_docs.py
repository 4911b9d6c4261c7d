"""What docs/ tells people to type exists: commands, options, limits that fit each other."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from gguf_engine.cli.app import make_command
from gguf_engine.server.settings import ServerParams

DOCS = Path(__file__).resolve().parents[2] / "docs"
UNIT = (DOCS / "gguf-engine.service").read_text(encoding="utf-8")
DOCKERFILE = (DOCS / "Dockerfile").read_text(encoding="utf-8")
GUIDE = (DOCS / "serving.md").read_text(encoding="utf-8")
VERBS = make_command().commands


def joined(text: str) -> list[str]:
    """Return lines, those that end with a backslash put together with the next."""
    return re.sub(r"\\\n\s*", " ", text).splitlines()


def unit_values(name: str) -> list[str]:
    """Return what the unit sets an option to."""
    return [line.partition("=")[2] for line in joined(UNIT) if line.startswith(f"{name}=")]


def of_dockerfile(name: str) -> list[str]:
    """Return the JSON list of one of the Dockerfile's instructions."""
    (line,) = (line for line in joined(DOCKERFILE) if line.startswith(f"{name} ["))
    words: list[str] = json.loads(line.removeprefix(name))
    return words


def commands() -> list[list[str]]:
    """Return every call of gguf-engine in docs/, from the verb on."""
    found = [shlex.split(unit_values("ExecStart")[0]), of_dockerfile("ENTRYPOINT") + of_dockerfile("CMD")]
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL))
    typed = re.findall(r"`(gguf-engine [^`]+)`", GUIDE) + joined(blocks)
    found += [shlex.split(line) for line in typed if "gguf-engine " in line and " {" not in line]
    return [words[at + 1 :] for words in found if (at := verb_place(words)) is not None]


def verb_place(words: list[str]) -> int | None:
    """Return where the program's name stands, before a verb."""
    places = [n for n, word in enumerate(words[:-1]) if word.split("/")[-1] == "gguf-engine"]
    return next((n for n in places if words[n + 1] in VERBS), None)


def options_of(verb: str) -> set[str]:
    """Return the options that a command takes."""
    return {name for param in VERBS[verb].params for name in [*param.opts, *param.secondary_opts]}


def test_both_recipes_and_the_guide_are_looked_at() -> None:
    verbs = [words[0] for words in commands()]
    assert verbs.count("serve") >= 3
    assert {"pull", "bundle", "unbundle"} <= set(verbs)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_option_of_a_command_exists(words: list[str]) -> None:
    given = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert given <= options_of(words[0])


def test_options_named_in_the_text_exist() -> None:
    of_docker = {"--memory", "--stop-timeout"}
    named = set(re.findall(r"`(--[a-z-]+)", GUIDE))
    assert named - of_docker <= options_of("serve")
    assert named & of_docker <= set(re.findall(r"--[a-z-]+", GUIDE.partition("docker run --detach")[2]))


def test_a_supervisor_waits_longer_than_the_server_drains() -> None:
    for words in commands():
        if words[0] == "serve" and "--drain-s" in words:
            assert float(words[words.index("--drain-s") + 1]) == ServerParams().drain_s
    waits = [float(each) for each in unit_values("TimeoutStopSec")]
    waits += [float(each) for each in re.findall(r"--stop-timeout (\d+)", GUIDE)]
    assert len(waits) == 2
    # The grace, two seconds for last words, five for the engine's process.
    assert min(waits) > ServerParams().drain_s + 2 + 5


def test_the_unit_ends_the_server_alone_and_keeps_it_in() -> None:
    """An engine that hears SIGTERM too would end the answers that are to be finished."""
    assert unit_values("KillMode") == ["mixed"]
    assert unit_values("Restart") == ["on-failure"]
    assert unit_values("DynamicUser") == ["yes"]
    assert unit_values("ProtectSystem") == ["strict"]
    (given,) = unit_values("LoadCredential")
    assert (
        f"--api-key-file ${{CREDENTIALS_DIRECTORY}}/{given.partition(':')[0]}"
        in unit_values("ExecStart")[0]
    )


def test_the_image_runs_without_rights_and_asks_health() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert "/health" in next(line for line in joined(last) if line.startswith("HEALTHCHECK"))
