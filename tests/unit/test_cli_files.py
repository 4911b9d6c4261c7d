"""Files that options name: what is refused, and that the refusal says why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gguf_engine import OptionError
from gguf_engine.cli.files import check_readable, check_regular, check_writable


def test_a_file_that_is_there_can_be_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    check_readable("--x", str(tmp_path / "a"), "a file")
    check_writable("--x", str(tmp_path / "a"))
    check_writable("--x", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "why"), [("none", "there is no such file"), ("", "it is a folder"), ("no/b", "no such file")]
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(OptionError, match=f"^--x is '.*'; allowed: a poem; .*{why}"):
        check_readable("--x", str(tmp_path / name), "a poem")


@pytest.mark.parametrize(
    ("name", "why"),
    [("", "it is a folder"), ("no/b", "there is no folder .*no: make it"), ("a/b", "no folder")],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OptionError, match=f"^--x is '.*'; allowed: a file that can be written; .*{why}"):
        check_writable("--x", str(tmp_path / name))


def test_a_pipe_is_no_regular_file(tmp_path: Path) -> None:
    check_regular("--x", str(tmp_path / "new"), "a file")
    (tmp_path / "a").touch()
    check_regular("--x", str(tmp_path / "a"), "a file")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match=r"^--x is '.*'; allowed: a file; it is a pipe or a device"):
        check_regular("--x", str(tmp_path / "pipe"), "a file")


def test_permissions_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root may do everything
    with pytest.raises(OptionError, match="its permissions forbid it"):
        check_readable("--x", str(tmp_path / "a"), "a file")
    for name in ("a", "new"):
        with pytest.raises(OptionError, match="its permissions forbid it"):
            check_writable("--x", str(tmp_path / name))
