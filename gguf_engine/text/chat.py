"""Messages → the token ids of a prompt, through the model's chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from gguf_engine.errors import TemplateError
from gguf_engine.text.tokenizer import Tokenizer

MAX_SOURCE_BYTES = 256 * 1024
MAX_CONTENT_CHARS = 2**20
ROLES = ("system", "developer", "user", "assistant", "tool")

_WAY_OUT = "pass another one (chat_template=FILE, --chat-template FILE)"
_SHOWN_CHARS = 500
_PRIVATE = range(0xF0000, 0xFFFFE)


class Message(TypedDict):
    """
    One turn of a conversation.

    Attributes:
        role: "system", "developer", "user", "assistant" or "tool"; a template may know fewer.
        content: The text; control tokens typed in it stay text.
    """

    role: str
    content: str


class ChatTemplate:
    """
    A model's chat template, compiled once.

    What comes from a message never becomes a control token. The template is rendered twice: once
    with the messages, in which each control text is disguised (its first character is replaced by
    a private one), and once with every character that any control token holds replaced. The second
    rendering cannot hold a control token that a message had a part in. When both give the same
    control tokens in the same order, the first is taken, in which `trim`, `in` and `split` see
    nearly the true text; otherwise the second. Only then are the control tokens cut out, the
    disguised characters restored, and the texts between encoded with control tokens off. A text
    runs from one control token to the next, so the ids are those of the whole prompt encoded at
    once, unless a message holds a control text.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        """
        Compile a template.

        Args:
            source: Jinja, at most 256 KiB.
            bos_token, eos_token: What the template's variables of these names hold.

        Raises:
            TemplateError: Too large, or not Jinja.
        """
        size = len(source.encode("utf-8", "replace"))
        if size > MAX_SOURCE_BYTES:
            raise TemplateError(f"the chat template has {size} bytes; allowed: {MAX_SOURCE_BYTES}")
        from jinja2.exceptions import SecurityError

        from gguf_engine.text.sandbox import Program

        self.source = source
        self._variables = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._program = Program(source)
        except SecurityError as error:
            raise TemplateError(f"the chat template cannot be used: {error}; {_WAY_OUT}") from error
        except RecursionError as error:
            raise TemplateError(f"the chat template nests too deep; {_WAY_OUT}") from error
        except Exception as error:
            line = getattr(error, "lineno", None)
            at = f" at line {line}" if line else ""
            raise TemplateError(f"the chat template is not valid Jinja{at}: {_what(error)}") from error

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """
        Return the template inside a GGUF.

        Raises:
            TemplateError: It has none; one is never guessed.
        """
        source = metadata.get("tokenizer.chat_template")
        if not isinstance(source, str) or not source:
            raise TemplateError(
                "the model has no chat template (no tokenizer.chat_template in the GGUF); pass "
                "chat_template=FILE or the template's text (--chat-template FILE), "
                "or send a raw prompt (--raw)"
            )
        return cls.for_tokenizer(source, tokenizer)

    @classmethod
    def for_tokenizer(cls, source: str, tokenizer: Tokenizer) -> ChatTemplate:
        """Compile a template in which `bos_token` and `eos_token` are the tokenizer's; see `__init__`."""
        bos, eos = (
            "" if token_id is None else tokenizer.token_text(token_id)
            for token_id in (tokenizer.bos_id, tokenizer.eos_id)
        )
        return cls(source, bos_token=bos, eos_token=eos)

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True
    ) -> list[int]:
        """
        Return the ids of a conversation.

        Args:
            messages: At least one.
            tokenizer: The model's.
            add_generation_prompt: End with the words that make the model answer.

        Returns:
            The ids; they begin with BOS when the template or the model says so, and never with two.

        Raises:
            TemplateError: A message that is not one, or a template that refuses or fails.
            TokenizerError: A text that cannot be encoded.
        """
        checked = _check(messages)
        disguise = _Disguise(tokenizer, (*(m["content"] for m in checked), self.source))
        light = self._parts(checked, tokenizer, disguise.control_texts, add_generation_prompt)
        heavy = self._parts(checked, tokenizer, disguise.characters, add_generation_prompt)
        parts = light if _control(light) == _control(heavy) else heavy
        ids = tokenizer.encode_parts([p if isinstance(p, int) else disguise.restore(p) for p in parts])
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """
        Return the conversation as text, to look at; `encode` is what a model gets.

        Raises:
            TemplateError: As `encode`.
        """
        return self._render(_check(messages), add_generation_prompt)

    def _parts(
        self,
        messages: Iterable[Message],
        tokenizer: Tokenizer,
        change: Callable[[str], str],
        add_generation_prompt: bool,
    ) -> list[int | str]:
        changed = [Message(role=m["role"], content=change(m["content"])) for m in messages]
        return tokenizer.split(self._render(changed, add_generation_prompt))

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        from gguf_engine.text.budget import LimitError
        from gguf_engine.text.functions import RaisedByTemplateError

        variables = {
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._variables,
        }
        try:
            return self._program.render(variables)
        except LimitError as error:
            raise TemplateError(
                f"the chat template {error}; {_WAY_OUT}, or shorten the messages"
            ) from error
        except RaisedByTemplateError as error:
            raise TemplateError(f"the chat template refuses these messages: {_what(error)}") from error
        except RecursionError as error:
            raise TemplateError(f"the chat template calls itself too often; {_WAY_OUT}") from error
        except MemoryError as error:
            raise TemplateError(f"the chat template needs more memory than there is; {_WAY_OUT}") from error
        except Exception as error:
            raise TemplateError(f"the chat template fails on these messages: {_what(error)}") from error


class _Disguise:
    """Replaces characters by private ones that no text of this rendering holds, and back."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self._pattern = tokenizer.control_pattern
        found = set("".join(tokenizer.control_texts))
        # White space stays, so that `trim` sees it, unless some token is nothing else.
        if not any(text.isspace() for text in tokenizer.control_texts):
            found = {char for char in found if not char.isspace()}
        used = set().union(*texts)
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        self._to = {ord(char): next(free) for char in sorted(found)}
        self._back = {ord(private): chr(code) for code, private in self._to.items()}

    def control_texts(self, text: str) -> str:
        return self._pattern.sub(
            lambda match: self._to.get(ord(match[0][0]), match[0][0]) + match[0][1:], text
        )

    def characters(self, text: str) -> str:
        return text.translate(self._to)

    def restore(self, text: str) -> str:
        return text.translate(self._back)


def _what(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _control(parts: Sequence[int | str]) -> list[int]:
    return [part for part in parts if isinstance(part, int)]


def _check(messages: object) -> list[Message]:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise TemplateError('messages must be a non-empty list of {"role": ..., "content": ...}')
    checked = [_check_one(n, message) for n, message in enumerate(messages)]
    n_chars = sum(len(message["content"]) for message in checked)
    if n_chars > MAX_CONTENT_CHARS:
        raise TemplateError(f"the messages hold {n_chars} characters; allowed: {MAX_CONTENT_CHARS}")
    return checked


def _check_one(n: int, message: object) -> Message:
    if not isinstance(message, Mapping):
        raise TemplateError(f"message {n} is a {type(message).__name__}; allowed: role and content")
    if set(message) != {"role", "content"}:
        keys = ", ".join(map(str, message)) or "nothing"
        raise TemplateError(f"message {n} has {keys}; allowed: exactly role and content")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise TemplateError(f"message {n} has the role {role!r}; allowed: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise TemplateError(f"message {n} has content of type {type(content).__name__}; allowed: text")
    return Message(role=role, content=content)
