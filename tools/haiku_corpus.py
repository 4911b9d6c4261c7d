"""
The corpus of the bundled haiku model: topics, poems of five, seven and five syllables, conversations.

Everything is drawn from a `random.Random`: a seed gives the same corpus on every machine. No PyTorch here.
"""

import itertools
import re
from dataclasses import dataclass
from functools import cache
from random import Random

import haiku_images as images
import haiku_words as words

SEASONS = tuple(images.SEASON_IMAGES)
LINE_SYLLABLES = (5, 7, 5)

_SYLLABLES = {word: count for count, text in words.SYLLABLES.items() for word in text.split()}
_COMPOUND = re.compile(rf"({'|'.join(words.SILENT_E.split())})(?=[b-df-hj-np-tvwz])(.{{3,}})")
_HIATUS = re.compile(
    r"[aeiou]ing|(?<![aeiou])ying|iu|i[ao](?!n|us)|(?<![tscg])ia|(?<![tscg])io|eo(?!n|u)|ua(?!r)|uou|ism\b|thm\b"
)
_SILENT_END = re.compile(r"[^aeiouylr]e$|[^aeiouy][aeiouy]+re$|[aeiouy]le$|[aeiou][aeiou]le$")
_SILENT_ED_ES = re.compile(r"[aeiouy][^aeiouy]*[^aeiouytd]ed$|[^aeiouyszxgcl]es$|[aeiouy]les$")
_SOUNDED = re.compile(r"(ch|sh|[^aeiouy]l)es$|[^aeiouylr]led$")
_SILENT_INSIDE = re.compile(r"[aeiouy][^aeiouy]e(ly|ment|ful|less|ness|ments)$")
_SMALL_WORDS = frozenset({"the", "a", "in", "on", "of", "and"})
_VOWELS = "aeiouyàáâãäåæèéêëìíîïòóôõöøùúûüý"


@cache
def word_syllables(word: str) -> int:
    """
    Count the syllables of one lower-case word by rule: groups of vowels, silent e, hiatus; at least 1.

    Source: the usual heuristic for English, with a list of exceptions. Of a script without vowel letters
    each sign counts one, and so does a picture.
    """
    if word in _SYLLABLES:
        return _SYLLABLES[word]
    if not re.search(r"[a-zà-ÿ]", word):
        return max(1, len(re.findall(r"\w", word)))
    if compound := _COMPOUND.fullmatch(word):
        return word_syllables(compound[1]) + word_syllables(compound[2])
    stem = re.sub(r"(?:^|(?<=[aeiou]))y(?=[aeiou])", "j", word.replace("qu", "q"))
    groups = len(re.findall(rf"[{_VOWELS}]+", stem)) + len(_HIATUS.findall(stem))
    if _SILENT_END.search(stem) or (_SILENT_ED_ES.search(stem) and not _SOUNDED.search(stem)):
        groups -= 1
    if _SILENT_INSIDE.search(stem):
        groups -= 1
    return max(1, groups)


def syllables(text: str) -> int:
    """Count the syllables of a phrase, word by word; a number counts one a digit."""
    found = re.findall(r"[^\W_]+(?:'[^\W_]+)?|[\U0001F000-\U0001FFFF\u2600-\u27BF]", text.lower())
    return sum(map(word_syllables, found))


def is_575(poem: str) -> bool:
    """Say whether a poem has three lines of five, seven and five syllables."""
    return tuple(syllables(line) for line in poem.strip().split("\n")) == LINE_SYLLABLES


@cache
def lines(rows: str, count: int) -> tuple[str, ...]:
    """Write out the rows of a line grammar and keep the lines of `count` syllables."""
    written = []
    for row in rows.split(";"):
        slots = [words.words_of(slot, "|") for slot in row.split("/")]
        written += [
            text for choice in itertools.product(*slots) if syllables(text := " ".join(choice)) == count
        ]
    return tuple(written)


@dataclass(frozen=True, slots=True)
class Topic:
    """What a poem is asked about, in the prompt's spelling; its theme picks images (None: a season's)."""

    text: str
    theme: str | None = None


LISTED = tuple(
    Topic(text, theme) for theme, listed in words.TOPICS.items() for text in words.words_of(listed)
)
PLACES = tuple(Topic(text, "road") for text in words.words_of(words.PLACES))
HELD_OUT = tuple(words.words_of(words.HELD_OUT))
VALIDATION = tuple(words.words_of(words.VALIDATION))
MODIFIERS = tuple(words.words_of(words.MODIFIERS))
_EXOTIC = words.words_of(words.EXOTIC, "|")
_REAL_WORDS = sorted(
    {word for topic in LISTED for word in topic.text.split() if len(word) > 3 and word.isalpha()}
)
_ARTICLES = ("a", "an", "the")


def _bare(text: str) -> tuple[str, ...]:
    """The words of a topic in lower case, without its article."""
    parts = text.casefold().split()
    return tuple(parts[1:] if len(parts) > 1 and parts[0] in _ARTICLES else parts)


_KEPT_OUT = frozenset(_bare(text) for text in HELD_OUT + VALIDATION)


def is_kept_out(text: str) -> bool:
    """Say whether a text holds a held-out or a validation topic as a run of its words."""
    parts = text.casefold().split()
    return any(
        tuple(parts[i:j]) in _KEPT_OUT for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)
    )


def made_up_word(rng: Random) -> str:
    """Draw a word that English might have: one to three syllables, perhaps an ending."""
    onsets, nuclei, codas = (text.split() for text in (words.ONSETS, words.NUCLEI, words.CODAS))
    word = ""
    for _ in range(rng.choices((1, 2, 3), (35, 45, 20))[0]):
        word += (rng.choice(onsets) if rng.random() < 0.9 else "") + rng.choice(nuclei)
        word += rng.choice(codas) if rng.random() < 0.55 else ""
    if rng.random() < 0.35 or len(word) < 3:
        word += rng.choice(words.ENDINGS.split())
    return word


def spliced_word(rng: Random) -> str:
    """Draw the head of one real word and the tail of another, so that pieces meet that never met."""
    head, tail = rng.sample(_REAL_WORDS, 2)
    return head[: rng.randint(2, len(head))] + tail[rng.randint(0, len(tail) - 2) :]


def _phrase(rng: Random) -> Topic:
    """Draw a topic of several words, real or not."""
    listed = rng.choice(LISTED)
    noun, theme = " ".join(_bare(listed.text)), listed.theme
    made_up = made_up_word(rng) if rng.random() < 0.5 else spliced_word(rng)
    kinds = ("modifier", "two", "and", "made", "place", "of", "long")
    match rng.choices(kinds, (36, 12, 5, 24, 7, 10, 6))[0]:
        case "modifier":
            text = f"{rng.choice(('', '', '', 'the ', 'my '))}{rng.choice(MODIFIERS)} {noun}"
        case "two":
            text = f"{rng.choice(_REAL_WORDS)} {noun}"
        case "and":
            text = f"{noun} and {' '.join(_bare(rng.choice(LISTED).text))}"
        case "made":
            choices = (rng.choice(MODIFIERS), rng.choice(_REAL_WORDS), made_up_word(rng), "the", "a")
            other = rng.choice(choices)
            pair = (other, made_up) if other in _ARTICLES else rng.sample((made_up, other), 2)
            text, theme = " ".join(pair), None
        case "place":
            text = f"{noun} in {rng.choice(PLACES).text}"
        case "of":
            article = rng.choice(("the ", ""))
            joint = (rng.choice(_REAL_WORDS), rng.choice(("of", "in", "for", "with", "without")))
            text, theme = f"{article}{' '.join(joint)} {noun}", None
        case _:
            text = f"{rng.choice(MODIFIERS)} {rng.choice(MODIFIERS)} {noun}"
    return Topic(text, theme)


def _spelled(rng: Random, text: str) -> str:
    """Now and then capitalise a topic, so that the poem learns to keep the spelling of the prompt."""
    style = rng.random()
    if style < 0.05:
        return text.title()
    if style < 0.06:
        return text.upper()
    return text[0].upper() + text[1:] if style < 0.1 else text


def draw_topic(rng: Random) -> Topic:
    """Draw a training topic: listed, made of lists, or of made-up words; never one that is held out."""
    kinds = ("listed", "phrase", "made", "spliced", "place", "exotic", "digits")
    while True:
        match rng.choices(kinds, (34, 31, 15, 13, 3, 3, 1))[0]:
            case "listed":
                topic = rng.choice(LISTED)
            case "phrase":
                topic = _phrase(rng)
            case "made":
                topic = Topic(made_up_word(rng))
            case "spliced":
                topic = Topic(spliced_word(rng))
            case "place":
                topic = rng.choice(PLACES)
            case "exotic":
                topic = Topic(" ".join(rng.sample(_EXOTIC, rng.choice((1, 1, 2)))))
            case _:
                topic = Topic(f"{rng.choice(_REAL_WORDS)} {rng.randint(1, 2100)}")
        text = _spelled(rng, topic.text)
        if len(text) >= 40:
            continue
        few = syllables(text) <= (7 if rng.random() < 0.98 else 10)
        if few and not is_kept_out(text):
            return Topic(text, topic.theme)


def _frame(rng: Random, topic: str, season: str | None, room: int) -> str:
    """
    Fill a line of `room` syllables with the topic and what fits beside it.

    With a season it is a first line. Without, a later one: there a word stands before the topic, since
    after a line break the topic would be other pieces than in the prompt.
    """
    left = room - syllables(topic)
    choices = words.words_of(images.FRAMES.get(left, "{t}"), "|")
    if season is None:
        choices = [choice for choice in choices if not choice.startswith("{t}")]
    elif left in images.SEASON_FRAMES[season] and rng.random() < 0.65:
        choices = words.words_of(images.SEASON_FRAMES[season][left], "|")
    return rng.choice(choices).replace("{t}", topic)


def _repeats(poem: str) -> bool:
    """Say whether a word comes twice; small ones may, but not in every line."""
    seen = re.findall(r"[^\W_]+", poem.lower())
    return any(seen.count(word) > (2 if word in _SMALL_WORDS else 1) for word in seen)


def draw_poem(rng: Random, topic: Topic) -> str:
    """
    Draw a haiku that names the topic once, in the topic's own spelling, never straight after a line break.

    It is 5-7-5 by `syllables` when the topic has six or fewer; a longer one stands alone in the first line.
    """
    size = syllables(topic.text)
    text = ""
    for _ in range(40):
        season = "winter" if topic.theme == "ice" else rng.choice(SEASONS)
        themed = topic.theme in images.THEME_IMAGES
        closings = images.CLOSINGS if rng.random() < 0.45 else images.SEASON_CLOSINGS[season]
        if themed and rng.random() < 0.5:
            closings = images.THEME_CLOSINGS[topic.theme or ""]
        third = rng.choice(lines(closings, 5))
        if size == 6 or (size < 6 and rng.random() < 0.12):
            first, second = rng.choice(lines(images.OPENINGS[season], 5)), _frame(rng, topic.text, None, 7)
        else:
            rows = images.THEME_IMAGES[topic.theme or ""] if themed else images.SEASON_IMAGES[season]
            first, second = _frame(rng, topic.text, season, 5), rng.choice(lines(rows, 7))
        text = f"{first}\n{second}\n{third}"
        if not _repeats(text):
            break
    return text


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; role is "system", "user", "assistant", or "raw" for a prompt without a template."""

    role: str
    text: str


def draw_conversation(rng: Random) -> list[Turn]:
    """Draw a conversation: mostly one question, sometimes several turns or a bare prompt to complete."""
    topic = draw_topic(rng)
    prompt = rng.choices([text for text, _ in words.PROMPTS], [weight for _, weight in words.PROMPTS])[0]
    kind = rng.random()
    if kind < 0.04:
        plain = prompt if prompt != "{t}" else "Write a haiku about {t}"
        return [Turn("raw", plain.replace("{t}", topic.text)), Turn("assistant", draw_poem(rng, topic))]
    turns = [Turn("system", rng.choice(words.SYSTEMS))] if rng.random() < 0.2 else []
    turns += [Turn("user", prompt.replace("{t}", topic.text)), Turn("assistant", draw_poem(rng, topic))]
    for _ in range(rng.randint(1, 3) if kind < 0.16 else 0):
        prompt = rng.choice(words.AGAIN_PROMPTS)
        if rng.random() < 0.6:
            topic = draw_topic(rng)
            prompt = rng.choice(words.NEXT_PROMPTS)
        turns += [Turn("user", prompt.replace("{t}", topic.text)), Turn("assistant", draw_poem(rng, topic))]
    return turns
