"""What every case computes: prompts of exact lengths, made of a text that is the same everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from gguf_engine.bench.record import RecordError, Workload
from gguf_engine.text.tokenizer import Tokenizer

SAMPLING = {"temperature": 1.0, "min_p": 0.1, "repeat_penalty": 1.2, "repeat_last_n": 64}
N_FIXED = 96
SMALL_BYTES = 2**28  # of weights: below it a token takes a millisecond or so, and more of them are needed

_PASSAGE = """
The rain came early to the valley that year, and the river rose until it touched the lowest stones of
the old bridge. Every morning the miller walked down to look at the water, counted the stones that were
still dry, and wrote the number into a small brown book. He had done so for thirty years, as his father
had before him, and the book was the fourth of its kind. On the first page stood a rule in his father's
hand: write what you see, not what you fear. In the village people said that the mill would be the first
house to go, and that the miller knew it. But when they asked him he only opened the book and read the
number out. Five stones on Monday. Four on Tuesday, though the rain had stopped at noon. Four again on
Wednesday, and a branch of an alder with all its leaves caught between the second pillar and the third.
A girl who had come to live with her aunt asked why he did not measure with a rod, as the engineers did
at the dam. A rod would be better, he said, if I had begun with a rod. Now the stones know more than the
rod would: they remember the spring when the ice came down, and the summer in which one could cross the
ford in dry shoes. She thought about it, and the next day she came with a rod all the same, painted in
red and white, and drove it into the bank beside the bridge. From then on there were two columns in the
book. By autumn both of them could be read, and when the engineers lost their own figures in a fire it
was the brown book that told them how high to build.
"""
_FIXED = """
A lighthouse is a simple machine for saying one thing over and over. The lamp turns, the lens gathers
what the lamp gives, and far away somebody who sees nothing else sees that. Its keepers were chosen for
patience rather than for courage. They trimmed the wick, polished the glass, wound the clockwork every
four hours, and wrote the weather down. Most nights nothing happened at all, and that was the point of
it: nothing happened to the ships, because each night somebody had climbed the stairs. When the lamps
became electric the stairs remained, and for some years the keepers did too, to watch a light that no
longer needed them. One of them is said to have gone on winding the old clockwork until he retired, so
that he would hear if it ever stopped.
"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text and the ids that it encodes to."""

    text: str
    ids: list[int]


class Prompts:
    """
    Makes prompts: the same for the same vocabulary, on every machine.

    Args:
        tokenizer: Of the model.
        n_prompt: Ids of a prompt, beyond the depth.
        n_tokens: Ids of an answer.
        seed: Of the draws.
    """

    def __init__(self, tokenizer: Tokenizer, n_prompt: int, n_tokens: int, seed: int) -> None:
        self.n_prompt, self.n_tokens, self.seed = n_prompt, n_tokens, seed
        self._tokenizer = tokenizer
        self.fixed = self._exactly(_FIXED.split(), N_FIXED).ids

    def of(self, depth: int, stream: int) -> Prompt:
        """Return the prompt of a stream; no two begin alike, so that no kept prefix serves another."""
        words = _PASSAGE.split()
        start = (37 * stream + 11 * (depth % 23)) % len(words)
        return self._exactly(words[start:] + words[:start], depth + self.n_prompt)

    def short(self) -> Prompt:
        """Return a prompt to warm up with, that begins like no other."""
        return self._exactly(_FIXED.split(), 16)

    def _exactly(self, words: Sequence[str], n: int) -> Prompt:
        encode = self._tokenizer.encode
        text, n_words = " ".join(words), len(words)
        while len(encode(text)) < n:
            text += " " + text
        # The shortest beginning that reaches n, by halving: more words never make fewer ids.
        parts, low, high = text.split(), 0, len(text.split())
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if len(encode(" ".join(parts[:middle]))) < n else (low, middle)
        text = " ".join(parts[:low])
        while len(encode(text)) > n:
            text = text[:-1]
        for _ in range(n):
            if len(encode(text)) == n:
                return Prompt(text, encode(text))
            text += " a"
        raise RecordError(f"no text of {n_words} words makes exactly {n} ids with this model's tokenizer")

    def workload(self) -> Workload:
        """Return what a record says of it."""
        return Workload(
            prompt_sha256=_digest(self.of(0, 0).ids),
            n_prompt=self.n_prompt,
            n_tokens=self.n_tokens,
            seed=self.seed,
            sampling=dict(SAMPLING),
            fixed_sha256=_digest(self.fixed),
            n_fixed=len(self.fixed),
        )


def default_lengths(weight_bytes: int) -> tuple[int, int]:
    """Return ids of a prompt and of an answer: by the model alone, so that two machines agree."""
    return (512, 256) if weight_bytes < SMALL_BYTES else (128, 64)


def _digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
