"""The corpus of the bundled model: its syllable count, poems and topics, and the tokenizer made of it."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import haiku_corpus as corpus  # noqa: E402 - tools/ is no package
import haiku_images as images  # noqa: E402
from haiku_tokenizer import Encoder, read_vocabulary, write_tokenizer  # noqa: E402

TOKENIZER_JSON = ROOT / "gguf_engine" / "data" / "tokenizer.json"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Tokenizer.from_file(str(TOKENIZER_JSON)))


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "moon stones breathe walked leaves wolves quilts clothes hour"),
        (2, "hockey river table wanted roses playing seeing quiet canyon lonely onions limestone pieces"),
        (3, "radio violin umbrella fireflies volcanoes homecoming melody photograph"),
        (4, "magnetism elevator geometry january democracy"),
        (5, "imaginary curiosity refrigerators"),
    ],
)
def test_syllables_agree_with_a_dictionary(count: int, words: str) -> None:
    assert {word: corpus.word_syllables(word) for word in words.split()} == dict.fromkeys(
        words.split(), count
    )


def test_a_phrase_counts_word_by_word() -> None:
    assert corpus.syllables("ice hockey at dusk,") == 1 + 2 + 1 + 1
    assert corpus.syllables("the neighbor's dog") == 1 + 2 + 1


def test_a_picture_a_digit_and_a_sign_count_one_each() -> None:
    assert corpus.syllables("🏒") == 1
    assert corpus.syllables("apollo 13") == 3 + 2
    assert corpus.syllables("俳句") == 2


def test_each_grammar_has_lines_of_its_length() -> None:
    for rows in (*images.SEASON_IMAGES.values(), *images.THEME_IMAGES.values()):
        assert len(corpus.lines(rows, 7)) >= 40
    for rows in (*images.SEASON_CLOSINGS.values(), images.CLOSINGS):
        assert len(corpus.lines(rows, 5)) >= 15


def test_a_frame_is_filed_under_its_own_syllables() -> None:
    for frames in (images.FRAMES, *images.SEASON_FRAMES.values()):
        for left, text in frames.items():
            for frame in text.split("|"):
                assert corpus.syllables(frame.replace("{t}", "")) == left, frame


def test_a_poem_on_a_topic_of_up_to_six_syllables_is_5_7_5() -> None:
    rng = Random(1)
    for _ in range(1000):
        topic = corpus.draw_topic(rng)
        poem = corpus.draw_poem(rng, topic)
        assert corpus.is_575(poem) or corpus.syllables(topic.text) > 6, poem


def test_a_poem_names_its_topic_once_and_never_after_a_line_break() -> None:
    rng = Random(2)
    for _ in range(1000):
        topic = corpus.draw_topic(rng)
        poem = corpus.draw_poem(rng, topic)
        assert poem.count("\n") == 2
        assert topic.text in poem
        assert f"\n{topic.text}" not in poem


def test_a_topic_has_the_same_ids_in_the_prompt_and_in_the_poem(encoder: Encoder) -> None:
    rng = Random(3)
    for _ in range(500):
        topic = corpus.draw_topic(rng)
        poem = encoder.text(corpus.draw_poem(rng, topic))
        wanted = encoder.text(topic.text)
        prompt = encoder.text(f"Write a haiku about {topic.text}.")
        assert prompt[-1 - len(wanted) : -1] == wanted
        assert any(poem[i : i + len(wanted)] == wanted for i in range(len(poem)))


def test_no_prompt_holds_a_held_out_topic() -> None:
    rng = Random(4)
    kept_out = [f" {topic.casefold()} " for topic in corpus.HELD_OUT + corpus.VALIDATION]
    asked = [
        turn.text for _ in range(5000) for turn in corpus.draw_conversation(rng) if turn.role != "assistant"
    ]
    prompts = "".join(f" {text.casefold().rstrip('.?!')} " for text in asked)
    assert [topic for topic in kept_out if topic in prompts] == []


def test_two_hundred_topics_are_held_out_and_none_is_listed() -> None:
    listed = {topic.text.casefold() for topic in corpus.LISTED + corpus.PLACES}
    assert len(set(corpus.HELD_OUT)) == 200
    assert not listed & {topic.casefold() for topic in corpus.HELD_OUT}
    assert not set(corpus.VALIDATION) & set(corpus.HELD_OUT)


def test_an_article_or_a_modifier_does_not_let_a_held_out_topic_in() -> None:
    assert corpus.is_kept_out("Gravel")
    assert corpus.is_kept_out("the old gravel")
    assert corpus.is_kept_out("second CHANCES in Rome")
    assert not corpus.is_kept_out("gravels")


def test_a_seed_gives_the_same_conversations() -> None:
    first, again = ([corpus.draw_conversation(Random(seed)) for seed in range(50)] for _ in range(2))
    assert first == again


def test_a_conversation_is_encoded_as_the_chat_template_is(encoder: Encoder) -> None:
    turns = [corpus.Turn("user", "Write a haiku about tea"), corpus.Turn("assistant", "tea at dusk")]
    ids, answers = encoder.conversation(turns)
    template = "<|user|>\nWrite a haiku about tea<|end|>\n<|assistant|>\ntea at dusk<|end|>\n"
    assert ids == encoder.tokenizer.encode(template, add_special_tokens=False).ids
    ((first, after),) = answers
    assert ids[:first] == encoder.prompt(turns[:1])
    assert ids[first:after] == [*encoder.text("tea at dusk"), encoder.end]


def test_pieces_hold_no_blank_but_at_their_start() -> None:
    vocabulary = read_vocabulary(TOKENIZER_JSON)
    assert len(set(vocabulary.pieces)) == len(vocabulary.pieces) == 2048
    assert [piece for piece in vocabulary.pieces if "▁" in piece[1:]] == []


def test_a_vocabulary_survives_being_written(tmp_path: Path) -> None:
    write_tokenizer(read_vocabulary(TOKENIZER_JSON), tmp_path / "tokenizer.json")
    written = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert written == json.loads(TOKENIZER_JSON.read_text(encoding="utf-8"))


def test_the_corpus_needs_no_torch() -> None:
    code = "import haiku_corpus, haiku_tokenizer, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tools").returncode == 0
