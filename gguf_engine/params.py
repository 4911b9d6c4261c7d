"""The options of a request and of an engine: frozen, validated once, the only place with defaults."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from gguf_engine.errors import OptionError

SamplingOrder = Literal["standard", "llama.cpp"]
KVCacheType = Literal["f16", "q8_0", "q4_0"]
FlashAttention = Literal["auto", "on", "off"]

MAX_TOP_LOGPROBS = 64
MAX_SEED = 2**63 - 1


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
        n_gpu_layers: Layers on the device; None means all of them (none on "cpu").
        n_ctx: Positions a sequence may use, prompt and answer together; None means the model's
            own context length, at most 8192.
        n_slots: Requests that run at once, 1..256; more of them wait.
        n_cells: KV cache cells shared by all running requests, n_ctx or more; None means n_ctx. When
            they run out the youngest request waits and is resumed later.
        n_batch: Tokens of one forward pass, 32..8192; a longer prompt is split.
        n_threads: Threads of decode; None means the processors this process may use.
        n_threads_batch: Threads of prefill; None means as n_threads.
        kv_cache_type: "f16", "q8_0" or "q4_0".
        flash_attention: "auto", "on" or "off"; a quantized KV cache needs it.
        use_mmap: Map the weights instead of reading them.
        repack: Let llama.cpp rearrange the weights for other CPU kernels: a second copy of them in
            memory, for faster decode and, depending on the processor, slower prefill.
    """

    device: str = "auto"
    n_gpu_layers: int | None = None
    n_ctx: int | None = None
    n_slots: int = 8
    n_cells: int | None = None
    n_batch: int = 512
    n_threads: int | None = None
    n_threads_batch: int | None = None
    kv_cache_type: KVCacheType = "f16"
    flash_attention: FlashAttention = "auto"
    use_mmap: bool = True
    repack: bool = False

    def __post_init__(self) -> None:
        _text("device", self.device, 'a name such as "auto", "cpu" or "cuda:0"')
        _optional_integer("n_gpu_layers", self.n_gpu_layers, "an integer in 0..1024", high=1024)
        _optional_integer("n_ctx", self.n_ctx, "an integer in 8..16777216", low=8, high=2**24)
        _integer("n_slots", self.n_slots, "an integer in 1..256", low=1, high=256)
        _optional_integer("n_cells", self.n_cells, "an integer in 8..16777216", low=8, high=2**24)
        _integer("n_batch", self.n_batch, "an integer in 32..8192", low=32, high=8192)
        if self.n_slots > self.n_batch:
            raise OptionError("n_slots", self.n_slots, f"n_batch ({self.n_batch}) or fewer")
        for name in ("n_threads", "n_threads_batch"):
            _optional_integer(name, getattr(self, name), "an integer in 1..512, or None", low=1, high=512)
        _choice("kv_cache_type", self.kv_cache_type, ("f16", "q8_0", "q4_0"))
        _choice("flash_attention", self.flash_attention, ("auto", "on", "off"))
        if self.flash_attention == "off" and self.kv_cache_type != "f16":
            allowed = f'"auto" or "on" with kv_cache_type={self.kv_cache_type!r}'
            raise OptionError("flash_attention", self.flash_attention, allowed)
        for name in ("use_mmap", "repack"):
            _flag(name, getattr(self, name))


_P = TypeVar("_P", SamplingParams, EngineParams)


def build_params(kind: type[_P], options: Mapping[str, Any], base: _P | None = None) -> _P:
    """
    Return `kind` made of `options`, over `base` where one is given.

    Raises:
        OptionError: A name that `kind` does not have (with the ones it has), or a bad value.
    """
    if base is not None and not isinstance(base, kind):
        raise OptionError("params", base, f"{kind.__name__} or None", "pass single options by name")
    names = [f.name for f in fields(kind)]
    for name, value in options.items():
        if name not in names:
            raise OptionError("option", name, ", ".join(names), f"remove {name}={value!r}")
    values = {} if base is None else {name: getattr(base, name) for name in names}
    return kind(**{**values, **{name: _plain(value) for name, value in options.items()}})


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
