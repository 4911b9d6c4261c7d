"""A checkout that was never built shadows the installed package: said in a sentence, not a traceback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gguf_engine

pytestmark = pytest.mark.e2e

PACKAGE = Path(gguf_engine.__file__).parent


@pytest.mark.parametrize("command", [["-m", "gguf_engine", "run", "--model", "haiku", "hi"], ["mine.py"]])
def test_sources_that_were_never_built_say_so(tmp_path: Path, command: list[str]) -> None:
    ignored = shutil.ignore_patterns("_native*", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "gguf_engine", ignore=ignored)
    (tmp_path / "mine.py").write_text("from gguf_engine import LLM\nLLM.load('haiku')\n")
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"gguf_engine is imported from {tmp_path.resolve()}, whose native code is not built" in last
    assert "pip install -e ." in last
    assert ("Traceback" in done.stderr) == (command == ["mine.py"])
