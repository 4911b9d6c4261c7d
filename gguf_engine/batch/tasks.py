"""What is done with a line: its values → requests that run → the data of its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from gguf_engine.errors import OptionError, TemplateError
from gguf_engine.params import SamplingParams, build_params

if TYPE_CHECKING:
    from gguf_engine.llm import LLM
    from gguf_engine.outputs import Completion
    from gguf_engine.prompts import Prompt
    from gguf_engine.streams import Stream

MAX_CHOICES = 256
TaskName = Literal["generate", "score", "choose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """
    What holds for every line that does not say otherwise.

    Attributes:
        task: "generate" answers; "score" gives the log-probability of a line's `target`; "choose" finds
            the most probable of its `choices`.
        sampling: For "generate"; a line may set any of its fields.
        system: A system message before an `input`.
        raw: Continue an `input` as it stands, without the model's chat template.
        window: Lines read ahead of the one whose answer is due, 1..65536; None means sixteen for each
            request that can run at once.
    """

    task: TaskName = "generate"
    sampling: SamplingParams = field(default_factory=SamplingParams)
    system: str | None = None
    raw: bool = False
    window: int | None = None

    def __post_init__(self) -> None:
        if self.task not in get_args(TaskName):
            raise OptionError("task", self.task, ", ".join(get_args(TaskName)))
        if self.raw and self.system is not None:
            raise OptionError("system", self.system, "with a chat turn only", "drop raw or system")
        is_count = isinstance(self.window, int) and not isinstance(self.window, bool)
        if self.window is not None and not (is_count and 1 <= self.window <= 65536):
            raise OptionError("window", self.window, "an integer in 1..65536, or None")
        if self.task != "generate" and self.sampling != SamplingParams():
            what = "the defaults: nothing is sampled with this task"
            raise OptionError("sampling", self.sampling, what, "drop the options of sampling")


class Running(NamedTuple):
    """The requests of one line, and what makes its answer of their completions."""

    streams: list[Stream]
    answer: Callable[[list[Completion]], dict[str, Any]]


def start(llm: LLM, values: Mapping[str, Any], options: BatchOptions) -> Running:
    """
    Begin what a line asks for.

    Args:
        values: The line's object, without its id.

    Raises:
        GGUFEngineError: The line cannot be served; nothing of it runs.
    """
    rest = dict(values)
    prompt = _take_prompt(rest, options)
    if options.task == "score":
        target = _take_text(rest, "target")
        _refuse(rest, "target")
        return Running([_score(llm, prompt, target)], lambda completions: _scored(completions[0]))
    if options.task == "choose":
        return _choose(llm, prompt, rest)
    sampling = build_params(SamplingParams, _with_integer_ids(rest), options.sampling)
    return Running(
        [llm.stream(prompt, sampling, whole=True)], lambda completions: _generated(completions[0])
    )


def _choose(llm: LLM, prompt: Prompt, values: dict[str, Any]) -> Running:
    choices, by = values.pop("choices", None), values.pop("by", "total")
    is_list = isinstance(choices, list) and len(choices) <= MAX_CHOICES
    if not is_list or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise OptionError("choices", choices, f"a list of 2..{MAX_CHOICES} texts")
    if by not in ("total", "mean"):
        raise OptionError("by", by, '"total" or "mean": which log-probability decides')
    _refuse(values, "choices, by")
    streams: list[Stream] = []
    try:
        streams.extend(_score(llm, prompt, choice) for choice in choices)
    except BaseException:
        for stream in streams:
            stream.close()
        raise

    def answer(completions: list[Completion]) -> dict[str, Any]:
        scores = [_scored(completion) for completion in completions]
        key = "logprob" if by == "total" else "mean_logprob"
        best = max(range(len(choices)), key=lambda i: scores[i][key])
        brief = [
            {name: score[name] for name in ("logprob", "mean_logprob", "n_tokens")} for score in scores
        ]
        return {"choice": choices[best], "index": best, "scores": brief}

    return Running(streams, answer)


def _score(llm: LLM, prompt: Prompt, target: str) -> Stream:
    """Start to score a text as the answer: its own tokens, without the one that would end it."""
    if isinstance(prompt, str):
        start_ids, whole = llm.encode(prompt), llm.encode(prompt + target)
        # Where the last of the prompt and the first of the target make one token, that is scored.
        n_shared = next(
            (n for n, pair in enumerate(zip(start_ids, whole, strict=False)) if pair[0] != pair[1]),
            min(len(start_ids), len(whole)),
        )
        return llm.stream_target(whole[:n_shared], whole[n_shared:])
    start_ids = llm.encode(prompt)
    turns = [*prompt, {"role": "assistant", "content": target}]
    whole = llm.template.encode(turns, llm.tokenizer, add_generation_prompt=False)  # type: ignore[arg-type]
    if whole[: len(start_ids)] != start_ids:
        raise TemplateError("this chat template writes an answer otherwise than it asks for one; use raw")
    target_ids = takewhile(lambda i: i not in llm.tokenizer.special_ids, whole[len(start_ids) :])
    return llm.stream_target(start_ids, list(target_ids))


def _scored(completion: Completion) -> dict[str, Any]:
    total, n_tokens = math.fsum(completion.logprobs), len(completion.logprobs)
    return {
        "logprob": total,
        "mean_logprob": total / n_tokens,
        "n_tokens": n_tokens,
        "token_ids": completion.token_ids,
        "logprobs": completion.logprobs,
        "usage": asdict(completion.usage),
    }


def _take_text(values: dict[str, Any], name: str) -> str:
    text = values.pop(name, None)
    if not isinstance(text, str) or not text:
        raise OptionError(name, text, "a text")
    return text


def _refuse(values: Mapping[str, Any], known: str) -> None:
    if values:
        name = next(iter(values))
        raise OptionError("option", name, f"id, input, messages, {known}", f"remove {name!r}")


def _take_prompt(values: dict[str, Any], options: BatchOptions) -> Prompt:
    if ("input" in values) == ("messages" in values):
        raise OptionError("line", sorted(values), 'an object with either "input" or "messages"')
    if "messages" in values:
        messages = values.pop("messages")
        if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
            raise OptionError("messages", messages, 'a list of {"role": ..., "content": ...}')
        return messages
    text = values.pop("input")
    if not isinstance(text, str):
        raise OptionError("input", text, "a text")
    if options.raw:
        return text
    turns = [("system", options.system), ("user", text)]
    return [{"role": role, "content": content} for role, content in turns if content is not None]


def _with_integer_ids(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """JSON has texts for keys: those of `logit_bias` are ids."""
    bias = values.get("logit_bias")
    if not isinstance(bias, Mapping):
        return values
    ids = {key: int(key) if key.isascii() and key.isdigit() else key for key in bias}
    return {**values, "logit_bias": {ids[key]: value for key, value in bias.items()}}


def _generated(completion: Completion) -> dict[str, Any]:
    data: dict[str, Any] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "usage": asdict(completion.usage),
    }
    if completion.logprobs:
        data["token_ids"], data["logprobs"] = completion.token_ids, completion.logprobs
    if completion.top_logprobs:
        data["top_logprobs"] = [[each._asdict() for each in top] for top in completion.top_logprobs]
    return data
