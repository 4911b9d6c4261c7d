"""Whatever the messages hold, a prompt has the control tokens of its template and no others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from text_samples import (
    LLAMA3_CONTROLS,
    LLAMA3_TEMPLATE,
    PHI3_CONTROLS,
    PHI3_TEMPLATE,
    any_text,
    byte_level_json,
    calm,
    from_json,
    hf,
    spm_json,
)

from gguf_engine.text.chat import ChatTemplate, Message
from gguf_engine.text.tokenizer import Tokenizer

SPM, BPE = from_json(spm_json()), from_json(byte_level_json())
CASES = (
    (SPM, hf(spm_json()), ChatTemplate.for_tokenizer(PHI3_TEMPLATE, SPM)),
    (BPE, hf(byte_level_json()), ChatTemplate.for_tokenizer(LLAMA3_TEMPLATE, BPE)),
    (SPM, hf(spm_json()), ChatTemplate("<|{% for m in messages %}{{ m.content | trim }}|><|{% endfor %}>")),
)

roles = st.lists(st.sampled_from(["user", "assistant", "system"]), min_size=1, max_size=4)
hostile = any_text(("<s>", *PHI3_CONTROLS, *LLAMA3_CONTROLS))
harmless = st.text(alphabet=st.characters(exclude_characters="<|>", codec="utf-8"), max_size=30)


def _talk(roles: list[str], contents: list[str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)]


def _controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [i for i in ids if i in tokenizer.special_ids]


@calm
@given(roles, st.lists(hostile, min_size=4, max_size=4))
def test_messages_never_change_the_control_tokens_of_a_prompt(
    roles: list[str], contents: list[str]
) -> None:
    for tokenizer, _, template in CASES:
        ids = template.encode(_talk(roles, contents), tokenizer)
        inert = template.encode(_talk(roles, [""] * 4), tokenizer)
        assert _controls(tokenizer, ids) == _controls(tokenizer, inert)


@calm
@given(roles, st.lists(harmless, min_size=4, max_size=4))
def test_harmless_messages_give_the_ids_of_the_whole_text(roles: list[str], contents: list[str]) -> None:
    for tokenizer, oracle, template in CASES[:2]:
        messages = _talk(roles, contents)
        whole = oracle.encode(template.render(messages), add_special_tokens=False).ids
        assert template.encode(messages, tokenizer) == whole


@calm
@given(st.lists(hostile, min_size=1, max_size=3))
def test_what_was_typed_is_what_the_model_reads(contents: list[str]) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    messages = _talk(["user"] * 3, contents)
    # No template of ours writes BOS here; the tokenizer of this sample wants one.
    assert BPE.decode(template.encode(messages, BPE)) == "".join(contents)
