"""Saved states: what was saved comes back, and nothing else ever reaches a backend."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import struct
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_samples import Request, run
from hypothesis import given, settings
from hypothesis import strategies as st
from promises import report
from thoroughness import rounds

from gguf_engine import LLM, StateError
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.backend.llama import LlamaBackend
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.state import (
    FORMAT,
    MAGIC,
    State,
    StateOrigin,
    load_slot,
    pack_state,
    read_state,
    save_slot,
    unpack_state,
    write_state,
)

ORIGIN = StateOrigin(
    model_sha256="ab" * 32,
    library="fake 1",
    n_vocab=97,
    n_ctx=256,
    kv_cache_type="f16",
    flash_attention="auto",
)
SMALL = pack_state(State(array("i", [1, 2, 3]), b"what the backend said"), ORIGIN)
PROMPT = list(range(1, 31))


def code_of(packed: bytes, origin: StateOrigin = ORIGIN) -> str:
    with pytest.raises(StateError) as caught:
        unpack_state(packed, origin)
    return caught.value.code


def test_what_was_packed_is_unpacked() -> None:
    state = unpack_state(SMALL, ORIGIN)
    assert (list(state.token_ids), state.data) == ([1, 2, 3], b"what the backend said")


def test_the_bytes_of_a_file_are_those_of_the_format() -> None:
    """Numbers little-endian, ids int32, the digest over everything else."""
    magic, version, n_header, n_ids, n_state, digest = struct.unpack("<8sIIIQ32s", SMALL[:60])
    assert (magic, version, n_ids, n_state) == (MAGIC, FORMAT, 3, 21)
    assert json.loads(SMALL[60 : 60 + n_header]) == dataclasses.asdict(ORIGIN)
    assert SMALL[60 + n_header :] == struct.pack("<3i", 1, 2, 3) + b"what the backend said"
    assert hashlib.sha256(SMALL[:28] + SMALL[60:]).digest() == digest


def test_every_flipped_bit_is_seen() -> None:
    for at in range(8 * len(SMALL)):
        damaged = bytearray(SMALL)
        damaged[at // 8] ^= 1 << at % 8
        code = code_of(bytes(damaged))
        assert code == "not_a_state" if at < 64 else code in ("version", "truncated", "corrupt")


def test_every_length_but_the_right_one_is_seen() -> None:
    assert {code_of(SMALL[:length]) for length in range(len(SMALL))} == {"truncated"}
    assert code_of(SMALL + b"\0") == "corrupt"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("model_sha256", "cd" * 32, "other_model"),
        ("library", "fake 2", "version"),
        ("n_vocab", 98, "other_settings"),
        ("n_ctx", 512, "other_settings"),
        ("kv_cache_type", "q8_0", "other_settings"),
        ("flash_attention", "off", "other_settings"),
    ],
)
def test_a_state_of_another_engine_is_refused_with_both_values(name: str, value: Any, code: str) -> None:
    with pytest.raises(StateError) as caught:
        unpack_state(SMALL, dataclasses.replace(ORIGIN, **{name: value}), "chat.state")
    assert caught.value.code == code
    for part in ("chat.state", f"{name}={getattr(ORIGIN, name)!r}", repr(value)):
        assert part in str(caught.value)


def forged(header: bytes) -> bytes:
    """Return a state with this header and a digest that fits."""
    front = struct.pack("<8sIIIQ", MAGIC, FORMAT, len(header), 0, 0)
    return front + hashlib.sha256(front + header).digest() + header


@pytest.mark.parametrize("header", [b"", b"[" * 4000, b"[]", b"{}", b"\xff", b" " * 5000])
def test_a_header_that_nobody_writes_is_refused_though_its_digest_fits(header: bytes) -> None:
    assert code_of(forged(header)) == "corrupt"


def test_another_version_of_the_format_is_refused_by_its_number() -> None:
    later = SMALL[:8] + struct.pack("<I", FORMAT + 1) + SMALL[12:]
    with pytest.raises(
        StateError, match=rf"version {FORMAT + 1} of the format, this program reads {FORMAT}"
    ):
        unpack_state(later, ORIGIN)


@pytest.mark.parametrize("data", [b"", b"<html>", b"GGUF\x03\0\0\0" + b"\0" * 99])
def test_what_is_no_state_is_told_from_what_is_cut_off(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.state"
    path.write_bytes(data)
    with pytest.raises(StateError) as caught:
        read_state(path)
    assert caught.value.code == ("not_a_state" if data else "truncated")


def test_a_file_gives_back_what_was_written_and_is_the_only_one(tmp_path: Path) -> None:
    path = tmp_path / "chat.state"
    for packed in (SMALL, pack_state(State(array("i"), b""), ORIGIN)):
        write_state(path, packed)
        assert read_state(path) == packed
        assert list(tmp_path.iterdir()) == [path]
        assert path.stat().st_mode & 0o077 == 0  # what people said is theirs alone


def test_a_file_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chat.state"
    for length in range(len(SMALL)):
        path.write_bytes(SMALL[:length])
        with pytest.raises(StateError) as caught:
            read_state(path)
        assert caught.value.code == "truncated"


def test_a_disk_that_reads_back_other_bytes_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chat.state"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "read_bytes", lambda self: SMALL[:-1])
    with pytest.raises(StateError, match="reads back differently"):
        write_state(path, SMALL)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_and_a_fifo_are_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo):
        with pytest.raises(StateError, match="no regular file"):
            read_state(path)


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    """Of a file that says it holds a terabyte, and has a hole of that size, 60 bytes are read."""
    path = tmp_path / "huge.state"
    path.write_bytes(struct.pack("<8sIIIQ32s", MAGIC, FORMAT, 0, 0, 2**40, b""))
    os.truncate(path, 60 + 2**40)
    with pytest.raises(StateError, match="at most"):
        read_state(path)
    write_state(path, SMALL)
    with pytest.raises(StateError, match=f"has {len(SMALL)} bytes, at most 10"):
        read_state(path, max_bytes=10)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(FakeBackend(n_slots=2))
    yield engine
    engine.close()


def idle(engine: Engine) -> list[int]:
    return list(engine.kv_cache._idle)


def save_after(engine: Engine, prompt: list[int], **options: Any) -> tuple[bytes, list[int]]:
    """Run a request and return its slot's state, and all its ids."""
    request = Request(engine, prompt, **options)
    run(engine, request)
    (slot,) = idle(engine)
    return save_slot(engine.kv_cache, slot, ORIGIN), prompt + list(request.completion.token_ids)


def test_an_answer_goes_on_as_if_nothing_had_been_between(engine: Engine) -> None:
    whole = Request(engine, PROMPT, max_tokens=40)
    run(engine, whole)
    engine.kv_cache.drop(idle(engine)[0])
    packed, ids = save_after(engine, PROMPT, max_tokens=15, temperature=0.0)
    other = Engine(FakeBackend(n_slots=2))
    assert load_slot(other.kv_cache, packed, ORIGIN) is not None
    rest, expected = Request(other, ids, temperature=0.0), Request(engine, ids, temperature=0.0)
    run(other, rest)
    run(engine, expected)
    assert rest.completion.token_ids == expected.completion.token_ids
    assert rest.completion.usage.n_cached == len(ids) - 1  # nothing but the last id was computed again
    other.close()


def test_a_state_without_room_changes_nothing(engine: Engine) -> None:
    packed, _ = save_after(engine, PROMPT, max_tokens=5)
    running = [Request(engine, [n] * 20, max_tokens=50) for n in (40, 50)]
    for request in running:
        engine.submit(request.sequence)
    engine.step()
    assert load_slot(engine.kv_cache, packed, ORIGIN) is None
    run(engine)
    assert load_slot(engine.kv_cache, packed, ORIGIN) is not None


def test_a_state_that_the_backend_refuses_leaves_its_slot_empty(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, _ = save_after(engine, PROMPT, max_tokens=5)
    engine.kv_cache.drop(idle(engine)[0])

    def refuse(slot: int, state: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine.backend, "load", refuse)
    with pytest.raises(ZeroDivisionError):
        load_slot(engine.kv_cache, packed, ORIGIN)
    assert engine.kv_cache.n_free_cells == engine.backend.n_cells
    assert sorted(engine.kv_cache._empty) == [0, 1]


@settings(max_examples=rounds(quick=50, thorough=1000))
@given(prompt=st.lists(st.integers(0, 96), min_size=1, max_size=120), n=st.integers(1, 40), data=st.data())
def test_any_conversation_survives_and_no_edit_of_it_does(
    prompt: list[int], n: int, data: st.DataObject
) -> None:
    """Greedy ids after a restore equal those of one uninterrupted request."""
    first, second = Engine(FakeBackend()), Engine(FakeBackend())
    whole = Request(first, prompt, max_tokens=n + 10, temperature=0.0, repeat_penalty=1.0)
    run(first, whole)
    first.kv_cache.drop(idle(first)[0])
    packed, ids = save_after(first, prompt, max_tokens=n, temperature=0.0, repeat_penalty=1.0)
    slot = load_slot(second.kv_cache, packed, ORIGIN)
    assert slot is not None
    assert list(second.kv_cache.held(slot)) == second.backend.held(slot) == ids[:-1]  # type: ignore[attr-defined]
    rest = Request(second, ids, max_tokens=10, temperature=0.0, repeat_penalty=1.0)
    run(second, rest)
    assert ids + list(rest.completion.token_ids) == prompt + list(whole.completion.token_ids)
    start = data.draw(st.integers(0, len(packed) - 1))
    edit = data.draw(st.binary(max_size=8))
    edited = packed[:start] + edit + packed[data.draw(st.integers(start, len(packed))) :]
    if edited != packed:
        code_of(edited)


@pytest.fixture(scope="module")
def haiku() -> Iterator[LLM]:
    with LLM.load("haiku", n_ctx=512, n_threads=1) as llm:
        yield llm


def on_engine(llm: LLM, function: Callable[[Engine], Any]) -> Any:
    return llm._worker.call(function)  # type: ignore[attr-defined]


def drop_idle(engine: Engine) -> None:
    for slot in idle(engine):
        engine.kv_cache.drop(slot)


def test_a_haiku_goes_on_after_it_was_saved_and_restored(haiku: LLM) -> None:
    """What follows equals, to the last bit, what follows where the slot was kept; no bad byte gets in."""
    on_engine(haiku, drop_idle)
    # The penalty's window does not reach into a prompt, where the first ids are the second time.
    options: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "logprobs": 0, "repeat_penalty": 1.0}
    prompt = haiku.encode("Write a haiku about ice hockey", chat=True)
    begun = haiku.generate(prompt, max_tokens=20, **options)
    ids = prompt + list(begun.token_ids)
    packed = on_engine(haiku, lambda engine: save_slot(engine.kv_cache, idle(engine)[0], ORIGIN))
    expected = haiku.generate(ids, max_tokens=40, **options)
    assert (
        begun.token_ids + expected.token_ids == haiku.generate(prompt, max_tokens=60, **options).token_ids
    )
    on_engine(haiku, drop_idle)
    on_engine(haiku, lambda engine: refuse_all_damage(engine, packed))
    assert on_engine(haiku, lambda engine: load_slot(engine.kv_cache, packed, ORIGIN)) is not None
    rest = haiku.generate(ids, max_tokens=40, **options)
    assert (rest.token_ids, rest.logprobs) == (expected.token_ids, expected.logprobs)
    assert rest.usage.n_cached == len(ids) - 1


def refuse_all_damage(engine: Engine, packed: bytes) -> None:
    """Offer 900 damaged states; none may reach llama.cpp."""
    seen: list[bytes] = []
    random_ = random.Random(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaBackend, "load", lambda self, slot, state: seen.append(state))
        for n in range(900):
            with pytest.raises(StateError):
                load_slot(engine.kv_cache, damage(packed, random_, n % 6), ORIGIN)
        assert seen == []
        load_slot(engine.kv_cache, packed, ORIGIN)
        assert len(seen) == 1  # the good one would have got there
    report("No damaged state file reaches llama.cpp", 900, "all refused; the good one was restored")
    drop_idle(engine)


def damage(packed: bytes, random_: random.Random, kind: int) -> bytes:
    """Return a state with a bit flipped, or bytes overwritten, zeroed, cut out, doubled, or its end off."""
    at = random_.randrange(len(packed))
    n = random_.randint(1, 64)
    gap = packed[at : at + n]
    if kind == 0:
        return packed[:at] + bytes([packed[at] ^ 1 << random_.randrange(8)]) + packed[at + 1 :]
    if kind == 1:
        return packed[:at] + bytes(byte ^ random_.randint(1, 255) for byte in gap) + packed[at + n :]
    if kind == 2:  # a block that was never written; the last byte makes sure that it differs
        return packed[:at] + bytes(len(gap) - 1) + bytes([gap[-1] ^ 255]) + packed[at + n :]
    if kind == 3:
        return packed[:at] + packed[at + n :]
    if kind == 4:
        return packed[:at] + gap + packed[at:]
    return packed[:at]
