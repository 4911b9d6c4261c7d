"""`gguf-engine chat`: a conversation in the terminal, or through a pipe. Answers alone go to stdout."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gguf_engine.cli.answer import figures, stream_answer
from gguf_engine.cli.conversation import HIDDEN, OFFERED, Conversation, check_name
from gguf_engine.cli.errors import complain
from gguf_engine.cli.loading import System, Timings, loaded, note
from gguf_engine.cli.options import HubOptions, ModelOptions, Without
from gguf_engine.cli.reader import Reader
from gguf_engine.errors import EngineClosedError, GGUFEngineError, OptionError, PromptTooLongError
from gguf_engine.params import EngineParams, SamplingParams

if TYPE_CHECKING:
    from gguf_engine.llm import LLM
    from gguf_engine.outputs import Completion
    from gguf_engine.text.chat import Message


def chat(
    *,
    model: ModelOptions,
    hub: HubOptions,
    engine: EngineParams,
    sampling: Annotated[SamplingParams, Without(HIDDEN)],
    system: System = None,
    timings: Timings = False,
) -> None:
    """Talk with a model. Answers stream, Ctrl-C stops an answer, /help lists the commands."""
    with loaded(model, hub, engine) as llm:
        reader = Reader()
        if reader.is_terminal:
            note(f"{llm.model}, context of {llm.n_ctx} tokens. /help lists the commands, /exit leaves.")
        Chat(llm, Conversation(sampling, system), timings=timings).serve(reader)


class Chat:
    """Answers entries: a command, or a question to the model."""

    def __init__(self, llm: LLM, conversation: Conversation, *, timings: bool = False) -> None:
        self.llm, self.conversation, self.timings = llm, conversation, timings
        self.is_over = False

    def serve(self, reader: Reader) -> None:
        """Answer entries until /exit or the end of the input."""
        while not self.is_over:
            self._serve_one(reader)

    def _serve_one(self, reader: Reader) -> None:
        try:
            entry = reader.read()
            if entry is None:
                self.is_over = True
            else:
                self.answer(entry)
        except KeyboardInterrupt:
            if not reader.is_terminal:
                raise
            note("", "[Ctrl-C stops an answer; /exit or Ctrl-D leaves]")
        except EngineClosedError:
            raise
        except PromptTooLongError as error:
            complain(f"{error}; /clear forgets the conversation")
        except GGUFEngineError as error:
            complain(str(error))

    def answer(self, entry: str) -> None:
        """Run a command or ask the model."""
        if entry.startswith("/"):
            name, _, argument = entry.partition(" ")
            find(name).run(self, argument.strip())
        elif entry.strip():
            self.ask(self.conversation.turns, entry)

    def ask(self, history: list[Message], question: str) -> None:
        """Stream the answer to a question after some turns; these become the conversation when it ends."""
        conversation = self.conversation
        messages = conversation.asking(history, question)
        completion = stream_answer(self.llm.stream(messages, conversation.sampling))
        if self.timings:
            note(*figures(completion, self.llm))
        if completion.finish_reason == "cancelled" and not completion.text:
            note("[stopped before the first word; the question is forgotten]")
            return
        asked: Message = {"role": "user", "content": question}
        conversation.turns = [*history, asked, {"role": "assistant", "content": completion.text}]
        self._tell_end(completion)

    def _tell_end(self, completion: Completion) -> None:
        usage = completion.usage
        if completion.finish_reason == "cancelled":
            note("[stopped; this much stays in the conversation, /regen answers again]")
        elif usage.n_prompt + usage.n_completion >= self.llm.n_ctx:
            note(f"[the context of {self.llm.n_ctx} tokens is full; /clear forgets the conversation]")
        elif completion.finish_reason == "length":
            note(f"[cut off at max_tokens={usage.n_completion}; /set max_tokens none lifts the limit]")


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the chat: how it is written, what it does."""

    usage: str
    help: str
    run: Callable[[Chat, str], None]


def find(name: str) -> Command:
    """
    Return a command.

    Raises:
        OptionError: There is none of this name; says what is close.
    """
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        help_ = meant + "begin with a space to send the text to the model"
        raise OptionError("command", name, ", ".join(COMMANDS), help_)
    return COMMANDS[name]


def _help(_chat: Chat, _argument: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    note(*(f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()))
    note('A line that ends with \\ goes on in the next one; """ opens and closes a text of many lines.')


def _system(chat: Chat, argument: str) -> None:
    if argument:
        chat.conversation.system = None if argument == "none" else argument
    note(f"system: {chat.conversation.system or 'none'}")


def _set(chat: Chat, argument: str) -> None:
    name, _, text = argument.partition(" ")
    shown = (check_name(name),) if name else OFFERED
    if text.strip():
        chat.conversation.set(name, text.strip())
    values = {name: getattr(chat.conversation.sampling, name) for name in shown}
    note(*(f"{name:<18} {'none' if value is None else value}" for name, value in values.items()))


def _regen(chat: Chat, _argument: str) -> None:
    turns = chat.conversation.turns
    if not turns:
        note("[nothing was asked yet]")
        return
    if chat.conversation.sampling.seed is not None:
        note("[the seed is fixed: the same answer again, unless you /set seed none]")
    chat.ask(turns[:-2], turns[-2]["content"])


def _clear(chat: Chat, _argument: str) -> None:
    chat.conversation.turns = []
    note("[the conversation is forgotten; system message and options stay]")


def _save(chat: Chat, argument: str) -> None:
    path = _path("/save", argument)
    chat.conversation.save(path, chat.llm.model)
    note(f"[{len(chat.conversation.turns)} messages saved to {path}]")


def _load(chat: Chat, argument: str) -> None:
    path = _path("/load", argument)
    model = chat.conversation.load(path)
    other = "" if model == chat.llm.model else f", made with {model}"
    note(f"[{len(chat.conversation.turns)} messages loaded from {path}{other}]")


def _exit(chat: Chat, _argument: str) -> None:
    chat.is_over = True


def _path(command: str, argument: str) -> Path:
    if not argument:
        raise OptionError(command, argument, f"{command} FILE")
    return Path(argument).expanduser()


COMMANDS = {
    command.usage.split()[0]: command
    for command in (
        Command("/help", "list the commands", _help),
        Command("/system TEXT", "set the system message; none removes it; no TEXT shows it", _system),
        Command("/set NAME VALUE", "set a sampling option; default resets it; no NAME shows all", _set),
        Command("/regen", "answer the last question again", _regen),
        Command("/clear", "forget the conversation", _clear),
        Command("/save FILE", "write conversation and options to a file", _save),
        Command("/load FILE", "go on with what /save wrote", _load),
        Command("/exit", "leave; so does Ctrl-D", _exit),
    )
}
