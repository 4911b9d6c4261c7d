"""The real server as people run it: `gguf-engine serve`, the haiku model, real clients, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from promises import report
from server_samples import CHAT, HANG_S, events, raw_post, read_all, read_until, wait_for

pytestmark = pytest.mark.e2e

KEY = "a-key-for-tests"
MESSAGES: Any = [{"role": "user", "content": "Write a haiku about moss"}]
LONG = {"messages": MESSAGES, "ignore_eos": True, "stream": True}
SERVE = (
    sys.executable,
    "-m",
    "gguf_engine",
    "serve",
    "--model",
    "haiku",
    "--port",
    "0",
    "--n-threads",
    "1",
)


class Program:
    """A running `gguf-engine serve`."""

    def __init__(self, *options: str, **environment: str) -> None:
        env = {**os.environ, **environment}
        self.process = subprocess.Popen(
            [*SERVE, *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        )
        assert self.process.stderr is not None
        self.log = b""
        while b"listening on " not in self.log:
            line = self.process.stderr.readline()
            assert line, self.log
            self.log += line
        self.url = self.log.rpartition(b"listening on ")[2].decode().strip()
        self.port = int(self.url.rpartition(":")[2])
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line

    def get(self, path: str) -> httpx.Response:
        return httpx.get(
            self.url + path, headers={"authorization": f"Bearer {KEY}"}, timeout=HANG_S, trust_env=False
        )

    def stream(self, max_tokens: int = 3000) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S)
        connection.sendall(
            raw_post(
                CHAT,
                json.dumps({**LONG, "max_tokens": max_tokens}).encode(),
                f"Authorization: Bearer {KEY}",
            )
        )
        return connection

    def child(self) -> int:
        """The engine's process."""
        (pid,) = children_of(self.process.pid)
        return pid

    def end(self) -> int:
        code = self.process.wait(HANG_S)
        self._reader.join()
        for pipe in (self.process.stderr, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return code


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


@contextlib.contextmanager
def program(*options: str, **environment: str) -> Iterator[Program]:
    running = Program(*options, **environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            running.process.send_signal(signal.SIGTERM)
            running.end()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    home = str(tmp_path_factory.mktemp("served"))
    with program(GGUF_ENGINE_API_KEY=KEY, HOME=home) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Program) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_the_official_client_chats_and_completes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="haiku", messages=MESSAGES, seed=7, n=2)
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.choices[0].message.content
    assert len(answer.choices[0].message.content.splitlines()) == 3
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    text = client.completions.create(model="haiku", prompt="the old pond", seed=7, max_tokens=8, logprobs=2)
    assert text.choices[0].text
    assert text.choices[0].logprobs is not None
    assert client.models.list().data[0].id == client.models.retrieve("haiku").id == "haiku"


def test_the_official_client_streams_the_same_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="haiku", messages=MESSAGES, seed=7)
    stream = client.chat.completions.create(
        model="haiku",
        messages=MESSAGES,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"top_k": 0, "repeat_penalty": 1.2},
    )
    chunks = list(stream)
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_official_client_streams_in_an_event_loop(served: Program) -> None:
    async def ask(made: openai.AsyncOpenAI, seed: int) -> str:
        stream = await made.chat.completions.create(
            model="haiku", messages=MESSAGES, seed=seed, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as made:
            return await asyncio.gather(*(ask(made, seed) for seed in (1, 2, 3, 1)))

    texts = asyncio.run(ask_all())
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


def test_the_official_client_raises_its_own_errors(served: Program, client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        create(model="haiku", messages=MESSAGES, temperature=1000)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match=r"input\[1\] is 4201 tokens"):
        client.embeddings.create(model="haiku", input=["x", "".join([" x"] * 4200)])
    with pytest.raises(openai.BadRequestError, match="tools"):
        create(model="haiku", messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}])
    wrong = openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_a_line_of_curl_is_enough(served: Program) -> None:
    """The smallest thing that works."""
    header = "Content-Type: application/json"
    command = [
        "curl",
        "-s",
        f"{served.url}/prompt",
        "-H",
        header,
        "-H",
        f"Authorization: Bearer {KEY}",
        "-d",
    ]
    done = subprocess.run(
        [*command, '{"prompt": "Write a haiku about moss", "seed": 7}'],
        capture_output=True,
        check=True,
        text=True,
    )
    assert len(done.stdout.splitlines()) == 3


def test_the_key_and_the_page_over_the_real_server(served: Program) -> None:
    assert httpx.get(f"{served.url}/v1/models", trust_env=False).status_code == 401
    assert httpx.get(f"{served.url}/health", trust_env=False).json() == {"status": "ok", "model": "haiku"}
    assert "gguf_engine_up 1.0" in served.get("/metrics").text
    assert re.search(rb"\S+ INFO 127\.0\.0\.1 GET '/v1/models' 401 ", served.log)


def test_a_client_that_leaves_frees_its_slot(served: Program) -> None:
    for _ in range(5):
        connection = served.stream()
        read_until(connection, b'"content":"')
        connection.close()
    wait_for(lambda: "gguf_engine_requests_running 0.0" in served.get("/metrics").text)


def test_a_killed_engine_costs_its_streams_and_the_server_goes_on(tmp_path: Path) -> None:
    with program(
        "--n-slots", "32", "--n-cells", "131072", "--beat-s", "0.5", GGUF_ENGINE_API_KEY=KEY
    ) as running:
        streams = [running.stream() for _ in range(20)]
        for connection in streams:
            read_until(connection, b'"content":"')
        os.kill(running.child(), signal.SIGKILL)
        killed_at = time.monotonic()
        for connection in streams:
            *_, last = events(read_until(connection, b"\r\n0\r\n\r\n").decode())
            assert last["error"]["code"] == "engine_crashed"
            connection.close()
        told_s = time.monotonic() - killed_at
        assert running.get("/health").status_code == 503
        wait_for(lambda: running.get("/health").status_code == 200)
        back_s = time.monotonic() - killed_at
        headers = {"authorization": f"Bearer {KEY}"}
        body = {"messages": MESSAGES}
        answer = httpx.post(running.url + CHAT, json=body, headers=headers, timeout=HANG_S, trust_env=False)
        assert answer.status_code == 200
    report(
        "A killed worker of the server costs its own requests and nothing else",
        20,
        f"every stream ended with an error event within {told_s:.1f} s; serving again after {back_s:.1f} s",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_finish_and_leaves_no_child(number: int) -> None:
    with program() as running:
        child = running.child()
        connection = running.stream(max_tokens=500)
        read_until(connection, b'"content":"')
        running.process.send_signal(number)
        assert events(read_all(connection).decode())[-1] == "[DONE]"
        connection.close()
        assert running.end() == 0
        assert not Path(f"/proc/{child}").exists()


def test_a_second_signal_ends_at_once_and_leaves_no_child() -> None:
    with program("--drain-s", "3000") as running:
        child = running.child()
        connection = running.stream()
        read_until(connection, b'"content":"')
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0
        assert not Path(f"/proc/{child}").exists()
        connection.close()


def test_what_cannot_be_served_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([*SERVE, "--port", port], capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--port is {port}; allowed: a port that is free here" in done.stderr
    done = subprocess.run([*SERVE, "--max-queue", "-1"], capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--max-queue is -1" in done.stderr
    anywhere = "0.0.0.0"  # noqa: S104 - to see it refused
    done = subprocess.run([*SERVE, "--host", anywhere], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 2
    assert "--host is '0.0.0.0'; allowed: 127.0.0.1, ::1 or localhost without an API key" in done.stderr
