"""The C sampler without Python: under sanitizers, without allocations, equal in every build."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted((ROOT / "csrc").glob("*.c")), Path(__file__).with_name("test_sampler.c")]
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


def test_sanitizers_find_nothing_in_fuzzed_rows(tmp_path: Path, digest: str) -> None:
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    assert COMPILER is not None
    linked = subprocess.run(
        [COMPILER, *sanitizers, str(probe), "-o", str(tmp_path / "probe")], capture_output=True
    )
    if linked.returncode != 0:
        pytest.skip("this compiler has no sanitizers")
    assert run(build(tmp_path, *sanitizers, "-DGE_NO_CLONES"), N_FUZZED) == digest


def test_sampling_allocates_nothing(tmp_path: Path) -> None:
    if platform.system() != "Linux":
        pytest.skip("needs the --wrap option of GNU ld")
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


@pytest.mark.parametrize("architecture", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_ids_and_weights_are_the_same_with_every_instruction_set(
    tmp_path: Path, digest: str, architecture: str
) -> None:
    if not _supports(architecture):
        pytest.skip(f"this processor cannot run {architecture}")
    assert run(build(tmp_path, "-O3", "-DGE_NO_CLONES", f"-march={architecture}"), N_FUZZED) == digest


def test_ids_and_weights_are_the_same_in_the_build_that_is_shipped(tmp_path: Path, digest: str) -> None:
    assert run(build(tmp_path, "-O3", "-fwrapv"), N_FUZZED) == digest
