"""Request: what is asked of an engine, before it is a sequence inside one. It can cross to a process."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gguf_engine.engine.sequence import Deliver, Sequence
from gguf_engine.params import MAX_SEED, SamplingParams, check_count
from gguf_engine.sampling.sampler import prepare
from gguf_engine.text.detokenizer import Detokenizer
from gguf_engine.text.stops import StopMatcher

if TYPE_CHECKING:
    from gguf_engine.engine.speculative import Proposer
    from gguf_engine.text.constraint import Constraint
    from gguf_engine.text.pieces import PieceTable
    from gguf_engine.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """
    One request; everything in it has been checked.

    Attributes:
        prompt_ids: At least one id.
        params: Its options; `seed` is the one to use, whatever `params.seed` says.
        end_ids: Ids that end it.
        n_vocab: Length of a logits row.
        continues: The answer goes on from a text, so the space before its first word is kept.
        constraint: Which ids may come next; None allows all.
        proposer: Guesses at the next ids; None for one id a pass.
        priority: Requests of a higher one come first.
        n_keep: So many first ids are a prefix that others will have too; 0 for none.
        whole: Nobody reads before the end, so its pieces come in few parts.
    """

    prompt_ids: array[int]
    params: SamplingParams
    seed: int
    end_ids: frozenset[int]
    n_vocab: int
    continues: bool = False
    constraint: Constraint | None = None
    proposer: Proposer | None = None
    priority: int = 0
    n_keep: int = 0
    whole: bool = False

    def repeated(self, n: int) -> list[Request]:
        """
        Return `n` requests for the same prompt, the seed counted up.

        Raises:
            OptionError: `n` is no integer in 1..256.
        """
        check_count(n)
        return [replace(self, seed=(self.seed + i) % (MAX_SEED + 1)) for i in range(n)]

    def sequence(self, vocabulary: Tokenizer | PieceTable, deliver: Deliver) -> Sequence:
        """
        Return the sequence that an engine runs.

        Args:
            vocabulary: What the ids stand for.
            deliver: Takes its pieces, some at a time.
        """
        return Sequence(
            prompt_ids=self.prompt_ids,
            params=self.params,
            seed=self.seed,
            options=prepare(self.params, self.seed, self.n_vocab),
            detokenizer=Detokenizer(vocabulary, continues=self.continues),
            stops=StopMatcher(self.params.stop) if self.params.stop else None,
            end_ids=self.end_ids,
            deliver=deliver,
            constraint=self.constraint,
            proposer=self.proposer,
            priority=self.priority,
            n_keep=self.n_keep,
            whole=self.whole,
        )
