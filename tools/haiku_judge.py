"""Judges the finished model through gguf_engine itself, and writes its card."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from haiku_corpus import HELD_OUT, LISTED, MODIFIERS, PLACES, is_575

from gguf_engine import LLM, SamplingParams

N_ROUNDS = 5
N_EXAMPLES = 5
WANTED = {"form": 95, "topic": 80, "count": 50}
LABELS = {
    "form": "three lines, and ends by itself",
    "topic": "names the topic",
    "count": "5-7-5 by the script's count",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer and what is right about it."""

    topic: str
    text: str
    form: bool
    names_topic: bool
    counted: bool


def answer(llm: LLM, topic: str, seed: int) -> Verdict:
    """Ask for one haiku at the reference settings."""
    settings = SamplingParams(
        temperature=1.0, top_p=1.0, repeat_penalty=1.2, repeat_last_n=64, max_tokens=100, seed=seed
    )
    completion = llm.chat(f"Write a haiku about {topic}", settings)
    text = completion.text
    lines = text.split("\n")
    form = len(lines) == 3 and all(lines) and completion.finish_reason == "stop"
    return Verdict(topic, text, form, topic.casefold() in text.casefold(), form and is_575(text))


def rates(verdicts: list[Verdict]) -> dict[str, float]:
    """Per cent of answers with each virtue."""
    marks = {
        "form": [verdict.form for verdict in verdicts],
        "topic": [verdict.names_topic for verdict in verdicts],
        "count": [verdict.counted for verdict in verdicts],
    }
    return {name: 100 * sum(values) / len(values) for name, values in marks.items()}


def new_to_it(topic: str) -> bool:
    """Say whether no word of a topic, but for small ones, is in the lists that topics are made of."""
    listed = {word for known in LISTED + PLACES for word in known.text.casefold().split()}
    return not (listed | set(MODIFIERS)) & (set(topic.casefold().split()) - {"the", "a", "an", "of", "and"})


def table(rounds: list[dict[str, float]], new: dict[str, float]) -> str:
    """The table of the card: the mean over the rounds, the worst and the best one, and what was wanted."""
    head = ("of the answers", "mean", "lowest and highest round", "topics of new words", "wanted")
    rows = [f"| {' | '.join(head)} |", "|---|---|---|---|---|"]
    for name, label in LABELS.items():
        values = [one[name] for one in rounds]
        mean = sum(values) / len(values)
        spread = f"{min(values):.1f} to {max(values):.1f} %"
        rows.append(f"| {label} | {mean:.1f} % | {spread} | {new[name]:.1f} % | {WANTED[name]} % |")
    return "\n".join(rows)


def judge(path: Path) -> tuple[dict[str, object], str, str]:
    """
    Ask the model for a haiku on each of the 200 held-out topics, in rounds, each time with another seed.

    Draws depend on the seed and the token's number alone: with one seed for all, the errors would be alike.

    Returns:
        The figures, the table, and examples that nobody chose: ice hockey and the first of the topics.
    """
    with LLM.load(path, tokenizer=path.with_name("tokenizer.json")) as llm:
        asked = [
            [answer(llm, topic, number * len(HELD_OUT) + i) for i, topic in enumerate(HELD_OUT)]
            for number in range(N_ROUNDS)
        ]
        flagship = answer(llm, "ice hockey", 0)
    examples = [verdict.text.replace("\n", " / ") for verdict in (flagship, *asked[0][:N_EXAMPLES])]
    rounds = [rates(verdicts) for verdicts in asked]
    new = rates([verdict for verdicts in asked for verdict in verdicts if new_to_it(verdict.topic)])
    figures: dict[str, object] = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "n_topics": len(HELD_OUT),
        "n_topics_of_new_words": sum(map(new_to_it, HELD_OUT)),
        "n_rounds": N_ROUNDS,
        "percent_by_round": rounds,
        "percent_topics_of_new_words": new,
    }
    return figures, table(rounds, new), "\n".join(f"- {poem}" for poem in examples)
