"""Imports go down, and each outside library has its room: read from the source with ast."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "gguf_engine"

# `llm.session(...)` is written where people look for it, and imports what it makes when it is called.
UPWARD = {("llm", "session")}
# A module may import its own layer's package and lower layers. Siblings share a number and are apart.
LAYERS = {
    "params": 0,
    "outputs": 0,
    "errors": -1,
    "loader": 1,
    "text": 1,
    "backend": 1,
    "sampling": 1,
    "engine": 2,
    "tuned": 2,
    "opening": 3,
    "sessionfile": 3,
    "sessionstreams": 4,
    "streams": 3,
    "embeddings": 3,
    "tune": 3,
    "prompts": 4,
    "llm": 5,
    "session": 6,
    "server": 7,
    "bench": 7,
    "doctor": 7,
    "batch": 7,
    "cli": 8,
    "llm_plugin": 9,
    "__main__": 9,
}
ROOMS = {
    "llama_cpp": {"backend/llama.py"},
    "typer": {"cli/"},
    "click": {"cli/"},
    "rich": {"cli/"},
    "fastapi": {"server/"},
    "starlette": {"server/"},
    "pydantic": {"server/", "llm_plugin.py"},
    "llm": {"llm_plugin.py"},
    "pydantic_core": {"server/"},
    "uvicorn": {"server/"},
    "prometheus_client": {"server/"},
    "huggingface_hub": {"loader/"},
}
# backend/llama.py sets variables that OpenMP and ggml read while their libraries load, and takes them
# back; it reads none of the user's settings but whether that same variable is already set.
ENVIRONMENT = {"cli/", "server/app.py", "loader/hub.py", "backend/llama.py"}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def in_room(path: Path, rooms: set[str]) -> bool:
    place = path.relative_to(PACKAGE).as_posix()
    return any(place == room or (room.endswith("/") and place.startswith(room)) for room in rooms)


def imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def layer_of(path: Path) -> str:
    place = path.relative_to(PACKAGE)
    return place.parts[0] if len(place.parts) > 1 else place.stem


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    own = layer_of(path)
    if own == "__init__":
        return  # the public names: imported on first use
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "gguf_engine" or parts[1] == own:
            continue
        if parts[1] in ("_native", "__version__"):
            continue  # the C core lies below everything
        if (own, parts[1]) in UPWARD:
            continue
        assert LAYERS[parts[1]] < LAYERS[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_library_is_imported_in_its_room_alone(path: Path) -> None:
    for name in imports(path):
        rooms = ROOMS.get(name.split(".")[0])
        assert rooms is None or in_room(path, rooms), f"{name} belongs in {rooms}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_environment_is_read_at_the_edges_alone(path: Path) -> None:
    if in_room(path, ENVIRONMENT):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "getenv", "putenv"), f"{path.name}:{node.lineno}"


def test_the_rules_see_the_real_sources() -> None:
    assert len(SOURCES) > 20
    assert any("llama_cpp" in name for name in imports(PACKAGE / "backend" / "llama.py"))
