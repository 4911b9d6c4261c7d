"""What a body may hold: over real sockets, each refusal names its field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from pydantic import ValidationError
from server_samples import CHAT, Served, chat_body, limits, serve

from gguf_engine import SamplingParams
from gguf_engine.server import schema
from gguf_engine.server.refusal import in_words

MESSAGES = chat_body()["messages"]
STRICT: set[type[schema.Strict]] = {*schema.Strict.__subclasses__(), *schema.Sampling.__subclasses__()}
STRICT |= {*schema.Generation.__subclasses__()}
SOME_MESSAGES = "allowed: a list of 1..4096 objects of role and content"
A_STOP = "allowed: a text of 1..4096 characters"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(settings=limits(max_body_bytes=20_000)) as running:
        yield running


def refusal(served: Served, path: str, body: Any, status: int = 400) -> tuple[str, str | None, str]:
    response = served.post(path, body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error["code"], error["param"], error["message"]


def test_every_sampling_option_is_a_field_of_every_request() -> None:
    """But log-probabilities, which each kind of request asks for in its own way."""
    options = {field.name for field in fields(SamplingParams)} - {"logprobs"}
    assert set(schema.Sampling.model_fields) == options


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", 1e999),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", 1),
        ("repeat_penalty", 0),
        ("repeat_penalty", 1e-300),
        ("repeat_last_n", -2),
        ("penalize_prompt", 1),
        ("presence_penalty", 101),
        ("frequency_penalty", -101),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 10**400),
        ("max_tokens", -1),
        ("max_tokens", 2**31),
        ("max_completion_tokens", -1),
        ("ignore_eos", "yes"),
        ("order", "best"),
        ("n", 0),
        ("n", 129),
        ("stream", "true"),
        ("logprobs", 1),
        ("top_logprobs", 65),
        ("top_logprobs", 2),
        ("model", 5),
        ("stream_options", []),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"99999": 1}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("messages", []),
        ("messages", "hello"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(served: Served, field: str, value: Any) -> None:
    import json

    body = json.dumps(chat_body(**{field: value})).replace("Infinity", "1e999")
    response = served.client.post(CHAT, content=body, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert field in error["message"]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage"),
        ({"stream_options": {"fast": True}, "stream": True}, "stream_options.fast"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content"),
        ({"messages": ["hello"]}, "messages[0]"),
    ],
)
def test_a_place_inside_is_named_too(served: Served, part: dict[str, Any], param: str) -> None:
    found = refusal(served, CHAT, chat_body(**part))[1]
    assert found is not None
    assert found.startswith(param)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (CHAT, {"messages": []}, f"messages is []; {SOME_MESSAGES}"),
        (CHAT, {"messages": "hi"}, f"messages is 'hi'; {SOME_MESSAGES}"),
        (CHAT, {"messages": ["x"]}, "messages[0] is 'x'; allowed: an object of role, content"),
        (CHAT, chat_body(stop=""), f"stop is ''; {A_STOP}, or a list of at most 64 of these"),
        (CHAT, chat_body(stop=["a", ""]), f"stop[1] is ''; {A_STOP}"),
        (CHAT, chat_body(top_p=1.1), "top_p is 1.1; allowed: a number in (0, 1]"),
        (CHAT, chat_body(min_p=1), "min_p is 1; allowed: a number in [0, 1)"),
        (CHAT, chat_body(top_k=0.5), "top_k is 0.5; allowed: an integer in 0..2147483647"),
        (CHAT, chat_body(n=129), "n is 129; allowed: an integer in 1..128"),
        (CHAT, chat_body(stream="true"), "stream is 'true'; allowed: true or false"),
        (CHAT, chat_body(order="x"), "order is 'x'; allowed: 'standard' or 'llama.cpp'"),
        (CHAT, chat_body(model=5), "model is 5; allowed: a text"),
        (CHAT, chat_body(logit_bias={"5": 101}), "logit_bias[5] is 101; allowed: a number in [-100, 100]"),
        (CHAT, chat_body(stream_options=[]), "stream_options is []; allowed: an object of include_usage, "),
        ("/v1/completions", {"prompt": [""]}, "prompt[0] is ''; allowed: a text or a list of token ids, "),
        ("/prompt", {"prompt": ""}, "prompt is ''; allowed: a text that is not empty"),
        ("/detokenize", {"tokens": "x"}, "tokens is 'x'; allowed: a list of token ids"),
    ],
)
def test_a_refusal_says_the_value_and_what_is_allowed(
    served: Served, path: str, body: Any, message: str
) -> None:
    assert refusal(served, path, body)[2].startswith(message)


@pytest.mark.parametrize("prompt", ["", [], 5, [1, "a"], [-1]])
def test_a_prompt_is_refused_as_it_was_sent(served: Served, prompt: Any) -> None:
    allowed = "a text, a list of token ids, or a list of 1..128 of these, none of them empty"
    found = refusal(served, "/v1/completions", {"prompt": prompt})
    assert found == ("invalid_value", "prompt", f"prompt is {prompt!r}; allowed: {allowed}")


def test_every_field_says_in_words_what_it_allows() -> None:
    """What a field lacks the words for is a KeyError, and would be a status 500."""
    for kind in STRICT:
        root = kind.model_json_schema()
        assert all(in_words(part, root) for part in root.get("properties", {}).values())


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, chat_body(grammar="x"), "grammar"),
        ("/v1/completions", {"prompt": "x", "..x": 1}, "..x"),
        ("/prompt", {"prompt": "x", "stream": True}, "stream"),
        ("/prompt", {"prompt": "x", "user": "me"}, "user"),
        ("/tokenize", {"content": "x", "parse": True}, "parse"),
        ("/detokenize", {"tokens": [1], "x": 1}, "x"),
        ("/apply-template", {"messages": MESSAGES, "tools": []}, "tools"),
        ("/v1/embeddings", {"input": "x", "pooling": 1}, "pooling"),
    ],
)
def test_an_unknown_field_is_refused_by_name(served: Served, path: str, body: Any, name: str) -> None:
    code, param, message = refusal(served, path, body)
    assert (code, param) == ("unknown_field", name)
    assert message == f"{name!r} is no field of this request; remove it"


@pytest.mark.parametrize(
    ("body", "param", "meant"),
    [
        (chat_body(temprature=1), "temprature", "temperature"),
        ({"message": MESSAGES}, "message", "messages"),
        (chat_body(**{"top-k": 1}), "top-k", "top_k"),
        (chat_body(messages=[{"role": "user", "contents": "x"}]), "messages[0].contents", "content"),
        (chat_body(stream_options={"includeusage": 1}), "stream_options.includeusage", "include_usage"),
    ],
)
def test_an_unknown_field_that_is_close_to_one_is_told_so(
    served: Served, body: Any, param: str, meant: str
) -> None:
    name = param.rpartition(".")[2]
    message = f"{name!r} is no field of this request; did you mean {meant!r}?"
    assert refusal(served, CHAT, body) == ("unknown_field", param, message)


@pytest.mark.parametrize(
    "field",
    sorted(schema._HARMLESS),
)
def test_openais_fields_that_change_no_answer_are_ignored(served: Served, field: str) -> None:
    assert served.chat(**{field: "anything"}).json()["choices"] == served.chat().json()["choices"]


@pytest.mark.parametrize(
    ("field", "asking", "silent"),
    [
        ("tools", [{"type": "function"}], []),
        ("tool_choice", "required", "none"),
        ("functions", [{}], []),
        ("function_call", {"name": "f"}, "auto"),
        ("response_format", {"type": "json_object"}, {"type": "text"}),
        ("audio", {"voice": "x"}, None),
        ("modalities", ["audio"], ["text"]),
        ("reasoning_effort", "high", None),
        ("web_search_options", {}, None),
        ("best_of", 2, 1),
        ("echo", True, False),
        ("suffix", "x", ""),
    ],
)
def test_openais_fields_that_we_lack_are_refused_unless_they_ask_for_nothing(
    served: Served, field: str, asking: Any, silent: Any
) -> None:
    _, param, message = refusal(served, CHAT, chat_body(**{field: asking}))
    assert param == field
    assert message.startswith(f"{field} is a part of OpenAI's API that this server does not have")
    assert served.chat(**{field: silent}).status_code == 200


def test_null_means_not_given(served: Served) -> None:
    nothing = {
        name: None
        for name in schema.ChatRequest.model_fields
        if name not in ("messages", "seed", "max_tokens")
    }
    assert served.chat(**nothing).json()["choices"] == served.chat().json()["choices"]


def test_two_limits_that_differ_are_refused(served: Served) -> None:
    assert refusal(served, CHAT, chat_body(max_tokens=3, max_completion_tokens=4))[1] == "max_tokens"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (schema.ChatRequest, {"messages": [1] * 2000}),
        (schema.ChatRequest, {"messages": [{}] * 2000}),
        (schema.ChatRequest, {"messages": MESSAGES * 5000}),
        (schema.ChatRequest, {"messages": MESSAGES, "stop": [1] * 2000}),
        (schema.CompletionRequest, {"prompt": [-1] * 2000}),
        (schema.CompletionRequest, {"prompt": [[-1] * 2000] * 100}),
        (schema.DetokenizeRequest, {"tokens": [-1] * 2000}),
        (schema.EmbeddingRequest, {"input": [""] * 2000}),
    ],
)
def test_a_body_of_many_wrong_items_costs_few_errors(kind: type[schema.Strict], values: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(values)
    assert caught.value.error_count() <= 4


@pytest.mark.parametrize(
    "more",
    [
        {f"field{n}": 1 for n in range(1100)},
        {"logit_bias": {str(n): "x" for n in range(1100)}},
        {"messages": [{f"field{n}": 1 for n in range(1100)}]},
    ],
)
def test_an_object_of_more_fields_than_any_has_is_refused(served: Served, more: dict[str, Any]) -> None:
    code, param, message = refusal(served, CHAT, chat_body(**more))
    assert (code, param) == ("invalid_value", None if len(more) > 1 else next(iter(more)))
    assert "fields; allowed: 1024 at most" in message


def test_stream_options_without_a_stream_are_refused(served: Served) -> None:
    assert refusal(served, CHAT, chat_body(stream_options={}))[1] == "stream_options"


def test_a_missing_field_is_named(served: Served) -> None:
    assert refusal(served, "/v1/completions", {}) == ("missing_field", "prompt", "prompt is missing")


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [1, "a"], [-1], [2**31], {}, 5, None, ["a"] * 129])
def test_a_prompt_that_is_none_is_refused(served: Served, prompt: Any) -> None:
    assert (refusal(served, "/v1/completions", {"prompt": prompt})[1] or "").startswith("prompt")


def test_more_answers_than_allowed_are_refused(served: Served) -> None:
    assert refusal(served, "/v1/completions", {"prompt": ["a"] * 64, "n": 3})[1] == "n"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b'"x"', b"null", b"\xff\xfe", b'{"messages": "\\ud800"}', b'{"a": NaN}',
     b"[" * 5000, b'{"a":' * 3000, b"1" * 5000],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(served: Served, body: bytes) -> None:
    response = served.client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"]
)
def test_another_content_type_is_refused_as_other_sites_can_send_it(served: Served, kind: str) -> None:
    response = served.client.post(CHAT, content=b"{}", headers={"content-type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "content_type")


def test_a_content_type_may_name_its_charset(served: Served) -> None:
    import json

    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert served.client.post(CHAT, content=json.dumps(chat_body()), headers=headers).status_code == 200


def test_a_body_that_is_too_large_is_refused_by_its_length(served: Served) -> None:
    response = served.post("/tokenize", {"content": "x" * 20_000})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert served.post("/tokenize", {"content": "x" * 19_000}).status_code == 200


def test_a_body_that_does_not_say_its_length_is_counted(served: Served) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    response = served.client.post(
        "/tokenize", content=parts(), headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert served.chat().status_code == 200
