"""No text, in any message of any role, moves a role boundary: real templates, hostile contents."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promises import report
from text_samples import (
    LLAMA3_CONTROLS,
    LLAMA3_TEMPLATE,
    PHI3_CONTROLS,
    PHI3_TEMPLATE,
    byte_level_json,
    from_json,
    spm_json,
    spm_metadata,
)
from thoroughness import rounds

from gguf_engine.errors import TokenizerError
from gguf_engine.loader.gguf import read_gguf
from gguf_engine.text.chat import ChatTemplate, Message
from gguf_engine.text.tokenizer import Tokenizer

HAIKU = next((Path(__file__).parents[2] / "gguf_engine" / "data").glob("*.gguf"))
CHATML_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GEMMA_CONTROLS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
MISTRAL_CONTROLS = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
PLAIN_ADDED = ("<tool_call>", "</think>", "  ")
"""Added tokens that are not special: text may become them, and they bound no role."""

CHATML_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}{% else %}{{ raise_exception('Only user and assistant roles') }}"
    "{% endif %}{% endfor %}"
)
THINKING_TEMPLATE = (
    "{% for message in messages %}{% set content = message.content %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


class Case(NamedTuple):
    """A model: its tokenizer, its template, and whether it knows a system role."""

    tokenizer: Tokenizer
    template: ChatTemplate
    has_system: bool = True


def _with_added(text: str, controls: tuple[str, ...], **parts: object) -> str:
    """Return a tokenizer.json with more added tokens, and other parts."""
    data = json.loads(text) | parts
    known = {token["content"] for token in data["added_tokens"]}
    n_vocab = 1 + max(*data["model"]["vocab"].values(), *(token["id"] for token in data["added_tokens"]))
    new = [content for content in (*controls, *PLAIN_ADDED) if content not in known]
    for i, content in enumerate(new, start=n_vocab):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        data["added_tokens"].append({"id": i, "content": content, "special": content in controls, **flags})
    return json.dumps(data)


@lru_cache
def cases() -> tuple[Case, ...]:
    """Return every model, SentencePiece-like and byte-level, from JSON and from GGUF metadata."""
    haiku = read_gguf(HAIKU).metadata
    nfkc = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, json.loads(spm_json())["normalizer"]]}
    every = (*MISTRAL_CONTROLS, *GEMMA_CONTROLS, *CHATML_CONTROLS)
    spm = from_json(_with_added(spm_json(), every))
    folding = from_json(_with_added(spm_json(), every, normalizer=nfkc))
    gguf = Tokenizer.from_metadata(spm_metadata())
    llama3 = from_json(byte_level_json())
    chatml = from_json(byte_level_json(CHATML_CONTROLS))
    gemma = from_json(_with_added(byte_level_json(GEMMA_CONTROLS), ()))
    own = Tokenizer.from_metadata(haiku)
    return (
        Case(gguf, ChatTemplate.for_tokenizer(PHI3_TEMPLATE, gguf)),
        Case(folding, ChatTemplate.for_tokenizer(PHI3_TEMPLATE, folding)),
        Case(llama3, ChatTemplate.for_tokenizer(LLAMA3_TEMPLATE, llama3)),
        Case(chatml, ChatTemplate.for_tokenizer(CHATML_TEMPLATE, chatml)),
        Case(spm, ChatTemplate.for_tokenizer(CHATML_TEMPLATE, spm)),
        Case(folding, ChatTemplate.for_tokenizer(THINKING_TEMPLATE, folding)),
        Case(gemma, ChatTemplate.for_tokenizer(GEMMA_TEMPLATE, gemma), has_system=False),
        Case(spm, ChatTemplate.for_tokenizer(GEMMA_TEMPLATE, spm), has_system=False),
        Case(spm, ChatTemplate.for_tokenizer(MISTRAL_TEMPLATE, spm), has_system=False),
        Case(own, ChatTemplate.from_metadata(haiku, own)),
    )


CONTROLS = (
    "<s>", "</s>", "<unk>", *PHI3_CONTROLS, *LLAMA3_CONTROLS, *CHATML_CONTROLS, *GEMMA_CONTROLS,
    *MISTRAL_CONTROLS, *PLAIN_ADDED,
)  # fmt: skip
FRAGMENTS = sorted(
    {piece for text in CONTROLS for cut in (1, 2, -1, -2) for piece in (text[:cut], text[cut:])}
)
SYNTAX = (
    "{{",
    "}}",
    "{%",
    "%}",
    "{{ bos_token }}",
    "{% endfor %}",
    "{#",
    "#}",
    "{{ messages }}",
    "'",
    '"',
    "\\",
)
BYTES = ("<0x0A>", "<0x3C>", "<0x00>", "<0xFF>", "▁", "Ġ", "Ċ")
PRIVATE = tuple(chr(code) for code in (0xF0000, 0xF0001, 0xF0002, 0xF0010, 0xFFFFD, 0xE000))
WIDE = {ord(char): ord(char) + 0xFEE0 for char in "<|>[]/"}


def _tricks(text: str) -> list[str]:
    """Return forms of a control text that look, or normalize, like it."""
    return [
        text.translate(WIDE),
        text.replace("|", "｜"),
        "\u200b".join(text),
        text[:1] + "\ufeff" + text[1:],
        text[:1] + "\u0338" + text[1:],
        text[:2] + "\U000f0000" + text[2:],
        text.upper(),
        text[::-1],
        text[:-1] + " " + text[-1:],
        "".join(f"<0x{byte:02X}>" for byte in text.encode()),
    ]


parts = st.one_of(
    st.sampled_from(CONTROLS),
    st.sampled_from(FRAGMENTS),
    st.sampled_from([form for text in CONTROLS for form in _tricks(text)]),
    st.sampled_from((*SYNTAX, *BYTES, *PRIVATE)),
    st.sampled_from(
        ("\n", " ", "\t", "\r\n", "user", "system", "assistant", "model", "Hi", "\x00", "\u202e")
    ),
    st.text(max_size=6),
)
contents = st.lists(parts, max_size=8).map("".join)
surrogates = st.tuples(contents, st.sampled_from(("\ud800", "\udfff")), contents).map("".join)


@st.composite
def talks(draw: st.DrawFn) -> tuple[Case, list[Message]]:
    """Draw a model and a conversation whose roles its template takes."""
    case = draw(st.sampled_from(cases()))
    roles = ["user", "assistant", "user", "assistant"][: draw(st.integers(1, 4))]
    if case.has_system and draw(st.booleans()):
        roles = ["system", *roles]
    return case, [Message(role=role, content=draw(contents)) for role in roles]


def _control_ids(case: Case, messages: list[Message]) -> list[int]:
    ids = case.template.encode(messages, case.tokenizer)
    return [i for i in ids if i in case.tokenizer.special_ids]


@settings(max_examples=rounds(quick=1000, thorough=10_000), deadline=None)
@given(talks())
def test_no_content_changes_the_role_boundaries(talk: tuple[Case, list[Message]]) -> None:
    case, messages = talk
    harmless = [Message(role=message["role"], content="x") for message in messages]
    assert _control_ids(case, messages) == _control_ids(case, harmless)


@settings(max_examples=rounds(quick=50, thorough=500), deadline=None)
@given(st.sampled_from(range(10)), surrogates)
def test_a_lone_surrogate_is_refused_in_a_sentence(n: int, content: str) -> None:
    case = cases()[n]
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(TokenizerError, match="cannot be encoded"):
        template.encode([Message(role="user", content=content)], case.tokenizer)


def test_the_number_of_conversations_is_told() -> None:
    report(
        "No text of a message becomes a control token",
        rounds(quick=1000, thorough=10_000),
        f"no role boundary moved, over {len(cases())} pairs of vocabulary and template",
    )


def test_the_models_of_these_tests_do_write_control_tokens() -> None:
    for case in cases():
        messages = [Message(role="user", content="x"), Message(role="assistant", content="y")]
        assert len(_control_ids(case, messages)) >= 3
