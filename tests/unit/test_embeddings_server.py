"""POST /v1/embeddings over real sockets, on a fake model."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_samples import thread_of
from server_samples import Served, chat_body, fake_llm, limits, raw_post, read_all, serve, wait_for

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as running:
        yield running


def vectors(served: Served, **body: Any) -> Any:
    response = served.post(PATH, body)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [(each["object"], each["index"]) for each in data] == [
        ("embedding", i) for i in range(len(data))
    ]
    return [each["embedding"] for each in data]


def error_of(response: Any) -> tuple[int, str, str | None, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"], error["message"]


def test_texts_come_back_as_unit_vectors_with_their_usage(served: Served) -> None:
    texts = ["the cat sat", "the mat"]
    response = served.post(PATH, {"input": texts, "model": "fake", "user": "me"})
    body = response.json()
    n_tokens = sum(len(served.llm.encode(text)) for text in texts)
    assert response.headers["content-type"] == "application/json"
    assert (body["object"], body["model"]) == ("list", "fake")
    assert body["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    rows = [each["embedding"] for each in body["data"]]
    np.testing.assert_allclose(rows, served.llm.embed(texts), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_text_a_list_of_ids_and_lists_of_them_are_inputs(served: Served) -> None:
    ids = served.llm.encode("the cat")
    one = vectors(served, input="the cat")
    assert (
        one
        == vectors(served, input=ids)
        == vectors(served, input=[ids])
        == vectors(served, input=["the cat"])
    )
    assert len(vectors(served, input=[ids, ids[:1]])) == 2


def test_base64_holds_the_same_float32(served: Served) -> None:
    (numbers,) = vectors(served, input="the cat", encoding_format="float")
    (encoded,) = vectors(served, input="the cat", encoding_format="base64")
    assert np.frombuffer(base64.b64decode(encoded), "<f4").tolist() == numbers


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "input", "input is missing"),
        ({"input": ""}, "input", "a list of 1..2048 of these, none of them empty"),
        ({"input": []}, "input", "input is []; allowed: a text, a list of token ids, or"),
        ({"input": [[]]}, "input[0]", ""),
        ({"input": ["x"] * 2049}, "input", "a list of 1..2048 of these"),
        ({"input": 5}, "input", "input is 5; allowed: a text, a list of token ids, or"),
        ({"input": ["x", 5]}, "input[1]", ""),
        ({"input": [[1, 99999]]}, "input[0]", "token ids in 0.."),
        ({"input": [[-1]]}, "input[0]", "a text or a list of token ids, not empty"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "x", "dimensions": 8}, "dimensions", "vectors come whole; leave it out"),
        ({"input": "x", "pooling": "mean"}, "pooling", "no field of this request"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_field(
    served: Served, body: dict[str, Any], param: str, said: str
) -> None:
    status, _, named, message = error_of(served.post(PATH, body))
    assert (status, named) == (400, param)
    assert said in message


def test_texts_that_are_too_long_are_refused_by_number_before_anything_runs(served: Served) -> None:
    for text in (" cat" * 600, [5] * 513, "x" * 100_000):
        status, code, _, message = error_of(served.post(PATH, {"input": ["x", text]}))
        assert (status, code) == (400, "context_length_exceeded")
        assert message.startswith("input[1] ")
    assert error_of(served.post(PATH, {"input": "x", "model": "gpt"}))[:2] == (404, "model_not_found")


def test_a_model_that_makes_none_answers_501() -> None:
    with serve(pooling=None) as served:
        response = served.post(PATH, {"input": "x"})
        status, code, _, message = error_of(response)
        assert (status, code) == (501, "not_supported")
        assert message == (
            "the model 'fake' makes no embeddings: it is a fake that was told so; ask a server that does"
        )
        assert response.headers["x-should-retry"] == "false"
        assert served.chat().status_code == 200


def has_work(served: Served) -> bool:
    """Look at the engine from outside: its thread is in a pass that would take ten minutes."""
    found: bool = thread_of(served.llm)._abort_embedding.__self__.has_work  # type: ignore[attr-defined]
    return found


def test_a_client_that_leaves_ends_its_texts() -> None:
    with serve(forward_s=600.0) as served:
        connection = served.send({"input": ["the cat"] * 200}, PATH)
        wait_for(lambda: has_work(served))
        connection.close()
        wait_for(lambda: not has_work(served))
        wait_for(lambda: served.app.state.desk._n_taken == 0)


def test_embeddings_take_a_place_in_the_queue_and_end_with_the_server() -> None:
    settings = limits(max_queue=0, drain_s=0.0)
    with serve(fake_llm(forward_s=600.0, n_slots=1), settings) as served:
        connection = served.connect()
        connection.sendall(raw_post(PATH, b'{"input": "the cat"}', "Connection: close"))
        wait_for(lambda: has_work(served))
        assert served.post(PATH, {"input": "x"}).status_code == 429
        assert served.post("/v1/chat/completions", chat_body()).status_code == 429
        served.server.handle_exit(15, None)
        answer = read_all(connection)
        connection.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"the embeddings were cut off" in answer
