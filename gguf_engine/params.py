"""The options of a request and of an engine: frozen, validated once, the only place with defaults."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from gguf_engine.errors import OptionError

SamplingOrder = Literal["standard", "llama.cpp"]
KVCacheType = Literal["f16", "q8_0", "q4_0"]
FlashAttention = Literal["auto", "on", "off"]
SplitMode = Literal["layer", "row"]
AdaptThreads = Literal["exact", "always", "never"]
PresetName = Literal["latency", "throughput"]
Isolation = Literal["thread", "process"]
"""Where an engine runs: in a thread of this process, or in a process of its own, which may crash."""

MAX_TOP_LOGPROBS = 64
MAX_SEED = 2**63 - 1
N_DRAFT = 31
PREFIX_CACHE_MB = 4096
MAX_N_CTX_BY_DEFAULT = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """
    How one answer is sampled, and when it ends.

    The filters run in this order, renormalised after each: logit bias, constraint mask, repeat
    penalty, presence and frequency penalties, temperature, top-k, top-p, min-p, draw.

    Attributes:
        temperature: >= 0. Below 1e-7 is greedy: the most probable id, the lowest on a tie.
        top_k: Keep the k most probable ids; 0 is off.
        top_p: In (0, 1]. Keep the most probable ids until their mass reaches it; 1 is off.
        min_p: In [0, 1). Keep ids at least this fraction as probable as the best one; 0 is off.
        repeat_penalty: > 0. Divides positive and multiplies negative logits of ids seen in the
            window; 1 is off, below 1 rewards repetition.
        repeat_last_n: Window of the repeat penalty in generated ids; 0 is off, -1 is all.
        penalize_prompt: Let the window reach back into the prompt.
        presence_penalty: In [-100, 100]. Subtracted once from the logit of each generated id.
        frequency_penalty: In [-100, 100]. Subtracted once per occurrence.
        logit_bias: id -> finite value added to its logit, or -inf to forbid it.
        seed: 0..2^63-1; None draws a fresh one, which the completion reports.
        max_tokens: >= 0, counts the end token; None means until the context is full.
        stop: Strings that end the answer and are not part of it; none may be empty.
        ignore_eos: Go on past end-of-generation tokens.
        logprobs: None for no log-probabilities, 0 for the token's own, n <= 64 for the n best too.
            They are of the penalised, tempered distribution before truncation.
        raw_logprobs: Report log-probabilities of the model's own row: before bias, penalties and
            temperature. Needs logprobs.
        order: "standard" applies the temperature before the truncating filters, "llama.cpp" after.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.2
    repeat_last_n: int = 64
    penalize_prompt: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    max_tokens: int | None = 100
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    raw_logprobs: bool = False
    order: SamplingOrder = "standard"

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, "a finite number >= 0", low=0.0)
        _integer("top_k", self.top_k, "an integer >= 0 (0 is off)", low=0, high=2**31 - 1)
        _number("top_p", self.top_p, "a number in (0, 1] (1 is off)", above=0.0, high=1.0)
        _number("min_p", self.min_p, "a number in [0, 1) (0 is off)", low=0.0, below=1.0)
        _number("repeat_penalty", self.repeat_penalty, "a finite number > 0 (1 is off)", above=0.0)
        _integer(
            "repeat_last_n",
            self.repeat_last_n,
            "an integer >= -1 (0 is off, -1 is all)",
            low=-1,
            high=2**31 - 1,
        )
        for name in ("presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name), "a number in [-100, 100]", low=-100.0, high=100.0)
        _optional_integer("seed", self.seed, f"an integer in 0..{MAX_SEED}", high=MAX_SEED)
        _optional_integer("max_tokens", self.max_tokens, "an integer >= 0, or None", high=2**31 - 1)
        _optional_integer(
            "logprobs", self.logprobs, f"an integer in 0..{MAX_TOP_LOGPROBS}", high=MAX_TOP_LOGPROBS
        )
        for name in ("penalize_prompt", "ignore_eos", "raw_logprobs"):
            _flag(name, getattr(self, name))
        if self.raw_logprobs and self.logprobs is None:
            raise OptionError("raw_logprobs", True, "together with logprobs only", "ask for logprobs too")
        _choice("order", self.order, ("standard", "llama.cpp"))
        object.__setattr__(self, "stop", _stops(self.stop))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by value: the mapping that keeps `logit_bias` from changing cannot be pickled."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return (partial(SamplingParams, **{**values, "logit_bias": dict(self.logit_bias)}), ())

    def chosen_seed(self) -> int:
        """Return the seed asked for, or a fresh one."""
        return secrets.randbits(63) if self.seed is None else self.seed


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParams:
    """
    How a model is loaded.

    Attributes:
        device: "auto", "cpu", or a family's first or Nth device: "cuda", "cuda:N", and so for metal,
            vulkan, rocm, sycl.
        devices: Several GPUs instead of `device`, each named as there: the model is split over them.
        split_mode: "layer" gives each device whole layers, "row" a part of every matrix (which not every
            family of devices can); for two devices or more.
        n_gpu_layers: Layers on the device; None means all of them (none on "cpu").
        n_ctx: Positions a sequence may use, prompt and answer together; None means the model's
            own context length, at most 8192.
        n_slots: Requests that run at once, 1..256; more of them wait. None means 16, or 32 with
            preset="throughput", and no more than there are cells.
        n_cells: KV cache cells shared by all running requests, n_ctx or more; None means n_ctx. When
            they run out the youngest request waits and is resumed later.
        n_batch: Tokens of one forward pass, 32..8192; a longer prompt is split.
        n_ubatch: Tokens that llama.cpp computes at once inside a pass, 32..n_batch; None means what
            `gguf-engine tune` found, or n_batch, on a CPU at most 256.
        n_threads: Threads of decode; None means what `gguf-engine tune` found, or the processors this
            process may use (one for a model under 8 MiB, which two make no faster).
        n_threads_batch: Threads of prefill, and of decode for several requests; None means what
            `gguf-engine tune` found, or n_threads, or the processors this process may use.
        adapt_threads: Compute with fewer threads while that is faster, as it is beside a busy neighbour;
            the numbers above are then the most. "exact" does so where the number of threads changes no
            bit of the result, which is everywhere but in decode for one request with flash attention
            over an f16 cache of more than 256 cells; "always" does so there too, so that a near tie may
            fall otherwise the next time; "never" does not. On the CPU only.
        kv_cache_type: "f16", "q8_0" or "q4_0".
        flash_attention: "auto", "on" or "off"; a quantized KV cache needs it. "auto" means what
            `gguf-engine tune` found; or off on a CPU with AVX-512 where heads of a size such as Phi-3's 96
            make it slower; or llama.cpp's own choice.
        use_mmap: Map the weights instead of reading them.
        repack: Let llama.cpp rearrange the weights for other CPU kernels: a second copy of them in
            memory, for faster decode and, depending on the processor, slower prefill. None means what
            `gguf-engine tune` found, or no.
        lora: LoRA adapters, GGUF files made for this model: PATH, or PATH=SCALE (1 if not said).
        draft: Guess the next tokens and verify several in one pass, where that is faster; no text changes.
            "lookup" guesses that an answer repeats what the prompt or the answer has; a model's name or
            file, as for `model`, lets that model guess: a small one with the same vocabulary.
        n_draft: Most tokens to guess at once, 1..127; fewer, or none, where more would not pay.
        preset: "latency" lets a prompt hold up running answers for 0.1 s at most and keeps little for
            later requests; "throughput" computes prompts in whole batches, keeps as much as there is room
            for, and runs more requests at once. None lies between the two. No preset changes a text.
        prefix_cache: A folder where system prompts are kept, computed, for this run and later ones; None
            for none. As private as the prompts, and to be trusted like the model file.
        prefix_cache_mb: Megabytes (10^6 bytes) of files in it, 1..1000000; those unused for longest are
            removed.
        tuned: Use what `gguf-engine tune` found for this model on this machine, where no value is given.
    """

    device: str = "auto"
    devices: tuple[str, ...] = ()
    split_mode: SplitMode = "layer"
    n_gpu_layers: int | None = None
    n_ctx: int | None = None
    n_slots: int | None = None
    n_cells: int | None = None
    n_batch: int = 512
    n_ubatch: int | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    adapt_threads: AdaptThreads = "exact"
    kv_cache_type: KVCacheType = "f16"
    flash_attention: FlashAttention = "auto"
    use_mmap: bool = True
    repack: bool | None = None
    lora: tuple[str, ...] = ()
    draft: str | None = None
    n_draft: int = N_DRAFT
    preset: PresetName | None = None
    prefix_cache: str | None = None
    prefix_cache_mb: int = PREFIX_CACHE_MB
    tuned: bool = True

    def __post_init__(self) -> None:
        _text("device", self.device, 'a name such as "auto", "cpu" or "cuda:0"')
        object.__setattr__(self, "devices", _names("devices", self.devices, 'names such as "cuda:0"'))
        if self.devices and self.device not in ("auto", self.devices[0]):
            raise OptionError("device", self.device, '"auto" beside devices', "name it among the devices")
        if len(set(self.devices)) != len(self.devices):
            raise OptionError("devices", self.devices, "each device once")
        _choice("split_mode", self.split_mode, ("layer", "row"))
        if self.split_mode != "layer" and len(self.devices) < 2:
            raise OptionError("split_mode", self.split_mode, '"layer" for a single device')
        _optional_integer("n_gpu_layers", self.n_gpu_layers, "an integer in 0..1024", high=1024)
        _optional_integer("n_ctx", self.n_ctx, "an integer in 8..16777216", low=8, high=2**24)
        _optional_integer("n_slots", self.n_slots, "an integer in 1..256, or None", low=1, high=256)
        _optional_integer("n_cells", self.n_cells, "an integer in 8..16777216", low=8, high=2**24)
        _integer("n_batch", self.n_batch, "an integer in 32..8192", low=32, high=8192)
        if self.n_slots is not None and self.n_slots > self.n_batch:
            raise OptionError("n_slots", self.n_slots, f"n_batch ({self.n_batch}) or fewer")
        allowed = f"an integer in 32..{self.n_batch} (n_batch), or None"
        _optional_integer("n_ubatch", self.n_ubatch, allowed, low=32, high=self.n_batch)
        for name in ("n_threads", "n_threads_batch"):
            _optional_integer(name, getattr(self, name), "an integer in 1..512, or None", low=1, high=512)
        _choice("kv_cache_type", self.kv_cache_type, ("f16", "q8_0", "q4_0"))
        _choice("flash_attention", self.flash_attention, ("auto", "on", "off"))
        if self.flash_attention == "off" and self.kv_cache_type != "f16":
            allowed = f'"auto" or "on" with kv_cache_type={self.kv_cache_type!r}'
            raise OptionError("flash_attention", self.flash_attention, allowed)
        if self.draft is not None:
            (draft,) = _names("draft", (self.draft,), '"lookup", a model\'s name or file, or None')
            object.__setattr__(self, "draft", draft)
        _integer("n_draft", self.n_draft, "an integer in 1..127", low=1, high=127)
        self._check_keeping()
        _choice("adapt_threads", self.adapt_threads, ("exact", "always", "never"))
        for name in ("use_mmap", "tuned"):
            _flag(name, getattr(self, name))
        if self.repack is not None:
            _flag("repack", self.repack)
        object.__setattr__(self, "lora", _names("lora", self.lora, "paths of GGUF files, or PATH=SCALE"))
        for text in self.lora:
            split_adapter(text)

    def _check_keeping(self) -> None:
        if self.preset is not None:
            _choice("preset", self.preset, ("latency", "throughput"))
        if self.prefix_cache is None and self.prefix_cache_mb != PREFIX_CACHE_MB:
            raise OptionError("prefix_cache_mb", self.prefix_cache_mb, "a value beside prefix_cache only")
        if self.draft is None and self.n_draft != N_DRAFT:
            raise OptionError("n_draft", self.n_draft, "a value beside draft only")
        if self.prefix_cache is not None:
            (folder,) = _names("prefix_cache", (self.prefix_cache,), "a folder's path, or None")
            object.__setattr__(self, "prefix_cache", folder)
        allowed = "an integer in 1..1000000, of megabytes"
        _integer("prefix_cache_mb", self.prefix_cache_mb, allowed, low=1, high=10**6)


def check_priority(priority: object) -> int:
    """
    Return a request's priority.

    Raises:
        OptionError: No integer in -100..100.
    """
    _integer("priority", priority, "an integer in -100..100", low=-100, high=100)
    assert isinstance(priority, int)
    return priority


def check_count(n: object) -> None:
    """Raise OptionError when `n` answers cannot be asked for."""
    _integer("n", n, "an integer in 1..256", low=1, high=256)


def split_adapter(text: str) -> tuple[str, float]:
    """
    Return the path and the scale of an adapter, 1 where the text has none.

    Raises:
        OptionError: The scale is no finite number in -100..100.
    """
    path, equals, scale = text.rpartition("=")
    if not equals or "/" in scale:
        return text, 1.0
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not path or not -100.0 <= value <= 100.0:
        raise OptionError("lora", text, "PATH, or PATH=SCALE with a number in -100..100")
    return path, value


_P = TypeVar("_P", SamplingParams, EngineParams)


def build_params(
    kind: type[_P],
    options: Mapping[str, Any],
    base: _P | None = None,
    beside: Sequence[str] = (),
) -> _P:
    """
    Return `kind` made of `options`, over `base` where one is given.

    Args:
        kind: SamplingParams or EngineParams.
        options: Values by name.
        base: Values where `options` says nothing.
        beside: Names that the caller takes too; one of them may be meant by a name that is wrong.

    Raises:
        OptionError: A name that `kind` does not have (with the ones it has), or a bad value.
    """
    if base is not None and not isinstance(base, kind):
        raise OptionError("params", base, f"{kind.__name__} or None", "pass single options by name")
    names: list[str] = [each.name for each in fields(kind)]
    for name, value in options.items():
        if name not in names:
            raise _unknown(name, value, [*beside, *names])
    values = {} if base is None else {name: getattr(base, name) for name in names}
    return kind(**{**values, **{name: _plain(value) for name, value in options.items()}})


def _unknown(name: str, value: object, known: list[str]) -> OptionError:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    way_out = f"did you mean {near[0]!r}?" if near else f"remove {name}={value!r}"
    return OptionError("option", name, ", ".join(known), way_out)


def keywords(function: Callable[..., object]) -> list[str]:
    """Return the names of a function's keyword-only arguments."""
    from inspect import Parameter, signature

    found = signature(function).parameters.values()
    return [each.name for each in found if each.kind is Parameter.KEYWORD_ONLY]


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as the Python number it is; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _number(
    name: str,
    value: object,
    allowed: str,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
        raise OptionError(name, value, allowed)
    if value < low or value > high or not above < value < below:
        raise OptionError(name, value, allowed)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _integer(name: str, value: object, allowed: str, *, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionError(name, value, allowed)


def _optional_integer(name: str, value: object, allowed: str, *, high: int, low: int = 0) -> None:
    if value is not None:
        _integer(name, value, allowed, low=low, high=high)


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise OptionError(name, value, "True or False")


def _text(name: str, value: object, allowed: str) -> None:
    if not isinstance(value, str) or not value:
        raise OptionError(name, value, allowed)


def _names(name: str, value: object, allowed: str) -> tuple[str, ...]:
    """Return one or several texts or paths as a tuple of texts."""
    several = (value,) if isinstance(value, (str, PurePath)) else value
    if not isinstance(several, (tuple, list)) or len(several) > 64:
        raise OptionError(name, value, f"at most 64 {allowed}")
    for each in several:
        _text(name, str(each) if isinstance(each, PurePath) else each, allowed)
    return tuple(str(each) for each in several)


def _choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise OptionError(name, value, ", ".join(choices))


def _stops(stop: object) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    allowed = "non-empty strings, at most 64 of at most 4096 characters"
    if not isinstance(stops, (tuple, list)) or len(stops) > 64:
        raise OptionError("stop", stop, allowed)
    for text in stops:
        if not isinstance(text, str) or not 0 < len(text) <= 4096:
            raise OptionError("stop", text, allowed)
    return tuple(stops)


def _biases(bias: object) -> Mapping[int, float]:
    allowed = "a mapping of token ids (>= 0) to finite numbers or -inf"
    if not isinstance(bias, Mapping):
        raise OptionError("logit_bias", bias, allowed)
    for token_id, value in bias.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise OptionError("logit_bias", token_id, allowed)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise OptionError("logit_bias", value, allowed)
        if value != -math.inf and not _is_finite(value):
            raise OptionError("logit_bias", value, allowed)
    return MappingProxyType(dict(bias))
