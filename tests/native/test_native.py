"""The C sampler without Python: under sanitizers, without allocations, equal in every build."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted((ROOT / "csrc").glob("*.c")), Path(__file__).with_name("test_sampler.c")]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
FLAGS = ["-std=gnu11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
N_FUZZED = "2000"


def _compiler() -> str | None:
    configured = shlex.split(str(sysconfig.get_config_var("CC") or ""))
    names = [*configured[:1], "cc", "gcc", "clang"]
    return next((name for name in names if shutil.which(name)), None)


COMPILER = _compiler()
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def build(folder: Path, *flags: str) -> Path:
    assert COMPILER is not None
    program = folder / "test_sampler"
    command = [COMPILER, *FLAGS, *flags, *map(str, SOURCES), "-lm", "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the plainest build prints: no optimisation, no clones."""
    return run(build(tmp_path_factory.mktemp("plain"), "-O0", "-DGE_NO_CLONES"), N_FUZZED)


def _links_sanitizers() -> bool:
    """Tell whether the compiler has its sanitizers' libraries: musl and some cross compilers lack them."""
    if COMPILER is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = [COMPILER, *SANITIZERS, "-x", "c", "-", "-o", f"{folder}/probe"]
        done = subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True)
    return done.returncode == 0


@pytest.mark.skipif(not _links_sanitizers(), reason="the C compiler comes without sanitizer libraries")
def test_sanitizers_find_nothing_in_fuzzed_rows(tmp_path: Path, digest: str) -> None:
    assert run(build(tmp_path, *SANITIZERS, "-DGE_NO_CLONES"), N_FUZZED) == digest


@pytest.mark.skipif(platform.system() != "Linux", reason="allocations are counted with --wrap of GNU ld")
def test_sampling_allocates_nothing(tmp_path: Path) -> None:
    wraps = ",".join(f"--wrap={name}" for name in ("malloc", "calloc", "realloc", "aligned_alloc"))
    program = build(tmp_path, "-O2", "-DGE_NO_CLONES", "-DCOUNT_ALLOCATIONS", f"-Wl,{wraps}")
    run(program, N_FUZZED, "count")


def _supports(architecture: str) -> bool:
    needed = {
        "x86-64-v3": {"avx2", "fma", "bmi2"},
        "x86-64-v4": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    }
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        return False
    return needed.get(architecture, set()) <= set(cpuinfo.read_text().split())


def _on(architecture: str) -> Any:
    reason = f"a processor without {architecture} cannot run code for it"
    return pytest.param(architecture, marks=pytest.mark.skipif(not _supports(architecture), reason=reason))


@pytest.mark.parametrize("architecture", [_on("x86-64"), _on("x86-64-v3"), _on("x86-64-v4")])
def test_ids_and_weights_are_the_same_with_every_instruction_set(
    tmp_path: Path, digest: str, architecture: str
) -> None:
    assert run(build(tmp_path, "-O3", "-DGE_NO_CLONES", f"-march={architecture}"), N_FUZZED) == digest


def test_ids_and_weights_are_the_same_in_the_build_that_is_shipped(tmp_path: Path, digest: str) -> None:
    assert run(build(tmp_path, "-O3", "-fwrapv"), N_FUZZED) == digest
