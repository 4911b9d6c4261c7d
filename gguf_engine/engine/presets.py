"""
Presets: how much an engine keeps for requests to come, and how long a prompt may hold up running streams.

Text does not depend on any of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from gguf_engine.params import PresetName

# A smaller part of a prompt costs nearly as long: a pass reads all weights once, however few its rows.
MIN_CHUNK = 16
# llama.cpp's attention on a CPU takes so many ids of a prompt together, and fewer one by one.
TILE = 64
FIRST_CHUNK = TILE  # before anything was measured
_N_SAMPLES = 5
# Without flash attention every cell up to the last one in use costs every pass a quarter of what a cell of
# the request's own costs with it: three times as many idle ones as its own eat the gain up, and a short
# request pays for long ones that may never be asked for again. Passes of one answer do not count as long.
IDLE_PASSES = 64


@dataclass(frozen=True, slots=True)
class Preset:
    """
    What a preset decides.

    Attributes:
        pass_s: How long a forward pass that continues answers may take because of the prompts in it;
            None for no limit but n_batch.
        idle_share: Share of all KV cells that ended requests may keep for later ones.
    """

    pass_s: float | None
    idle_share: float


PRESETS: dict[PresetName | None, Preset] = {
    "latency": Preset(pass_s=0.1, idle_share=0.25),
    None: Preset(pass_s=0.3, idle_share=1.0),
    "throughput": Preset(pass_s=None, idle_share=1.0),
}


class PrefillPace:
    """
    How many ids of prompts go into a pass beside running answers, by what passes have taken so far.

    Pure: it is told how long they took, and has no clock.

    Args:
        pass_s: See Preset.
        n_batch: Most ids of a pass.
    """

    def __init__(self, pass_s: float | None, n_batch: int) -> None:
        self._pass_s, self._n_batch = pass_s, n_batch
        self._seconds_per_id: deque[float] = deque(maxlen=_N_SAMPLES)

    @property
    def n_ids(self) -> int:
        """Ids for the next pass, 1..n_batch."""
        if self._pass_s is None:
            return self._n_batch
        if not self._seconds_per_id:
            return min(FIRST_CHUNK, self._n_batch)
        # A machine that has just become slow counts at once, one that has become fast with time.
        seconds_per_id = max(median(self._seconds_per_id), self._seconds_per_id[-1])
        n_ids = max(MIN_CHUNK, int(self._pass_s / seconds_per_id))
        return min(n_ids if n_ids < TILE else n_ids // TILE * TILE, self._n_batch)

    def record(self, n_ids: int, seconds: float) -> None:
        """Learn that a pass over `n_ids`, parts of prompts among them, took so long."""
        # Of few ids nearly all the time is the weights', and says little of more.
        if n_ids >= MIN_CHUNK and seconds > 0:
            self._seconds_per_id.append(seconds / n_ids)
