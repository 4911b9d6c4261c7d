"""
Tokens/s with guesses at the next ids against without: a copy with one word changed, and nothing to copy.

What bounds it: a pass over n rows costs more than one over 1 row and less than n of them, the less the
more of its time is reading weights. So guesses pay by what they cost here and by how many are right; the
engine measures both. Text is the same whatever is guessed, and checked to be.

No model that is small enough for a benchmark copies a text when told to. So what the model says is fixed:
its passes are computed as they are, guesses and all, and then one logit of each row is raised. Guesses that
do not fit are found out and taken back as always; no guess is spared its row.

    python benchmarks/speculation.py [--model PATH] [--variants none,lookup] [--tokens N] [--rounds N]
        [--threads N] [--record]

Variants: none; lookup (`draft="lookup"`); a draft model with the passes of the haiku model that is always
right, and one that never is. They take turns within each round; figures are medians of tokens/s after
the first. The table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import finish, quartiles, say

from gguf_engine import LLM
from gguf_engine.backend.base import Batch, Rows
from gguf_engine.backend.llama import LlamaBackend
from gguf_engine.engine.speculative import DraftMaker
from gguf_engine.loader.resolve import resolve_model
from gguf_engine.params import EngineParams
from gguf_engine.text.tokenizer import Tokenizer

N_DRAFT = EngineParams().n_draft
TEXT = """\
The harbour lies at the end of a long street that falls towards the water in wide steps. In the morning \
the boats come back, and the men who own them stand on the wall and count the boxes before they are \
carried up to the hall. Nobody speaks much while that is done. A boy writes the numbers on a board, and \
when the last box is up he adds them and calls the sum across the yard, so that the women at the tables \
know how long they will be at work. By noon the tables have been washed, the hall is shut, and gulls \
walk where the boxes stood. In summer visitors come to see this, and they are told that it was done the \
same way a hundred years ago, which is true except for the ice. There was none then. What was not sold \
by evening was salted, and the smell of it hung over the lower houses until the first storms of October \
washed the yard and the street and the boats alike. The old people say that they miss it. The young ones \
look at each other when they hear that, and say nothing at all.
"""
OTHER = """\
A clock that loses four minutes a day can be mended by anyone with patience and a small screwdriver. \
First find out whether it loses them evenly: set it by the radio, write down what it shows every three \
hours, and draw the points on squared paper. If they lie on a line, the pendulum is too long, and half a \
turn of the nut beneath the bob will shorten it enough. If they do not, look for dirt. Oil thickens with \
age, and a wheel that sticks in one place only will slow the train once in each of its turns, which \
shows as waves. Take the movement out, wash every part in petrol, dry it on a cloth without fluff and \
oil the pivots again with the point of a needle. Never oil the teeth. A drop that creeps along a tooth \
gathers dust and becomes a paste that grinds brass as well as any file, and the repair that follows \
costs more than the clock did when it was new. Afterwards let it run for a week before you judge it, \
because metal that was bent or heated needs some days until it rests again.
"""
Answers = dict[str, list[int]]


class Forced(LlamaBackend):
    """A model that says what stands in `script`, which the benchmark fills; its passes are its own."""

    def __init__(self, path: Path, params: EngineParams, script: list[int]) -> None:
        super().__init__(path, params)
        self._script = script

    def forward(self, batch: Batch) -> Rows:
        """See Backend."""
        rows = super().forward(batch)
        positions = [batch.positions[i] for i in range(len(batch)) if batch.outputs[i]]
        for row, position in zip(rows, positions, strict=False):
            if position + 1 < len(self._script):
                row[self._script[position + 1]] += 1000.0
        return rows


def load(names: list[str], path: Path, params: EngineParams, script: list[int]) -> dict[str, LLM]:
    """Return the same model with each way to guess."""
    haiku = resolve_model("haiku").weights
    tokenizer = Tokenizer.from_file(haiku.with_name("tokenizer.json"))
    right: Callable[..., Any] = partial(Forced, haiku, params, script)
    wrong: Callable[..., Any] = partial(LlamaBackend, haiku, params)
    drafts = {
        "none": None,
        "lookup": DraftMaker(n_max=N_DRAFT),
        "right": DraftMaker(n_max=N_DRAFT, make_backend=right),
        "wrong": DraftMaker(n_max=N_DRAFT, make_backend=wrong),
    }
    return {
        name: LLM(partial(Forced, path, params, script), tokenizer, draft=draft)
        for name, draft in drafts.items()
        if name in names
    }


def main() -> None:
    """Measure each case and variant, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="haiku", help="haiku, or a .gguf file with 2,048 tokens or more")
    parser.add_argument("--variants", default="none,lookup,right,wrong")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    path = resolve_model(args.model).weights
    params = EngineParams(device="cpu", n_ctx=2048, n_slots=1, n_threads=args.threads)
    script: list[int] = []
    models = load(args.variants.split(","), path, params, script)
    tokenizer = models["none"].tokenizer
    prompt = tokenizer.encode(TEXT + "\nWrite this again, with quay for wall.\n")
    changed = tokenizer.encode(TEXT.replace("wall", "quay"))[: args.tokens]
    cases = {"copy": changed, "nothing": tokenizer.encode(OTHER)[: args.tokens]}
    results: dict[str, Any] = {}
    for case, answer in cases.items():
        script[:] = prompt + answer
        rates: dict[str, list[float]] = {name: [] for name in models}
        shares: dict[str, float] = {}
        for round_ in range(args.rounds + 1):
            for name, llm in models.items():
                done = llm.generate(
                    prompt, max_tokens=len(answer), temperature=0.0, repeat_penalty=1.0, ignore_eos=True
                )
                assert list(done.token_ids) == answer, f"{name} changed the text"
                if round_:  # the first round warms up
                    rates[name].append(done.timings.decode_tokens_per_s)
                shares[name] = done.timings.n_accepted / max(1, done.timings.n_drafted)
        none = quartiles(rates["none"])
        results[case] = {
            name: {
                **quartiles(rates[name]),
                "of_none": quartiles(rates[name])["median"] / none["median"],
                "accepted_of_drafted": shares[name],
            }
            for name in models
        }
    for llm in models.values():
        llm.close()
    say(f"{'case':>10}{'guesses':>10}{'tokens/s':>10}{'of none':>9}{'accepted':>10}")
    for case, row in results.items():
        for name, each in row.items():
            share = each["accepted_of_drafted"]
            say(f"{case:>10}{name:>10}{each['median']:10.1f}{each['of_none']:9.2f}{share:10.0%}")
    model = {"model": path.name, "bytes": path.stat().st_size, "n_threads": args.threads}
    finish(
        "speculation",
        {**model, "n_prompt": len(prompt), "n_tokens": args.tokens, "cases": results},
        args.record,
    )


if __name__ == "__main__":
    main()
