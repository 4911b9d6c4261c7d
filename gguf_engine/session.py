"""
Session: a conversation that remembers itself. Text of the user in, the answer out, turn by turn.

Owns the messages. What they have cost stays in the KV cache, where the next turn, a fork and a rewound
session find it by their ids: there is nothing to keep in step. An answer is what `LLM.chat` would give
for the same messages.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from gguf_engine.engine.kv_cache import common_prefix
from gguf_engine.engine.state import write_state
from gguf_engine.errors import OptionError, SessionBusyError, StateError
from gguf_engine.outputs import Completion
from gguf_engine.params import SamplingParams, build_params, keywords
from gguf_engine.sessionfile import OnFull, SavedSession, pack_session, read_session
from gguf_engine.sessionstreams import AsyncSessionStream, SessionStream, Turn
from gguf_engine.streams import AsyncStream, Stream, join

if TYPE_CHECKING:
    from gguf_engine.llm import LLM
    from gguf_engine.text.chat import Message

_S = TypeVar("_S", Stream, AsyncStream)
_PROBES = ("A", "1")


class Session:
    """
    A conversation with a model.

    One answer at a time: a second `send`, or anything that changes or saves the session, is refused with
    SessionBusyError while one is being made. Any thread may use a session; several sessions of one LLM
    run at once.

    Args:
        llm: The model; it stays loaded as long as it is not closed.
        system: The system message; None for none.
        on_full: What to do when the context has no room for the next answer. "raise" is a
            PromptTooLongError when the messages alone fill it, before anything is computed. "drop_oldest"
            drops whole turns, the oldest first, never the system message: when less room is left than
            `max_tokens`, or than a quarter of the context if that is less, as many as it takes to
            use at most half of it. `n_dropped` counts them. Only a system message and a question that do
            not fit by themselves are a PromptTooLongError.
        params: How answers are sampled; `options` are its fields, and win.

    Raises:
        OptionError: An option out of range or unknown.
        TemplateError: The model has no chat template.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        system: str | None = None,
        on_full: OnFull = "raise",
        params: SamplingParams | None = None,
        **options: Any,
    ) -> None:
        if system is not None and not isinstance(system, str):
            raise OptionError("system", system, "a text, or None")
        if on_full not in get_args(OnFull):
            raise OptionError("on_full", on_full, "'raise' or 'drop_oldest'")
        self.llm, self.system, self.on_full = llm, system, on_full
        self.params = build_params(SamplingParams, options, params, keywords(type(self)))
        self._turns: list[tuple[str, str]] = []  # questions and their answers
        self._n_dropped = 0
        self._n_restored = 0
        # Held while an answer is made, and let go by whichever thread reads its end or drops its stream.
        self._busy = threading.Lock()
        _ = llm.template  # a model without one says so now

    @property
    def messages(self) -> list[Message]:
        """What the model is given, the system message first; a copy."""
        return self._messages(self._turns)

    @property
    def n_turns(self) -> int:
        """Questions with their answers that are remembered."""
        return len(self._turns)

    @property
    def n_dropped(self) -> int:
        """Turns that `on_full="drop_oldest"` has dropped so far."""
        return self._n_dropped

    @property
    def n_restored(self) -> int:
        """Tokens that `load` put back into the KV cache; 0 for a session that was not loaded."""
        return self._n_restored

    def _messages(self, turns: list[tuple[str, str]], question: str | None = None) -> list[Message]:
        messages: list[Message] = (
            [] if self.system is None else [{"role": "system", "content": self.system}]
        )
        for asked, answered in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return messages if question is None else [*messages, {"role": "user", "content": question}]

    def send(
        self, text: str, params: SamplingParams | None = None, *, priority: int = 0, **options: Any
    ) -> Completion:
        """
        Say something and return the answer; both are remembered once it is complete.

        After an exception, Ctrl-C while waiting for one, the session is as it was before.

        Args:
            text: The user's turn.
            params: For this answer instead of the session's; `options` are its fields, and win.
            priority: As in `LLM.stream`.

        Raises:
            OptionError: `text` is no text, or an option is out of range.
            SessionBusyError: An answer is being made.
            PromptTooLongError: The context is full; see `on_full`.
            GGUFEngineError: As in `LLM.chat`.
        """
        opened = self._open(self.llm.stream, text, params, options, priority, keeps_part=False)
        with SessionStream(*opened) as stream:
            return stream.completion()

    def stream(
        self, text: str, params: SamplingParams | None = None, *, priority: int = 0, **options: Any
    ) -> SessionStream:
        """
        Say something and return the pieces of the answer; arguments and errors are those of `send`.

        The turn is remembered when the answer ends. Who stops reading before, by closing, dropping or
        cancelling the stream, has heard a part: the question and that part are remembered; without a
        word of it, or after an error, neither is.
        """
        return SessionStream(*self._open(self.llm.stream, text, params, options, priority))

    async def asend(
        self, text: str, params: SamplingParams | None = None, *, priority: int = 0, **options: Any
    ) -> Completion:
        """As `send`, in a running event loop. A task that is cancelled leaves the session as it was."""
        opened = self._open(self.llm.astream, text, params, options, priority, keeps_part=False)
        stream = AsyncSessionStream(*opened)
        try:
            return join([piece async for piece in stream], stream.seed)
        finally:
            await stream.aclose()

    def astream(
        self, text: str, params: SamplingParams | None = None, *, priority: int = 0, **options: Any
    ) -> AsyncSessionStream:
        """As `stream`, in a running event loop."""
        return AsyncSessionStream(*self._open(self.llm.astream, text, params, options, priority))

    def _open(
        self,
        start: Callable[..., _S],
        text: str,
        params: SamplingParams | None,
        options: dict[str, Any],
        priority: int,
        *,
        keeps_part: bool = True,
    ) -> tuple[_S, Turn]:
        if not isinstance(text, str):
            raise OptionError("text", text, "what the user says")
        chosen = build_params(SamplingParams, options, self.params if params is None else params)
        self._begin()
        n_gone: int = 0

        def end(answer: str | None) -> None:
            if answer is not None:
                self._n_dropped += n_gone
                self._turns = [*self._turns[n_gone:], (text, answer)]
            self._busy.release()

        turn = Turn(end, keeps_part=keeps_part)
        try:
            n_gone = self._n_to_drop(text, chosen) if self.on_full == "drop_oldest" else 0
            messages = self._messages(self._turns[n_gone:], text)
            return start(messages, chosen, priority=priority, whole=not keeps_part), turn
        except BaseException:
            turn.forget()
            raise

    def _begin(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise SessionBusyError(
                "an answer of this session is still being made; read or close its stream first, or fork()"
            )

    def _n_to_drop(self, question: str, params: SamplingParams) -> int:
        """Return how many of the oldest turns must go before this question."""
        n_ctx, n_turns = self.llm.n_ctx, len(self._turns)

        def n_prompt(n_gone: int) -> int:
            return len(self.llm.encode(self._messages(self._turns[n_gone:], question)))

        wanted = n_ctx // 4 if params.max_tokens is None else min(params.max_tokens, n_ctx // 4)
        if n_prompt(0) + max(wanted, 1) <= n_ctx:
            return 0
        # To half, not to what just fits: what follows a dropped turn is computed again, every time.
        return bisect_left(range(n_turns), True, key=lambda n_gone: n_prompt(n_gone) <= n_ctx // 2)

    def fork(self) -> Session:
        """
        Return a session that goes on from here by itself, with the same options.

        Nothing is computed again: the first answer of either finds what both have in common in the KV
        cache (`usage.n_cached`), unless others have needed its room meanwhile. While an answer is being
        made, it is the one without that turn.
        """
        other = Session(self.llm, system=self.system, on_full=self.on_full, params=self.params)
        other._turns, other._n_dropped = self._turns[:], self._n_dropped
        return other

    def rewind(self, n_turns: int = 1) -> None:
        """
        Forget the last turns: the questions and their answers.

        Args:
            n_turns: 1..`self.n_turns`.

        Raises:
            OptionError: There are not so many.
            SessionBusyError: An answer is being made.
        """
        self._begin()
        try:
            known = len(self._turns)
            if type(n_turns) is not int or not 1 <= n_turns <= known:
                allowed = f"1..{known}" if known else "nothing before the first answer"
                raise OptionError("n_turns", n_turns, allowed)
            self._turns = self._turns[: known - n_turns]
        finally:
            self._busy.release()

    def save(self, path: str | Path) -> int:
        """
        Write the session to a file: messages, options, and what the KV cache holds of them.

        What is missing there is computed first, so that the next turn after `load` computes its question
        alone. The file is as large as that state: for Phi-3-mini 0.4 MB a token at f16. Whoever can read
        it can read the conversation.

        Args:
            path: It is replaced whole, or stays as it was.

        Returns:
            How many tokens will not be computed again; 0 when there are too few to be worth it, or the
            model is a backend of your own without `state_origin`: the file then holds messages and options.

        Raises:
            StateError: It cannot be written.
            SessionBusyError: An answer is being made.
        """
        self._begin()
        try:
            saved = SavedSession(
                model=self.llm.model,
                system=self.system,
                on_full=self.on_full,
                turns=tuple(self._turns),
                n_dropped=self._n_dropped,
                params=self.params,
            )
            return self._write(Path(path), saved)
        finally:
            self._busy.release()

    def _write(self, path: Path, saved: SavedSession) -> int:
        prefix = self._prefix() if self.llm.prefix_files.can_save else []
        if 0 < len(prefix) < self.llm.n_ctx:
            self.llm.generate(prefix, max_tokens=1, temperature=0.0)  # puts all of it into the KV cache
        n_kept = (
            self.llm.prefix_files.save(prefix, path, pack_session(saved, has_state=True)) if prefix else 0
        )
        if not n_kept:
            try:
                write_state(path, pack_session(saved, has_state=False))
            except OSError as error:
                raise StateError("file", str(path), f"it cannot be written: {error}") from error
        return n_kept

    def _prefix(self) -> list[int]:
        """Return the ids that the next turn begins with, whatever it says."""
        a, b = (self.llm.encode(self._messages(self._turns, text)) for text in _PROBES)
        return a[: common_prefix(array("i", a), array("i", b))]

    @classmethod
    def load(cls, path: str | Path, llm: LLM, *, computed: bool = True) -> Session:
        """
        Return the session that `save` wrote.

        Args:
            path: Of the file. It is to be trusted like a program of yours: its digests find damage, not
                malice.
            llm: The same model, loaded with the same n_ctx and KV cache type.
            computed: Restore what was computed, too. Without, any model takes the messages and computes
                them again.

        Returns:
            The session; `n_restored` says how many tokens are in the KV cache by it, 0 also when running
            requests have all its room.

        Raises:
            StateError: It cannot be read, is damaged or no session, or what was computed belongs to another
                model or other settings: load it with `computed=False`.
            TemplateError: The model has no chat template.
        """
        saved, offset = read_session(Path(path))
        session = cls(llm, system=saved.system, on_full=saved.on_full, params=saved.params)
        session._turns, session._n_dropped = list(saved.turns), saved.n_dropped
        if computed and offset is not None:
            session._n_restored = llm.prefix_files.load(Path(path), offset)
        return session
