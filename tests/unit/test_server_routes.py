"""What each route answers, over real sockets, on a fake model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server_samples import CHAT, Served, chat_body, events, fake_llm, limits, serve

from gguf_engine import SamplingParams
from gguf_engine.server.replies import KEEP_ALIVE


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as running:
        yield running


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"], error["param"]


def test_an_answer_is_what_the_model_says(served: Served) -> None:
    answer = served.chat().json()
    expected = served.llm.chat(chat_body()["messages"], SamplingParams(seed=1, max_tokens=5))
    choice = answer["choices"][0]
    assert (answer["object"], answer["model"], answer["seed"]) == ("chat.completion", "fake", 1)
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == expected.finish_reason == "length"
    assert answer["usage"]["prompt_tokens"] == expected.usage.n_prompt
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["timings"]["total_s"] > 0


def test_a_stream_joined_is_the_whole_answer(served: Served) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "stream_options": {"include_usage": True}, "stream": True}
    response = served.chat(**options)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, last, done = events(response.text)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == served.chat(max_tokens=40).json()["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "length"]
    assert (last["choices"], last["usage"]["completion_tokens"], done) == ([], 40, "[DONE]")
    assert last["timings"]["decode_tokens_per_s"] > 0
    assert all(chunk["usage"] is None for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_without_usage_has_none(served: Served) -> None:
    *chunks, done = events(served.chat(stream=True).text)
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)


def test_several_choices_are_several_answers_with_seeds_in_a_row(served: Served) -> None:
    answer = served.chat(n=3).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    alone = [served.chat(seed=seed).json()["choices"][0]["message"]["content"] for seed in (1, 2, 3)]
    assert texts == alone
    assert answer["usage"]["completion_tokens"] == 15
    assert answer["usage"]["prompt_tokens"] == served.chat().json()["usage"]["prompt_tokens"]
    chunks = events(served.chat(n=3, stream=True).text)[:-1]
    streamed = ["", "", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts


def test_completions_continue_texts_and_ids(served: Served) -> None:
    text = "the cat sat"
    body = {"prompt": text, "seed": 1, "max_tokens": 5}
    answer = served.post("/v1/completions", body).json()
    expected = served.llm.generate(text, SamplingParams(seed=1, max_tokens=5))
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", expected.text)
    ids = served.llm.encode(text)
    several = served.post("/v1/completions", {**body, "prompt": [text, "a dog"], "n": 2}).json()
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert several["choices"][0]["text"] == expected.text
    assert several["usage"]["prompt_tokens"] == len(ids) + len(served.llm.encode("a dog"))
    of_ids = served.post("/v1/completions", {**body, "prompt": ids}).json()
    assert of_ids["choices"][0]["text"].strip() == expected.text.strip()
    streamed = events(served.post("/v1/completions", {**body, "stream": True}).text)[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == expected.text


def test_log_probabilities_of_a_chat(served: Served) -> None:
    answer = served.chat(logprobs=True, top_logprobs=3, max_tokens=4).json()
    content = answer["choices"][0]["logprobs"]["content"]
    expected = served.llm.chat(chat_body()["messages"], SamplingParams(seed=1, max_tokens=4, logprobs=3))
    assert [each["logprob"] for each in content] == list(expected.logprobs)
    assert [len(each["top_logprobs"]) for each in content] == [3] * 4
    assert all(bytes(each["bytes"]).decode("utf-8", "replace") == each["token"] for each in content)
    chunks = events(served.chat(logprobs=True, max_tokens=4, stream=True).text)[:-1]
    streamed = [
        each["logprob"]
        for chunk in chunks
        for each in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == list(expected.logprobs)


def test_log_probabilities_of_a_completion(served: Served) -> None:
    body = {"prompt": "the cat", "logprobs": 2, "max_tokens": 3, "seed": 1}
    logprobs = served.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    assert [len(values) for values in logprobs.values()] == [3, 3, 3, 3]
    assert logprobs["text_offset"][1] == len(logprobs["tokens"][0])
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])


def test_sampling_fields_reach_the_sampler(served: Served) -> None:
    options: dict[str, Any] = {
        "temperature": 0,
        "repeat_penalty": 1.5,
        "top_k": 9,
        "logit_bias": {"300": 50},
    }
    answer = served.chat(**options).json()["choices"][0]["message"]["content"]
    params = SamplingParams(
        seed=1, max_tokens=5, temperature=0, repeat_penalty=1.5, top_k=9, logit_bias={300: 50}
    )
    assert answer == served.llm.chat(chat_body()["messages"], params).text
    assert answer != served.chat().json()["choices"][0]["message"]["content"]


def test_a_stop_string_ends_an_answer(served: Served) -> None:
    whole = served.chat(max_tokens=30).json()["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2 :][:3]
    cut = served.chat(max_tokens=30, stop=stop).json()["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_an_answer_without_a_limit_ends_with_the_context(served: Served) -> None:
    answer = served.chat(max_tokens=None, ignore_eos=True).json()
    assert answer["usage"]["total_tokens"] == served.llm.n_ctx
    assert served.chat(max_completion_tokens=3, max_tokens=None).json()["usage"]["completion_tokens"] == 3


def test_content_may_come_in_parts(served: Served) -> None:
    parts = [{"type": "text", "text": "the cat "}, {"type": "text", "text": "sat on the mat"}]
    assert (
        served.chat(messages=[{"role": "user", "content": parts}]).json()["choices"]
        == (served.chat().json()["choices"])
    )


def test_what_openais_client_sends_back_of_an_answer_is_taken(served: Served) -> None:
    answer = {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None, "audio": None}
    messages = [{"role": "user", "content": "a"}, answer, {"role": "user", "content": "b"}]
    assert served.chat(messages=messages).status_code == 200


def test_prompt_is_the_smallest_thing_that_works(served: Served) -> None:
    response = served.post("/prompt", {"prompt": "the cat sat on the mat", "seed": 1, "max_tokens": 5})
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == served.chat().json()["choices"][0]["message"]["content"]


def test_models_are_the_one_there_is(served: Served) -> None:
    (card,) = served.client.get("/v1/models").json()["data"]
    assert (card["id"], card["meta"]["n_ctx"]) == ("fake", 512)
    assert served.client.get("/v1/models/fake").json() == card
    assert error_of(served.client.get("/v1/models/org/other")) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("loaded", "served_name", "expected"),
    [
        ("phi3-mini", None, "phi3-mini"),
        ("/secret/folder/m.gguf", None, "m.gguf"),
        ("org/repo:m@main", None, "org/repo:m@main"),
        ("x", "mine", "mine"),
    ],
)
def test_the_models_name_is_no_path(loaded: str, served_name: str | None, expected: str) -> None:
    from gguf_engine.server.app import create_app

    with fake_llm() as llm:
        llm.model = loaded
        app = create_app(llm, limits(served_name=served_name))
        transport = httpx.ASGITransport(app)
        names = []

        async def ask() -> None:
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                names.append((await client.get("/v1/models")).json()["data"][0]["id"])

        import asyncio

        asyncio.run(ask())
    assert names == [expected]


def test_another_model_than_the_one_served_is_not_found(served: Served) -> None:
    assert error_of(served.chat(model="gpt-4")) == (404, "model_not_found", "model")
    assert served.chat(model="fake").status_code == 200


def test_tokens_and_text_and_back(served: Served) -> None:
    ids = served.post("/tokenize", {"content": "the cat"}).json()["tokens"]
    assert ids == served.llm.tokenizer.encode("the cat", add_bos=False)
    with_bos = served.post("/tokenize", {"content": "the cat", "add_special": True}).json()["tokens"]
    assert with_bos == served.llm.tokenizer.encode("the cat")
    assert served.post("/detokenize", {"tokens": ids}).json() == {"content": "the cat"}
    control = served.post("/tokenize", {"content": "<|end|>"}).json()["tokens"]
    assert not set(control) & served.llm.tokenizer.special_ids
    too_large = served.post("/detokenize", {"tokens": [5, 10**6]})
    assert error_of(too_large) == (400, "invalid_value", "tokens")


def test_a_template_can_be_looked_at(served: Served) -> None:
    messages = chat_body()["messages"]
    assert served.post("/apply-template", {"messages": messages}).json() == {
        "prompt": served.llm.template.render(messages)
    }
    without = served.post("/apply-template", {"messages": messages, "add_generation_prompt": False}).json()
    assert without["prompt"] == served.llm.template.render(messages, add_generation_prompt=False)


def test_a_model_without_embeddings_says_so_and_that_retrying_does_not_help() -> None:
    with serve(pooling=None) as served:
        response = served.post("/v1/embeddings", {"input": "x", "model": "fake"})
    assert error_of(response) == (501, "not_supported", None)
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/chat/completions/", "/../etc/passwd", "/docs"])
def test_what_is_not_there_is_said_in_json(served: Served, path: str) -> None:
    assert error_of(served.client.get(path))[:2] == (404, "not_found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_is_said_in_json(served: Served, method: str) -> None:
    response = served.client.request(method, CHAT)
    assert error_of(response)[:2] == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_no_route_loads_or_makes_anything(served: Served) -> None:
    """The whole list, so that another one is a decision."""
    paths = {
        (method.upper(), path)
        for path, item in served.client.get("/openapi.json").json()["paths"].items()
        for method in item
    }
    assert paths == {
        ("GET", "/health"),
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model}"),
        ("POST", "/apply-template"),
        ("POST", "/detokenize"),
        ("POST", "/prompt"),
        ("POST", "/tokenize"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
    }


def test_the_openapi_document_describes_every_body(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, item in document["paths"].items():
        if "post" in item:
            name = item["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition(
                "/"
            )[2]
            assert schemas[name]["additionalProperties"] is False, path
    assert json.dumps(document).count("$ref") > 8


def test_a_prompt_longer_than_the_context_is_refused(served: Served) -> None:
    response = served.chat(messages=[{"role": "user", "content": "the cat " * 400}])
    assert error_of(response)[:2] == (400, "context_length_exceeded")
    assert "the context holds 512" in response.json()["error"]["message"]


def test_a_prompt_that_cannot_fit_is_refused_without_encoding_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.llm, "encode", lambda *_, **__: pytest.fail("encoded"))
    text = "a" * 100_000
    refused = [
        served.chat(messages=[{"role": "user", "content": text}]),
        served.post("/v1/completions", {"prompt": text}),
        served.post("/prompt", {"prompt": text}),
    ]
    for response, param in zip(refused, ("messages", "prompt", "prompt"), strict=True):
        assert error_of(response) == (400, "context_length_exceeded", param)


def test_a_model_without_a_template_says_so() -> None:
    with serve(fake_llm(template=None)) as running:
        assert error_of(running.chat())[:2] == (400, "invalid_messages")
        assert running.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status_code == 200


def test_requests_run_together(served: Served) -> None:
    """More than slots, all at once: each gets what it gets alone."""
    alone = [served.chat(seed=seed, max_tokens=20).json()["choices"] for seed in range(8)]
    together: list[Any] = [None] * 8

    def ask(seed: int) -> None:
        body = chat_body(seed=seed, max_tokens=20)
        together[seed] = httpx.post(served.url + CHAT, json=body, timeout=30, trust_env=False).json()[
            "choices"
        ]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_silent_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf_engine.server import answer

    monkeypatch.setattr(answer, "KEEP_ALIVE_S", 0.02)
    with serve(forward_s=0.2) as running:
        text = running.chat(stream=True, max_tokens=2).text
    assert KEEP_ALIVE.decode() in text
    assert events(text)[-1] == "[DONE]"


def test_the_pages_files_load_nothing_from_elsewhere(served: Served) -> None:
    for path, kind in (("/", "text/html"), ("/chat.css", "text/css"), ("/chat.js", "text/javascript")):
        response = served.client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        policy = response.headers["content-security-policy"].split("; ")
        assert policy[:4] == [
            "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
        ]  # fmt: skip
        assert response.headers["x-content-type-options"] == "nosniff"
