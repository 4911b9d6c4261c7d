"""The list of architectures is the installed llama.cpp's: asked of the library itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import pytest
from make_gguf import write_tiny_model
from test_preflight import put, refusal

from gguf_engine.loader.families import FAMILIES
from gguf_engine.loader.known import KNOWN_ARCHITECTURES, NOT_LANGUAGE_MODELS, READ_FROM

# Load a header that holds nothing but a name; what is known fails later, with another message.
PROBE = """
import ctypes, json, struct, sys
import llama_cpp.llama_cpp as L
said = []
keep = L.llama_log_callback(lambda level, text, data: said.append(text))
L.llama_log_set(keep, None)
params = L.llama_model_default_params()
params.vocab_only = True
key, known = b"general.architecture", []
for name in json.load(sys.stdin):
    text = name.encode()
    head = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<IQ", 8, len(text)) + text
    with open(sys.argv[1], "wb") as file:
        file.write(head)
    said.clear()
    assert not L.llama_model_load_from_file(sys.argv[1].encode(), params)
    if b"unknown model architecture" not in b"".join(said):
        known.append(name)
print(json.dumps(known))
"""


def known_to_llama_cpp(names: set[str], folder: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder / "m.gguf")],
        input=json.dumps(sorted(names)), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stdout))


def candidates() -> set[str]:
    """Return every text in the library that may be such a name, and their ends: linkers share those."""
    # A wheel has it under several names, all the same bytes.
    library = min((Path(llama_cpp.__file__).parent / "lib").glob("libllama.*"))
    texts = re.findall(rb"(?<=\0)[ -~]{2,24}(?=\0)", library.read_bytes())
    names = {text.decode() for text in texts}
    ends = {name[at:] for name in names for at in range(len(name) - 1)}
    return {name for name in ends if re.fullmatch(r"[a-z][a-z0-9_.-]*", name)}


def test_the_list_is_what_this_llama_cpp_knows(tmp_path: Path) -> None:
    assert candidates() >= KNOWN_ARCHITECTURES  # so that one more would be seen
    assert known_to_llama_cpp(candidates(), tmp_path) == KNOWN_ARCHITECTURES
    assert version("llama-cpp-python") in READ_FROM


def test_families_with_rules_are_known() -> None:
    assert set(FAMILIES) <= KNOWN_ARCHITECTURES - set(NOT_LANGUAGE_MODELS)


@pytest.mark.parametrize("name", ["phi9", "Llama", "(unknown)", "llama "])
def test_another_architecture_is_refused_by_name_with_the_version_that_lacks_it(
    tmp_path: Path, name: str
) -> None:
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=put("general.architecture", name)))
    assert (error.code, error.where) == ("architecture", "general.architecture")
    assert f"is {name!r}, which {READ_FROM} does not know; upgrade" in str(error)
