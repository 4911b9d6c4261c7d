"""The tokenizer of the haiku model: SPM-style BPE with byte fallback, in the form of Phi-3's."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from haiku_corpus import Turn, draw_conversation, draw_topic, spliced_word
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

CONTROL_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>")
N_FIXED = 3 + 256  # <unk>, <s>, </s> and the bytes
_ASCII = "".join(map(chr, range(33, 127)))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """
    The pieces by id: <unk>, <s>, </s>, 256 bytes, merged pieces, single characters, control tokens.

    The score of a merged piece is minus its rank, so that merging by score (llama.cpp) and by rank
    (tokenizers) agree. Types are GGUF's: 1 normal, 2 unknown, 3 control, 6 byte.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]

    def merges(self) -> list[tuple[str, str]]:
        """All splits of each piece into two pieces, best score of the whole first."""
        known = {piece: i for i, piece in enumerate(self.pieces) if self.types[i] == 1}
        order = sorted(
            (piece for piece in known if len(piece) > 1), key=lambda piece: -self.scores[known[piece]]
        )
        splits = ((piece[:cut], piece[cut:]) for piece in order for cut in range(1, len(piece)))
        return [(left, right) for left, right in splits if left in known and right in known]


def _texts(rng: Random, count: int) -> Iterator[str]:
    """Texts to learn merges from: conversations and bare topics, each after a space, as in use."""
    for _ in range(count):
        turns = draw_conversation(rng)
        yield from (" " + turn.text for turn in turns if turn.text.isascii())
        yield from (
            " " + text
            for text in (draw_topic(rng).text, draw_topic(rng).text, spliced_word(rng))
            if text.isascii()
        )


def _scored(pieces: list[str]) -> Vocabulary:
    """Give each piece, in the order of its id, its score and type."""
    n_control = len(CONTROL_TOKENS)
    n_learned = len(pieces) - N_FIXED - n_control
    scores = [0.0] * N_FIXED + [-float(rank) for rank in range(n_learned)] + [0.0] * n_control
    types = [2, 3, 3] + [6] * 256 + [1] * n_learned + [3] * n_control
    return Vocabulary(tuple(pieces), tuple(scores), tuple(types))


def learn_vocabulary(seed: int, size: int) -> Vocabulary:
    """
    Learn a vocabulary of `size` pieces from the corpus.

    Words are cut apart while learning, punctuation and digits too, so that no merge crosses a word: a topic
    has the same pieces wherever a space stands before it.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "removed"),
            pre_tokenizers.Metaspace(prepend_scheme="never", split=True),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    room = size - N_FIXED - len(CONTROL_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=[*_ASCII, "▁"], show_progress=False)
    learner.train_from_iterator(_texts(Random(f"tokenizer {seed}"), 30_000), trainer)
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    merged = [piece for piece, _ in learned if len(piece) > 1]
    single = [piece for piece, _ in learned if len(piece) == 1]
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return _scored([*fixed, *merged, *single, *CONTROL_TOKENS])


def write_tokenizer(vocabulary: Vocabulary, path: Path) -> None:
    """Write tokenizer.json as Phi-3's: a space put before, control tokens that eat the line break after."""
    first = len(vocabulary.pieces) - len(CONTROL_TOKENS)
    special = [(0, "<unk>", False), (1, "<s>", False), (2, "</s>", True)]
    special += [(first + i, text, text != "<|endoftext|>") for i, text in enumerate(CONTROL_TOKENS)]
    flags = {"single_word": False, "lstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": text, "rstrip": rstrip, **flags} for i, text, rstrip in special]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(vocabulary.pieces[:first])},
            "merges": [f"{left} {right}" for left, right in vocabulary.merges()],
        },
    }
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_vocabulary(path: Path) -> Vocabulary:
    """Read back what `write_tokenizer` wrote."""
    document = json.loads(path.read_text(encoding="utf-8"))
    vocab = document["model"]["vocab"]
    pieces = [*sorted(vocab, key=vocab.__getitem__), *CONTROL_TOKENS]
    return _scored(pieces)


def _id_of(tokenizer: Tokenizer, piece: str) -> int:
    """The id of a piece that must exist."""
    found = tokenizer.token_to_id(piece)
    if found is None:
        raise KeyError(piece)
    return int(found)


class Encoder:
    """Encodes conversations as the engine does: content apart from the control tokens, the ids joined."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.control = {text: _id_of(tokenizer, text) for text in (*CONTROL_TOKENS, "<0x0A>")}
        self.end = self.control["<|end|>"]

    def text(self, text: str) -> list[int]:
        """The ids of one content."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, turns: list[Turn]) -> list[int]:
        """The ids of a conversation whose answer is still to come."""
        ids = [
            i for turn in turns for i in (self.control[f"<|{turn.role}|>"], *self.text(turn.text), self.end)
        ]
        return [*ids, self.control["<|assistant|>"]]

    def conversation(self, turns: list[Turn]) -> tuple[list[int], list[tuple[int, int]]]:
        """
        Encode a whole conversation.

        Returns:
            Its ids, and for each answer the position of its first id and the one after its <|end|>.
        """
        ids: list[int] = []
        answers = []
        for turn in turns:
            content = self.text(turn.text)
            if turn.role == "raw":
                ids += content
            elif turn.role == "assistant" and turns[0].role == "raw":
                answers.append((len(ids), len(ids) + len(content) + 2))
                ids += [self.control["<0x0A>"], *content, self.end]
            else:
                first = len(ids) + 1
                ids += [self.control[f"<|{turn.role}|>"], *content, self.end]
                if turn.role == "assistant":
                    answers.append((first, len(ids)))
        return ids, answers
