"""Clients that ask too much, send slowly, read slowly or leave; and a server that is told to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_samples import (
    CHAT,
    HANG_S,
    Served,
    chat_body,
    events,
    fake_llm,
    limits,
    raw_post,
    read_all,
    read_until,
    serve,
    wait_for,
)
from text_samples import PHI3_TEMPLATE, from_json, spm_json

from gguf_engine import LLM
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import process
from gguf_engine.text.chat import ChatTemplate

LONG: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True}


def is_free(served: Served) -> bool:
    return served.n_running == 0 and served.app.state.desk._n_taken == 0


def test_more_than_run_and_wait_are_told_to_come_again() -> None:
    with serve(settings=limits(max_queue=2), n_slots=1, forward_s=0.02) as running:
        held = [running.send(chat_body(**LONG, stream=True)) for _ in range(3)]
        for connection in held:
            read_until(connection, b"assistant")
        refused = running.chat()
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert "1 requests run and 2 wait" in refused.json()["error"]["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert running.client.get("/health").status_code == 200
        for connection in held:
            connection.close()
        wait_for(lambda: is_free(running))
        assert running.chat().status_code == 200


def test_each_choice_takes_a_place() -> None:
    with serve(settings=limits(max_queue=2), n_slots=2) as running:
        assert running.chat(n=4).status_code == 200
        refused = running.chat(n=5)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
        wait_for(lambda: running.app.state.desk._n_taken == 0)


def test_a_refused_request_holds_no_place() -> None:
    with serve(settings=limits(max_queue=0), n_slots=2) as running:
        for _ in range(3):
            assert running.chat(messages=[{"role": "user", "content": "the cat " * 400}]).status_code == 400
            assert running.post("/v1/completions", {"prompt": [[1], [10**6]]}).status_code == 400
        assert running.chat().status_code == 200
        wait_for(lambda: is_free(running))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(stream: bool) -> None:
    with serve(forward_s=0.02) as running:
        connection = running.send(chat_body(**LONG, stream=stream))
        wait_for(lambda: running.n_running == 1)
        connection.close()
        started_at = time.monotonic()
        wait_for(lambda: is_free(running))
        # All of it would take 8 s.
        assert time.monotonic() - started_at < 4
        wait_for(lambda: ',status="499"' in running.client.get("/metrics").text or stream)


def test_a_client_that_waits_in_the_queue_and_leaves_is_forgotten() -> None:
    with serve(n_slots=1, forward_s=0.02) as running:
        first = running.send(chat_body(**LONG, stream=True))
        read_until(first, b"assistant")
        second = running.send(chat_body(**LONG))
        wait_for(lambda: running.llm.stats().n_waiting == 1)
        second.close()
        wait_for(lambda: running.llm.stats().n_waiting == 0)
        first.close()


def test_a_slow_reader_is_dropped_and_its_place_is_free() -> None:
    settings = limits(slow_reader_s=0.3)
    with serve(settings=settings, n_ctx=4096, n_cells=40_000) as running:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect(("127.0.0.1", running.port))
        slow.settimeout(HANG_S)
        for connection in list_of_connections(running):
            connection.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, 2048
            )
        options = {"max_tokens": 3000, "ignore_eos": True, "logprobs": True, "top_logprobs": 20, "n": 2}
        slow.sendall(raw_post(CHAT, json.dumps(chat_body(**options, stream=True)).encode()))
        wait_for(lambda: running.n_running == 2)
        wait_for(lambda: not running.server.server_state.connections)
        wait_for(lambda: is_free(running))
        assert b"[DONE]" not in read_all(slow)
        slow.close()


def list_of_connections(served: Served) -> list[Any]:
    wait_for(lambda: bool(served.server.server_state.connections))
    return list(served.server.server_state.connections)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /prompt HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        raw_post("/prompt", b"{}" * 50)[:-60],
    ],
)
def test_a_request_that_does_not_arrive_is_ended(sent: bytes) -> None:
    with serve(settings=limits(request_s=0.2)) as running, running.connect() as connection:
        connection.sendall(sent)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the request did not arrive within 0.2 s" in answer


def test_bytes_that_drip_do_not_move_the_deadline() -> None:
    with serve(settings=limits(request_s=0.3)) as running, running.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        started_at = time.monotonic()
        try:
            while time.monotonic() < started_at + HANG_S:
                connection.sendall(b"X-Slow: 1\r\n")
                time.sleep(0.02)
        except ConnectionError:
            pass
        assert time.monotonic() - started_at < HANG_S


def test_a_body_that_goes_on_after_its_refusal_is_ended() -> None:
    with (
        serve(settings=limits(request_s=0.3, max_body_bytes=1024)) as running,
        running.connect() as connection,
    ):
        head = b"POST /prompt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert b" 413 " in read_until(connection, b"body_too_large")
        started_at = time.monotonic()
        try:
            while time.monotonic() < started_at + HANG_S:
                connection.sendall(b"10\r\n" + b"x" * 16 + b"\r\n")
                time.sleep(0.02)
        except ConnectionError:
            pass
        assert time.monotonic() - started_at < HANG_S


def test_an_answer_may_take_longer_than_a_request_may() -> None:
    with serve(settings=limits(request_s=0.1, slow_reader_s=0.1), forward_s=0.1) as running:
        assert running.chat().status_code == 200
        assert events(running.chat(stream=True).text)[-1] == "[DONE]"


def test_headers_that_are_too_long_are_refused() -> None:
    with serve() as running, running.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000)
        assert b"HTTP/1.1 400 " in read_all(connection)


def test_one_connection_too_many_is_closed() -> None:
    with serve(settings=limits(max_connections=2)) as running:
        held = [running.connect() for _ in range(2)]
        wait_for(lambda: len(running.server.server_state.connections) == 2)
        with running.connect() as third:
            assert read_all(third) == b""
        for connection in held:
            connection.close()
        wait_for(lambda: not running.server.server_state.connections)
        assert running.chat().status_code == 200


def test_requests_in_one_packet_are_answered_in_order() -> None:
    with serve() as running, running.connect() as connection:
        bodies = [json.dumps({"content": text}).encode() for text in ("the", "cat sat", "on the mat")]
        connection.sendall(b"".join(raw_post("/tokenize", body) for body in bodies[:-1]))
        connection.sendall(raw_post("/tokenize", bodies[-1], "Connection: close"))
        answers = read_all(connection).split(b"HTTP/1.1 200 ")[1:]
        expected = [
            running.llm.tokenizer.encode(json.loads(body)["content"], add_bos=False) for body in bodies
        ]
        assert [json.loads(answer.partition(b"\r\n\r\n")[2])["tokens"] for answer in answers] == expected


def test_what_follows_a_stream_in_the_same_packet_waits_for_its_end() -> None:
    with serve() as running, running.connect() as connection:
        first = raw_post(CHAT, json.dumps(chat_body(stream=True)).encode())
        second = raw_post("/tokenize", b'{"content": "the"}', "Connection: close")
        connection.sendall(first + second)
        answer = read_all(connection)
        assert answer.index(b"[DONE]") < answer.index(b'{"tokens"')
        assert answer.count(b"HTTP/1.1 200 ") == 2


def test_a_failed_pass_ends_a_stream_with_an_event() -> None:
    with serve(fail_after=3) as running:
        *_, last = events(running.chat(stream=True, max_tokens=50).text)
        assert last["error"]["code"] == "engine_failed"
        assert running.chat(max_tokens=50).status_code == 200


def test_a_failed_pass_is_a_status_when_nothing_has_been_sent() -> None:
    with serve(fail_after=3) as running:
        response = running.chat(max_tokens=50)
        assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failed")


def isolated_llm(**options: Any) -> LLM:
    tokenizer = from_json(spm_json())
    backend = partial(
        FakeBackend,
        n_vocab=tokenizer.n_vocab,
        n_ctx=512,
        n_cells=4096,
        n_slots=32,
        **options,
    )
    template = ChatTemplate.for_tokenizer(PHI3_TEMPLATE, tokenizer)
    return LLM(backend, tokenizer, template=template, model="fake", isolation="process")


def test_a_killed_engine_ends_every_stream_with_an_event_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "BACK_OFF_S", 0.3)
    with serve(isolated_llm(forward_s=0.02), limits(beat_s=0.25)) as running:
        held = [running.send(chat_body(**LONG, stream=True)) for _ in range(20)]
        for connection in held:
            read_until(connection, b'"content":"')
        os.kill(running.llm.stats().pid, signal.SIGKILL)
        for connection in held:
            text = read_until(connection, b"\r\n0\r\n\r\n").decode()
            (error,) = [each for each in events(text) if "error" in each]
            assert error["error"]["code"] == "engine_crashed"
            assert (
                error["error"]["message"]
                == "the engine's process ended with SIGKILL; send the request again"
            )
            assert "[DONE]" not in text
            connection.close()
        down = running.client.get("/health")
        assert (down.status_code, down.json()["status"]) == (503, "unavailable")
        wait_for(lambda: running.client.get("/health").status_code == 200)
        assert running.chat().status_code == 200
        assert "gguf_engine_crashes_total 1.0" in running.client.get("/metrics").text
        wait_for(lambda: is_free(running))


def test_a_server_told_to_stop_finishes_what_runs_and_takes_nothing_more() -> None:
    with serve(forward_s=0.02) as running:
        connection = running.send(chat_body(max_tokens=30, ignore_eos=True, stream=True))
        read_until(connection, b"assistant")
        with running.connect() as idle:
            running.server.handle_exit(signal.SIGTERM, None)
            wait_for(lambda: not running.server.servers[0].sockets)
            with pytest.raises(ConnectionRefusedError):
                running.connect()
            assert read_all(idle) == b""
        text = read_all(connection).decode()
        assert events(text)[-1] == "[DONE]"
        connection.close()
        wait_for(lambda: not running.server.server_state.tasks)


def test_an_answer_that_outlasts_the_grace_ends_with_an_event() -> None:
    with serve(settings=limits(drain_s=0.2), forward_s=0.05) as running:
        connection = running.send(chat_body(**LONG, stream=True))
        read_until(connection, b"assistant")
        running.server.handle_exit(signal.SIGTERM, None)
        *_, last = events(read_all(connection).decode())
        assert last["error"]["code"] == "shutting_down"
        connection.close()


def test_a_second_signal_ends_at_once() -> None:
    with serve(settings=limits(drain_s=3000), forward_s=0.05) as running:
        connection = running.send(chat_body(**LONG, stream=True))
        read_until(connection, b"assistant")
        running.server.handle_exit(signal.SIGTERM, None)
        running.server.handle_exit(signal.SIGTERM, None)
        assert b"[DONE]" not in read_all(connection)
        connection.close()


def test_a_request_while_the_server_ends_is_refused_in_words() -> None:
    with serve() as running:
        running.app.state.desk.close()
        response = running.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")


def test_many_clients_that_misbehave_at_once_leave_nothing_behind() -> None:
    with serve(settings=limits(request_s=1.0), forward_s=0.001) as running:
        body = json.dumps(chat_body(**LONG, stream=True)).encode()

        def misbehave(n: int) -> None:
            with running.connect() as connection:
                data = raw_post(CHAT, body)
                connection.sendall(data[: len(data) * (n % 7) // 6 or None])
                if n % 3:
                    connection.settimeout(0.05)
                    with contextlib.suppress(TimeoutError):
                        connection.recv(100)

        threads = [threading.Thread(target=misbehave, args=(n,)) for n in range(42)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        state = running.server.server_state
        wait_for(lambda: is_free(running) and not state.connections and not state.tasks)
        assert running.chat().status_code == 200


def test_the_readers_of_an_idle_server_are_none(tmp_path: Path) -> None:
    """No thread, task or connection stays behind a request."""
    with fake_llm() as llm, serve(llm) as running:
        n_threads = threading.active_count()
        for _ in range(20):
            httpx.post(running.url + CHAT, json=chat_body(stream=True), trust_env=False, timeout=30)
        wait_for(lambda: not running.server.server_state.connections)
        wait_for(lambda: not running.server.server_state.tasks)
        assert threading.active_count() <= n_threads
        assert not running.app.state.desk._answers
