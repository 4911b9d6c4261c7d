"""What to measure: the options of a run, and what one process of it does."""

from __future__ import annotations

from dataclasses import dataclass, field

from gguf_engine.bench.process import Peer
from gguf_engine.bench.record import Trial
from gguf_engine.errors import OptionError
from gguf_engine.params import MAX_SEED

FEW_TRIALS = 5
RANGES = {
    "threads": (1, 512),
    "depth": (0, 2**20),
    "concurrency": (1, 256),
    "trials": (2, 1000),
    "prompt-tokens": (16, 2**20),
    "tokens": (8, 2**20),
    "seed": (0, MAX_SEED),
}
"""Option -> the least and the most it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """
    What to measure.

    Attributes:
        devices: Names as for EngineParams.
        threads: Counts of compute threads; none means what the engine would take.
        depths: Ids in the KV cache before the prompt, each >= 0.
        concurrencies: Requests at once, each >= 1.
        n_trials: Measured rounds, 2..1000.
        n_prompt, n_tokens: Ids of a prompt and of an answer; None goes by the model's size.
        seed: Of the draws, 0..2^63-1.
        peers: Engines to compare with.
        neighbour: Run every case beside a busy process, too.
    """

    devices: tuple[str, ...] = ("auto",)
    threads: tuple[int, ...] = ()
    depths: tuple[int, ...] = (0,)
    concurrencies: tuple[int, ...] = (1,)
    n_trials: int = FEW_TRIALS
    n_prompt: int | None = None
    n_tokens: int | None = None
    seed: int = 1
    peers: tuple[Peer, ...] = ()
    neighbour: bool = False

    def __post_init__(self) -> None:
        given: dict[str, tuple[int | None, ...]] = {
            "threads": self.threads,
            "depth": self.depths,
            "concurrency": self.concurrencies,
            "trials": (self.n_trials,),
            "prompt-tokens": (self.n_prompt,),
            "tokens": (self.n_tokens,),
            "seed": (self.seed,),
        }
        for name, values in given.items():
            least, most = RANGES[name]
            for value in values:
                if value is not None and not least <= value <= most:
                    raise OptionError(f"--{name}", value, f"an integer in {least}..{most}")


@dataclass(slots=True, kw_only=True)
class Lane:
    """One engine on one device with so many threads: what one process runs in a round."""

    peer: Peer
    device: str
    n_threads: int
    neighbour: bool
    trials: dict[tuple[int, int], list[Trial]] = field(default_factory=dict)
    version: str = ""

    @property
    def name(self) -> str:
        """Return it for people."""
        company = ", busy neighbour" if self.neighbour else ""
        return f"{self.peer.name}, {self.device}, {self.n_threads} thread(s){company}"
