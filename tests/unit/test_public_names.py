"""What `import gguf_engine` offers, and what it must not do."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gguf_engine


def test_every_public_name_can_be_imported() -> None:
    for name in gguf_engine.__all__:
        assert getattr(gguf_engine, name) is not None


def test_every_lazy_name_is_public() -> None:
    assert set(gguf_engine._HOMES) | {"__version__"} == set(gguf_engine.__all__)
    assert list(gguf_engine._HOMES) == sorted(gguf_engine._HOMES)


def test_every_error_class_is_public() -> None:
    from gguf_engine import errors

    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and name != "Any"}
    assert classes <= set(gguf_engine.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = gguf_engine.nonsense


def test_importing_loads_nothing_heavy_and_changes_nothing() -> None:
    code = (
        "import os, sys; before = dict(os.environ), set(sys.modules)\n"
        "import gguf_engine\n"
        "assert dict(os.environ) == before[0]\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before[1]}\n"
        "heavy = {'llama_cpp', 'numpy', 'tokenizers', 'jinja2', 'huggingface_hub', 'rich', 'typer'}\n"
        "assert not new & heavy, new & heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_loading_llama_cpp_leaves_one_variable_for_its_abort_and_no_other() -> None:
    code = (
        "import os; before = dict(os.environ)\n"
        "import gguf_engine.backend.llama\n"
        "assert dict(os.environ) == {**before, 'GGML_NO_BACKTRACE': '1'}, set(os.environ) ^ set(before)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
