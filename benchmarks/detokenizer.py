"""
Microseconds a token from id to text, at 100, 1,000 and 4,000 tokens of one answer.

What bounds it: a table lookup and a call are about 0.1 us of Python; anything that decodes again what
it decoded before grows with the answer (quadratic in all) or pays a fixed window every time. The loop
of an engine costs milliseconds a token, so this is about staying invisible at long answers.

    python benchmarks/detokenizer.py [--record]

The methods take turns within each round, so that a busy machine slows all of them; figures are medians.
The table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import tokenizers
from common import finish, say
from tokenizers.decoders import DecodeStream

from gguf_engine.text.detokenizer import Detokenizer
from gguf_engine.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent
BUNDLED = ROOT.parent / "gguf_engine" / "data" / "tokenizer.json"
LENGTHS = (100, 1000, 4000)
N_ROUNDS = 7
SAMPLE = "The ice is quiet now and a puck slides over the blue line, don't you see? 🏒 é 冬"

Ids = Sequence[int]
Method = Callable[[Tokenizer, tokenizers.Tokenizer, Ids], str]


def ours(tokenizer: Tokenizer, _: tokenizers.Tokenizer, ids: Ids) -> str:
    """Push and flush."""
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(i) for i in ids]
    pieces.append(detokenizer.flush())
    return "".join(pieces)


def decode_everything(_: Tokenizer, library: tokenizers.Tokenizer, ids: Ids) -> str:
    """Decode all ids so far at each token, take what is new: the reference program's way."""
    text, so_far = "", []
    for i in ids:
        so_far.append(i)
        now = library.decode(so_far)
        if not now.endswith("\ufffd"):
            text += now[len(text) :]
    return text


def two_decodes(_: Tokenizer, library: tokenizers.Tokenizer, ids: Ids) -> str:
    """Decode a short window twice and take the difference: the way of vLLM and TGI."""
    pieces: list[str] = []
    first = done = 0
    for end in range(1, len(ids) + 1):
        before = library.decode(ids[first:done])
        after = library.decode(ids[first:end])
        if len(after) > len(before) and not after.endswith("\ufffd"):
            pieces.append(after[len(before) :])
            first, done = done, end
    return "".join(pieces)


def decode_stream(_: Tokenizer, library: tokenizers.Tokenizer, ids: Ids) -> str:
    """`tokenizers.DecodeStream`."""
    stream = DecodeStream(skip_special_tokens=True)
    return "".join(piece for i in ids if (piece := stream.step(library, i)))


METHODS: dict[str, Method] = {
    "ours": ours,
    "DecodeStream": decode_stream,
    "two decodes": two_decodes,
    "decode everything": decode_everything,
}


def large_metadata(n_pieces: int = 32_000) -> dict[str, object]:
    """
    Return a vocabulary of a SentencePiece model's size and shape, drawn with a fixed seed.

    Words of two to nine letters with and without the space mark; every prefix is a piece too, so that
    merges reach them.
    """
    rng = Random(0)
    letters = "etaoinshrdlucmwfgypbvkjxqz"
    pieces = dict.fromkeys(["▁", *letters, *letters.upper(), *".,!?'-:;()0123456789"])
    while len(pieces) < n_pieces - 259:
        word = rng.choice(("▁", "▁", "")) + "".join(
            rng.choices(letters, weights=range(26, 0, -1), k=rng.randint(2, 9))
        )
        pieces.update(dict.fromkeys(word[:end] for end in range(1, len(word) + 1)))
    ordered = sorted(list(pieces)[: n_pieces - 259], key=lambda piece: (len(piece) == 1, len(piece)))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *ordered],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(ordered))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(ordered),
    }


def _ids(tokenizer: Tokenizer, n_ids: int) -> list[int]:
    """Encode English-like text with a few characters that only bytes can spell."""
    words = SAMPLE.split()
    rng = Random(1)
    ids: list[int] = []
    while len(ids) < n_ids:
        ids = tokenizer.encode(" ".join(rng.choices(words, k=max(50, n_ids))), add_bos=False)
    return ids[:n_ids]


def measure(tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """Return method -> number of tokens -> median microseconds a token."""
    library = tokenizer.library
    seconds: dict[tuple[str, int], list[float]] = {}
    for n_ids in LENGTHS:
        ids = _ids(tokenizer, n_ids)
        expected = ours(tokenizer, library, ids)
        for _ in range(N_ROUNDS):
            for name, method in METHODS.items():
                # Short runs are repeated, so that the clock sees at least some hundred tokens.
                n_runs = max(1, 1000 // n_ids) if name != "decode everything" else 1
                start = time.perf_counter()
                for _ in range(n_runs):
                    text = method(tokenizer, library, ids)
                seconds.setdefault((name, n_ids), []).append((time.perf_counter() - start) / n_runs)
                assert text.rstrip("\ufffd") == expected.rstrip("\ufffd"), name
    return {
        name: {str(n): round(statistics.median(seconds[name, n]) / n * 1e6, 3) for n in LENGTHS}
        for name in METHODS
    }


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description="Microseconds a token from id to text.")
    parser.add_argument("--record", action="store_true")
    record = parser.parse_args().record
    vocabularies = {"32k pieces": Tokenizer.from_metadata(large_metadata())}
    if BUNDLED.is_file():
        vocabularies["haiku"] = Tokenizer.from_file(BUNDLED)
    us_per_token = {name: measure(tokenizer) for name, tokenizer in vocabularies.items()}
    for vocabulary, rows in us_per_token.items():
        say(f"{vocabulary:20}" + "".join(f"{n:>10}" for n in LENGTHS))
        for name, row in rows.items():
            say(f"  {name:18}" + "".join(f"{value:10.2f}" for value in row.values()))
    finish("detokenizer", {"us_per_token": us_per_token}, record)


if __name__ == "__main__":
    main()
