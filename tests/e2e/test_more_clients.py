"""The real server and clients that people have: langchain-openai, and the official one for embeddings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr
from server_samples import HANG_S

from gguf_engine import LLM

pytestmark = pytest.mark.e2e

KEY = "a-key-for-tests"
TEXTS = ["a frog jumps into the old pond", "the frog leaps into the pond", "ice hockey"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [sys.executable, "-m", "gguf_engine", "serve", "--model", "haiku", "--port", "0"]
    env = {**os.environ, "GGUF_ENGINE_API_KEY": KEY, "HOME": str(tmp_path_factory.mktemp("home"))}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=env, text=True) as process:
        assert process.stderr is not None
        line = ""
        while "listening on " not in line:
            line = process.stderr.readline()
            assert line, "the server ended"
        yield line.rpartition("listening on ")[2].strip() + "/v1"
        process.terminate()
        process.communicate(timeout=HANG_S)


@pytest.fixture(scope="module")
def haiku() -> Iterator[LLM]:
    with LLM.load("haiku") as loaded:
        yield loaded


def test_langchain_chats_streamed_and_not(url: str, haiku: LLM) -> None:
    model = ChatOpenAI(model="haiku", base_url=url, api_key=SecretStr(KEY), seed=7, max_retries=0)
    messages = [SystemMessage("You are a poet."), HumanMessage("Write a haiku about moss")]
    answer = model.invoke(messages)
    expected = haiku.chat(
        [
            {"role": "system", "content": "You are a poet."},
            {"role": "user", "content": "Write a haiku about moss"},
        ],
        seed=7,
        max_tokens=None,
    )
    assert answer.content == expected.text
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == expected.usage.n_completion
    chunks = list(model.stream(messages))
    assert "".join(str(chunk.content) for chunk in chunks) == expected.text
    # A short answer may come in a few pieces, since text is handed over every 5 ms; this one takes longer.
    long = model.bind(max_tokens=400, extra_body={"ignore_eos": True})
    assert sum(bool(chunk.content) for chunk in long.stream(messages)) > 5


def test_langchain_embeds(url: str, haiku: LLM) -> None:
    model = OpenAIEmbeddings(
        model="haiku", base_url=url, api_key=SecretStr(KEY), check_embedding_ctx_length=False, max_retries=0
    )
    rows = np.array(model.embed_documents(TEXTS))
    assert (rows * haiku.embed(TEXTS)).sum(1).min() > 0.999
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
    assert (model.embed_query(TEXTS[0]) * rows[0]).sum() > 0.999


def test_the_official_client_embeds_texts_and_ids_as_base64_and_as_numbers(url: str, haiku: LLM) -> None:
    ids = [list(each) for each in haiku.encode_texts(TEXTS)]
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        create = client.embeddings.create  # asks for base64 where nothing is said
        answers = [
            create(model="haiku", input=TEXTS),
            create(model="haiku", input=TEXTS, encoding_format="float"),
            create(model="haiku", input=ids),
        ]
        for answer in answers:
            rows = np.array([each.embedding for each in answer.data])
            assert (rows * haiku.embed(TEXTS)).sum(1).min() > 0.999
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))
        assert len(create(model="haiku", input=ids[0]).data) == 1
        with pytest.raises(openai.BadRequestError, match="vectors come whole"):
            create(model="haiku", input="x", dimensions=64)
