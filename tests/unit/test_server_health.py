"""What the server says of the engine: a fresh beat, and metrics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server_samples import Served, chat_body, limits, serve, wait_for

from gguf_engine.outputs import Piece
from gguf_engine.server.answer import Answer
from gguf_engine.server.metrics import Metrics


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as running:
        yield running


def test_health_is_the_engines_own_word(served: Served) -> None:
    response = served.client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "model": "fake"})


def test_a_long_pass_is_a_sign_of_life() -> None:
    with serve(settings=limits(beat_s=5.0), forward_s=3.0) as running, running.send(chat_body()):
        wait_for(lambda: bool(running.app.state.desk._answers))
        assert running.client.get("/health").status_code == 200
        assert "gguf_engine_requests_running 1.0" in running.client.get("/metrics").text


def test_health_says_503_when_the_engine_is_busy_for_too_long_or_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gguf_engine.engine.worker.LONG_PASS_S", 0.0)
    with serve(settings=limits(beat_s=0.1), forward_s=3.0) as running:
        with running.send(chat_body()):
            wait_for(lambda: bool(running.app.state.desk._answers))
            response = running.client.get("/health")
            assert response.status_code == 503
            assert response.json()["reason"] == "the engine gave no sign of life within 0.1 s"
        running.llm.close()
        assert running.client.get("/health").status_code == 503
        assert running.chat().json()["error"]["code"] == "engine_closed"


def test_all_who_ask_for_health_at_once_cost_one_question() -> None:
    with serve(settings=limits(beat_s=5.0)) as running:
        asked = []
        may_answer = threading.Event()
        stats = running.llm.stats

        def slow(timeout_s: float) -> Any:
            asked.append(timeout_s)
            may_answer.wait(30)
            return stats(timeout_s)

        running.llm.stats = slow  # type: ignore[method-assign, assignment]
        codes: list[int] = []
        url = running.url + "/health"

        def ask() -> None:
            codes.append(httpx.get(url, trust_env=False, timeout=30).status_code)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(running.server.server_state.tasks) == 20)
        may_answer.set()
        for thread in threads:
            thread.join()
        assert codes == [200] * 20
        assert len(asked) == 1


def test_metrics_count_what_happened() -> None:
    with serve() as running:
        running.chat(max_tokens=7)
        running.chat(nonsense=1)
        running.chat(max_tokens=1)
        running.client.get("/made/up/path")
        text = running.client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['gguf_engine_http_requests_total{route="/v1/chat/completions",status="200"}'] == "2.0"
    assert lines['gguf_engine_http_requests_total{route="/v1/chat/completions",status="400"}'] == "1.0"
    assert lines['gguf_engine_http_requests_total{route="other",status="404"}'] == "1.0"
    assert float(lines["gguf_engine_completion_tokens_total"]) == 8
    assert float(lines["gguf_engine_first_token_seconds_count"]) == 2
    assert float(lines["gguf_engine_inter_token_seconds_count"]) == 6
    gap_s = float(lines["gguf_engine_inter_token_seconds_sum"]) / 6
    assert 0 < gap_s < 1
    assert (lines["gguf_engine_up"], lines["gguf_engine_slots"]) == ("1.0", "4.0")
    assert lines["gguf_engine_crashes_total"] == "0.0"


def test_metrics_go_on_without_an_engine() -> None:
    with serve() as running:
        running.llm.close()
        text = running.client.get("/metrics").text
    assert "gguf_engine_up 0.0" in text
    assert "gguf_engine_slots " not in text


def test_the_time_between_two_deliveries_is_shared_by_their_tokens() -> None:
    gaps: list[tuple[float, int]] = []

    async def hear() -> None:
        answer = Answer([_Silent()], lambda *gap: gaps.append(gap), at_once=True)  # type: ignore[list-item]
        answer._hear(0, 1.0, [Piece("a")])
        answer._hear(0, 1.6, [Piece("b"), Piece("c"), Piece("d")])
        answer._hear(0, 1.7, [Piece("e")])

    asyncio.run(hear())
    assert [n for _, n in gaps] == [3, 1]
    assert [gap_s for gap_s, _ in gaps] == pytest.approx([0.2, 0.1])


def test_times_between_tokens_are_a_histogram_as_prometheus_reads_it() -> None:
    metrics = Metrics()
    for gap_s, n in ((0.001, 2), (0.0011, 3), (7.0, 1)):
        metrics.note_gaps(gap_s, n)
    lines = dict(
        line.rsplit(" ", 1)
        for line in metrics.render(None).decode().splitlines()
        if line.startswith("gguf_engine_inter_token_seconds")
    )
    name = "gguf_engine_inter_token_seconds"
    found = [float(lines[f'{name}_bucket{{le="{edge}"}}']) for edge in ("0.001", "0.0025", "5.0", "+Inf")]
    assert found == [2, 5, 5, 6]
    assert float(lines[f"{name}_count"]) == 6
    assert float(lines[f"{name}_sum"]) == pytest.approx(7.0053)


class _Silent:
    """A stream that says nothing by itself."""

    def listen(self, hear: object, *, whole: bool) -> None:
        pass
