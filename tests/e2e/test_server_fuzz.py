"""Requests of every kind thrown at the real server; and the judge of the answers, judged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fuzz_bodies import Case, make_case
from fuzz_server import ALLOWED_5XX, fault_of, fuzz
from promises import report
from server_samples import serve
from thoroughness import rounds

from gguf_engine.server.errors import INVALID, error_body

SCHEMA = Case("schema", b"POST /prompt HTTP/1.1\r\n\r\n{}")
HTTP = Case("http", b"\x00\r\n\r\n")
JSON = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n\r\n"
SENTENCE = json.dumps(error_body("max_tokens is too small", INVALID, "invalid_value", None)).encode()
ONE_WORD = SENTENCE.replace(b"max_tokens is too small", b"no")


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_no_request_kills_the_server_or_is_answered_without_words() -> None:
    found, tally = fuzz(rounds(quick=400, thorough=20_000), seed=7)
    assert tally.findings == []
    assert found["deaths"] == 0
    assert found["by_status"].get("ended", 0) <= found["count"] / 100  # hanging up is no answer
    assert found["count"] == sum(found["by_status"].values()) >= 400
    assert {"200", "400", "404", "405", "408"} <= set(found["by_status"])
    assert set(found["by_kind"]) == {"schema", "bytes", "http"}
    report(
        "No request kills the server",
        found["count"],
        f"0 deaths, no status 5xx but {', '.join(map(str, sorted(ALLOWED_5XX)))}; each refusal a sentence",
    )


@pytest.mark.parametrize(
    ("case", "status", "head", "body", "fault"),
    [
        (SCHEMA, 200, b"", b"snow", None),
        (SCHEMA, 400, JSON, SENTENCE, None),
        (HTTP, None, b"", b"", None),
        (SCHEMA, None, b"", b"", "no answer to a whole request"),
        (SCHEMA, 500, JSON, SENTENCE, "status 500"),
        (SCHEMA, 502, JSON, SENTENCE, "status 502"),
        (SCHEMA, 307, b"", b"", "status 307"),
        (SCHEMA, 503, JSON, SENTENCE, None),
        (SCHEMA, 503, JSON, b"", "status 503 without a sentence"),
        (SCHEMA, 400, JSON, b'{"detail": "x"}', "status 400 without a sentence"),
        (SCHEMA, 400, JSON, ONE_WORD, "status 400 without a sentence"),
        (SCHEMA, 400, b"content-type: text/plain", SENTENCE, "status 400 without a sentence"),
    ],
)
def test_the_judge_sees(
    case: Case, status: int | None, head: bytes, body: bytes, fault: str | None
) -> None:
    assert fault_of(case, status, head, body) == fault


def test_the_same_numbers_make_the_same_request_and_others_another() -> None:
    with serve() as running:
        document: dict[str, Any] = running.client.get("/openapi.json").json()
    first = [make_case(document, 1, number) for number in range(200)]
    assert first == [make_case(document, 1, number) for number in range(200)]
    assert len({case.data for case in first}) > 100
    assert first[5] != make_case(document, 2, 5)
