"""`Facts` → what is broken and what makes it slow, one sentence each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gguf_engine.doctor.facts import Facts, Finding, Report

# Without one of these the inner loops of every model run scalar or half as wide.
_LARGE = ("AVX", "AVX2", "F16C", "FMA", "NEON", "DOTPROD")
# These help to read prompts, and decoding hardly: that waits for memory.
_SMALL = (
    "AVX_VNNI", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8",
    "FP16_VA", "MATMUL_INT8", "SVE",
)  # fmt: skip
# Vendor -> back ends of ggml that use its GPUs, and the families to build for, best first.
_BACK_ENDS = {
    "NVIDIA": (("CUDA", "Vulkan"), ("cuda", "vulkan")),
    "AMD": (("ROCm", "HIP", "Vulkan"), ("rocm", "vulkan")),
    "Apple": (("MTL", "Metal"), ("metal",)),
}
_DEVICES = {"NVIDIA": ("cuda:", "vulkan:"), "AMD": ("rocm:", "vulkan:"), "Apple": ("metal:",)}
# What a faster build of llama.cpp would end.
OF_THE_BUILD = frozenset({"features", "surplus", "gpu_build", "gpu_driver"})
BUSY_LOAD = 0.5  # processors
LARGE_SPIN = 100_000
GIB = 2**30
DEFAULT_MODEL_BYTES = 2_400_000_000


def judge(facts: Facts) -> Report:
    """Return the facts with what follows from them, what costs most first."""
    rules = (_features, _gpus, _driver, _translated, _quota, _busy, _memory, _clock, _spin, _hub, _cache)
    warnings = tuple(finding for rule in rules for finding in rule(facts))
    return Report(facts=facts, broken=tuple(_broken(facts)), warnings=warnings)


def _broken(facts: Facts) -> Iterator[Finding]:
    native = facts.install.get("native", "")
    for package, version in facts.versions.items():
        if not version:
            yield Finding(
                code="package", sentence=f"{package} is not installed", fix=f"pip install {package}"
            )
    if not facts.probe_problem:
        return
    if facts.build is None:
        yield Finding(
            code="library",
            sentence=f"llama.cpp cannot be loaded; in a process of its own {facts.probe_problem}",
            fix=native,
        )
        return
    surplus = _surplus(facts)
    why = f"; this build uses {_list(surplus)}, which this processor does not have" if surplus else ""
    yield Finding(
        code="generation",
        sentence=f"the bundled model cannot generate; in a process of its own {facts.probe_problem}{why}",
        fix=native if surplus else "",
    )


def _cpu_features(facts: Facts) -> tuple[set[str], set[str]] | None:
    """Return what the processor has and what the build uses; None when one of them is unknown."""
    if facts.build is None or facts.machine.features is None or "CPU" not in facts.build.features:
        return None
    return set(facts.machine.features), set(facts.build.features["CPU"])


def _surplus(facts: Facts) -> list[str]:
    known = _cpu_features(facts)
    return [name for name in (*_LARGE, *_SMALL) if known and name in known[1] and name not in known[0]]


def _features(facts: Facts) -> Iterator[Finding]:
    known = _cpu_features(facts)
    if known is None:
        return
    has, used = known
    native = facts.install.get("native", "")
    for names, cost in (
        (_LARGE, "everything may take several times as long"),
        (_SMALL, "prompts are read slower"),
    ):
        lacking = [name for name in names if name in has and name not in used]
        if lacking:
            what = f"this processor has {_list(lacking)}, this llama.cpp build does not use {_it(lacking)}"
            yield Finding(code="features", sentence=f"{what}: {cost}", fix=native)
    if (surplus := _surplus(facts)) and not facts.probe_problem:
        what = (
            f"this llama.cpp build uses {_list(surplus)}, which the system does not list for this processor"
        )
        yield Finding(code="surplus", sentence=f"{what}: it may crash with SIGILL", fix=native)


def _gpus(facts: Facts) -> Iterator[Finding]:
    if facts.build is None:
        return
    for vendor, (back_ends, families) in _BACK_ENDS.items():
        gpus = [gpu for gpu in facts.gpus if gpu.vendor == vendor]
        if not gpus or any(name.startswith(_DEVICES[vendor]) for name in facts.build.devices):
            continue
        name = gpus[0].name
        built_for = [each for each in back_ends if each in facts.build.features]
        fix = next((facts.install[family] for family in families if family in facts.install), "")
        if all(gpu.driver is None for gpu in gpus):
            what = f"there is a GPU ({vendor} {name}) and no driver for it"
            yield Finding(code="gpu_driver", sentence=f"{what}: install that, then build for it", fix=fix)
        elif built_for:
            what = (
                f"this llama.cpp build is for {built_for[0]}, but sees no GPU although there is {name}: "
                "its driver is too old or broken, or a variable such as CUDA_VISIBLE_DEVICES hides it"
            )
            yield Finding(code="gpu_hidden", sentence=what)
        else:
            what = f"there is a GPU ({name}), and this llama.cpp build cannot use it"
            yield Finding(code="gpu_build", sentence=f"{what}: models run on the processor", fix=fix)


def _driver(facts: Facts) -> Iterator[Finding]:
    if facts.gpu_problem:
        what = (
            f"nvidia-smi is here and failed: {facts.gpu_problem}; the driver has to work before the GPU can"
        )
        yield Finding(code="driver", sentence=what)
    for gpu in facts.gpus:
        total, used = gpu.memory_total_bytes, gpu.memory_used_bytes
        if total and used and used > total / 4:
            what = f"{_gib(used)} of the {_gib(total)} of memory of {gpu.name} are taken by other programs"
            yield Finding(code="gpu_memory", sentence=f"{what}: a large model may not fit")
        if gpu.busy_share and gpu.busy_share > 0.3:
            what = f"{gpu.name} is {gpu.busy_share:.0%} busy with other programs"
            yield Finding(code="gpu_busy", sentence=f"{what}: the engine gets what is left")


def _translated(facts: Facts) -> Iterator[Finding]:
    if facts.machine.is_translated:
        what = "this Python is an x86 program that macOS translates"
        yield Finding(code="translated", sentence=f"{what}: install one for arm64, and this package in it")


def _quota(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if machine.quota is not None and machine.n_threads > machine.quota:
        what = (
            f"{machine.n_threads} threads share a quota of {machine.quota:g} processors: all of them are "
            "stopped when it is used up, so one thread fewer, or a whole number as the quota, may be faster"
        )
        yield Finding(code="quota", sentence=what, fix="gguf-engine tune")
    if machine.throttled_share is not None and machine.throttled_share > 0.05:
        what = f"the processor quota ran out in {machine.throttled_share:.0%} of its periods so far"
        yield Finding(code="throttled", sentence=f"{what}: raise it, or use fewer threads")


def _busy(facts: Facts) -> Iterator[Finding]:
    load, n = facts.machine.load_1m, facts.machine.n_processors
    if load is not None and load >= BUSY_LOAD:
        what = (
            f"programs wanted {load:.1f} of {n} processors in the minute before this; threads of a pass "
            "wait for the slowest of them, so a neighbour costs more than its share"
        )
        yield Finding(code="busy", sentence=what)


def _memory(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if facts.swapped_bytes and facts.swapped_bytes > 2**20:
        what = f"{facts.swapped_bytes >> 20} MiB went to or came from swap while this ran"
        yield Finding(code="swap", sentence=f"{what}: weights that are swapped out are read from the disk")
    elif machine.swap_used_bytes and machine.swap_used_bytes > (machine.memory_total_bytes or 0) / 10:
        what = f"{_gib(machine.swap_used_bytes)} lie in swap: memory was short on this machine"
        yield Finding(code="swap", sentence=f"{what}, and a model that does not fit is read from the disk")
    known = [size for size in (machine.memory_available_bytes, machine.memory_limit_bytes) if size]
    if known and min(known) < 1.3 * DEFAULT_MODEL_BYTES:
        what = f"{_gib(min(known))} of memory can be used: phi3-mini wants about 3 GiB"
        yield Finding(code="memory", sentence=f"{what}; close programs, or take a smaller model")


def _clock(facts: Facts) -> Iterator[Finding]:
    governor, _, prefers = (facts.machine.governor or "").partition(" ")
    # The drivers of new processors call their automatic mode "powersave"; what it prefers decides.
    if (governor == "powersave" and not prefers) or prefers in ("(power)", "(balance_power)"):
        what = (
            f"the clock's governor is {facts.machine.governor}: the processor saves power while it computes"
        )
        yield Finding(code="governor", sentence=what, fix="sudo cpupower frequency-set -g performance")
    if facts.machine.is_on_battery:
        what = "this machine runs on its battery, and most lower the clock then: plug it in"
        yield Finding(code="battery", sentence=what)


def _spin(facts: Facts) -> Iterator[Finding]:
    policy = facts.settings.get("OMP_WAIT_POLICY", "").lower()
    count = facts.settings.get("GOMP_SPINCOUNT", "")
    is_large = count.lower().startswith("inf") or (count.isdecimal() and int(count) > LARGE_SPIN)
    if is_large or (policy == "active" and not count):
        name = "GOMP_SPINCOUNT" if count else "OMP_WAIT_POLICY"
        what = (
            f"{name}={facts.settings[name]} lets threads spin while they wait: beside one busy program they"
        )
        yield Finding(code="spin", sentence=f"{what} take their own cores away", fix=f"unset {name}")
    elif policy == "passive" and not count:
        what = "OMP_WAIT_POLICY=passive puts threads to sleep at every barrier: slower on an idle machine"
        yield Finding(code="spin", sentence=what, fix="unset OMP_WAIT_POLICY")


def _hub(facts: Facts) -> Iterator[Finding]:
    if facts.hub.problem:
        what = f"{facts.hub.endpoint} cannot be reached ({facts.hub.problem})"
        way_out = "models that are cached, files and the bundled haiku model work all the same"
        yield Finding(code="hub", sentence=f"{what}: {way_out}")


def _cache(facts: Facts) -> Iterator[Finding]:
    cache = facts.cache
    if not cache.is_writable:
        what = f"nothing can be written to the cache {cache.folder}: no model can be added"
        yield Finding(code="cache", sentence=f"{what}; set HF_HOME to a folder that can be written")
    elif cache.free_bytes is not None and cache.free_bytes < 1.1 * DEFAULT_MODEL_BYTES:
        what = f"{_gib(cache.free_bytes)} are free where models are kept, phi3-mini has 2.2 GiB"
        yield Finding(code="disk", sentence=f"{what}; free some, or set HF_HOME to a larger disk")


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.1f} GiB"


def _list(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _it(names: list[str]) -> str:
    return "them" if len(names) > 1 else "it"
