"""
The meaning of every sampling option, in plain NumPy: float64, full sorts, no shortcut.

This is what the native sampler is held equal to, for any row, options and seed; it is never the fast
path. Ids are ranked by logit, equal ones by lower id. `weights` are probabilities times any positive
number: nothing is renormalised, a filter compares with the sum of what it was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gguf_engine.errors import SamplingError
from gguf_engine.params import SamplingParams

FloatRow = NDArray[np.float64]
LogitRow = NDArray[np.float32]
IntRow = NDArray[np.int64]

GREEDY_BELOW = 1e-7
_FLOAT_MAX = float(np.finfo(np.float32).max)
_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(x: int) -> int:
    """
    Return the output of a SplitMix64 generator in state x.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    x = (x + _GOLDEN) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def uniform(seed: int, index: int, round_: int = 0) -> float:
    """
    Return the number that draw `index` of a request uses, a multiple of 2^-53 in [0, 1).

    Args:
        round_: 0 for the first pick of the draw; later picks hash the number before them.
    """
    bits = splitmix64((splitmix64(seed) + index * _GOLDEN) & _MASK64)
    for _ in range(round_):
        bits = splitmix64(bits)
    return (bits >> 11) * 2.0**-53


def window(prompt_ids: Sequence[int], token_ids: Sequence[int], params: SamplingParams) -> list[int]:
    """Return the ids that the repeat penalty looks at: the last ones generated, perhaps the prompt's."""
    ids = [*prompt_ids, *token_ids] if params.penalize_prompt else list(token_ids)
    return ids if params.repeat_last_n < 0 else ids[max(0, len(ids) - params.repeat_last_n) :]


def apply_bias(row: LogitRow, bias: Mapping[int, float]) -> FloatRow:
    """Return the row in float64 with the biases added."""
    adjusted: FloatRow = row.astype(np.float64)
    for token_id, value in bias.items():
        adjusted[token_id] += value
    return adjusted


def apply_mask(row: FloatRow, mask: bytes) -> FloatRow:
    """Return the row with -inf where bit i % 8 of byte i // 8 is clear."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: len(row)]
    allowed: FloatRow = np.where(bits == 1, row, -np.inf)
    return allowed


def apply_repeat_penalty(row: FloatRow, ids: Sequence[int], penalty: float) -> FloatRow:
    """
    Return the row with each distinct id of ids made less likely: l / penalty if l > 0, else l * penalty.

    Source: CTRL, Keskar et al. 2019 (arXiv:1909.05858), section 4.1, in the form every engine uses.
    """
    adjusted: FloatRow = row.copy()
    for token_id in set(ids):
        value = float(adjusted[token_id])
        adjusted[token_id] = value / penalty if value > 0 else value * penalty
    return adjusted


def apply_counts(row: FloatRow, token_ids: Sequence[int], presence: float, frequency: float) -> FloatRow:
    """Return the row with frequency * c, and presence, subtracted from each id seen c > 0 times."""
    adjusted: FloatRow = row.copy()
    for token_id in set(token_ids):
        count = list(token_ids).count(token_id)
        adjusted[token_id] = float(adjusted[token_id]) - count * frequency - presence
    return adjusted


def adjust(
    row: LogitRow,
    params: SamplingParams,
    *,
    prompt_ids: Sequence[int] = (),
    token_ids: Sequence[int] = (),
    mask: bytes | None = None,
) -> LogitRow:
    """
    Return the row after bias, mask and penalties, rounded to float32 once.

    A finite logit stays finite unless a bias of -inf or the mask forbids it.

    Raises:
        SamplingError: The row holds NaN or +inf, or no id is left.
    """
    if np.isnan(row).any() or (row == np.inf).any():
        raise SamplingError("the row holds NaN or +inf")
    adjusted = apply_bias(row, params.logit_bias)
    if mask is not None:
        adjusted = apply_mask(adjusted, mask)
    finite = np.isfinite(adjusted)
    if not finite.any():
        raise SamplingError("no id is left: every logit is -inf after bias and mask")
    if params.repeat_penalty != 1.0:
        ids = window(prompt_ids, token_ids, params)
        adjusted = apply_repeat_penalty(adjusted, ids, params.repeat_penalty)
    adjusted = apply_counts(adjusted, token_ids, params.presence_penalty, params.frequency_penalty)
    adjusted[finite] = np.clip(adjusted[finite], -_FLOAT_MAX, _FLOAT_MAX)
    return adjusted.astype(np.float32)


def rank(row: LogitRow) -> IntRow:
    """Return the ids by descending logit, equal ones by ascending id."""
    ids: IntRow = np.argsort(-row, kind="stable")
    return ids


def weights_of(row: LogitRow, temperature: float) -> FloatRow:
    """Return exp((l - max) / temperature): 1 for the best id."""
    row64 = row.astype(np.float64)
    weights: FloatRow = np.exp((row64 - row64.max()) / temperature)
    return weights


def keep_top_k(weights: FloatRow, top_k: int) -> FloatRow:
    """Return the first top_k of ranked weights; 0 is off."""
    return weights[:top_k] if top_k > 0 else weights


def keep_top_p(weights: FloatRow, top_p: float) -> FloatRow:
    """
    Return the first of ranked weights whose sum reaches top_p of all; never none, and all at 1.

    An id is kept if the mass ranked before it is below top_p, so the one that reaches it is the last.

    Source: nucleus sampling, Holtzman et al. 2019 (arXiv:1904.09751).
    """
    if top_p == 1:
        return weights
    before = np.cumsum(weights) - weights
    kept: FloatRow = weights[before < top_p * weights.sum()]
    return kept


def keep_min_p(weights: FloatRow, min_p: float) -> FloatRow:
    """
    Return the ranked weights of at least min_p times the first; 0 is off.

    Source: min-p sampling, Nguyen et al. 2024 (arXiv:2407.01082).
    """
    kept: FloatRow = weights[weights >= min_p * weights[0]]
    return kept


def kept_ids(adjusted: LogitRow, params: SamplingParams) -> IntRow:
    """Return the ids that the filters leave, by rank; the best alone when greedy."""
    ids = rank(adjusted)
    if params.temperature < GREEDY_BELOW:
        return ids[:1]
    weights = weights_of(adjusted, _cut_temperature(params))[ids]
    weights = keep_top_k(weights, params.top_k)
    weights = keep_top_p(weights, params.top_p)
    weights = keep_min_p(weights, params.min_p)
    return ids[: len(weights)]


def probabilities(adjusted: LogitRow, params: SamplingParams) -> FloatRow:
    """
    Return the distribution that an id is drawn from.

    Args:
        adjusted: (n_vocab,) float32, as `adjust` returns it.

    Returns:
        (n_vocab,) float64, summing to 1, 0 for ids that the filters drop.
    """
    ids = kept_ids(adjusted, params)
    greedy = params.temperature < GREEDY_BELOW
    result: FloatRow = np.zeros(len(adjusted))
    result[ids] = 1.0 if greedy else weights_of(adjusted, params.temperature)[ids]
    result /= result.sum()
    return result


def log_probabilities(row: LogitRow, temperature: float = 1.0) -> FloatRow:
    """
    Return the natural logarithm of softmax(row / temperature), untruncated.

    The row is an adjusted one with the request's temperature (1 when that is greedy), or the model's
    own with 1 for `raw_logprobs`.
    """
    scaled: FloatRow = row.astype(np.float64) - float(row.max())
    scaled /= 1.0 if temperature < GREEDY_BELOW else temperature
    scaled -= math.log(np.exp(scaled).sum())
    return scaled


def draw(adjusted: LogitRow, params: SamplingParams, uniform_of: Callable[[int], float]) -> int:
    """
    Draw an id by the procedure that every implementation shares.

    Pick from the ids that top-k leaves, by cumulative weight in the order of ids. An id that top-p or
    min-p drops is refused, and the next pick is from what ranks before it, with the next uniform.
    The accepted id is distributed as `probabilities` says, because the filters keep a prefix of the
    ranking and every pick is proportional to weight.

    Args:
        adjusted: (n_vocab,) float32, as `adjust` returns it.
        uniform_of: round -> number in [0, 1), for a request partial(uniform, seed, len(token_ids)).
    """
    ranked = rank(adjusted)
    if params.temperature < GREEDY_BELOW:
        return int(ranked[0])
    place: IntRow = np.empty_like(ranked)  # of each id in the ranking
    place[ranked] = np.arange(len(ranked))
    weights = weights_of(adjusted, params.temperature)
    n_kept = len(kept_ids(adjusted, params))
    n_left = params.top_k or len(ranked)
    for round_ in range(len(ranked)):
        cumulative = np.cumsum(np.where(place < n_left, weights, 0.0))
        target = uniform_of(round_) * cumulative[-1]
        token_id = int(np.searchsorted(cumulative, target, side="right"))
        if place[token_id] < n_kept:
            return token_id
        n_left = int(place[token_id])
    raise AssertionError("the best id is never refused")


def _cut_temperature(params: SamplingParams) -> float:
    return 1.0 if params.order == "llama.cpp" else params.temperature
