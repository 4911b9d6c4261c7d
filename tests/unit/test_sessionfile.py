"""A session's file: what was saved goes on, and nothing else is taken for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faulty_backends as faulty
import pytest
from engine_samples import Request, finish, run, thread_of
from session_samples import SHORT, SYSTEM, Make, make_llm, origin

from gguf_engine import (
    LLM,
    EngineCrashed,
    Session,
    StateError,
)
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import process
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.state import take_prefix


@pytest.fixture
def make() -> Iterator[Make]:
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(make_llm(*args, **options))


@pytest.fixture
def llm(make: Make) -> LLM:
    return make()


def test_a_saved_session_goes_on_where_it_was(make: Make, tmp_path: Path) -> None:
    session = make().session(
        system=SYSTEM,
        on_full="drop_oldest",
        logit_bias={5: -1.0, 7: float("-inf")},
        stop=["zz"],
        **SHORT,
    )
    session.send("The ice " * 20)
    n_kept = session.save(tmp_path / "a.session")
    loaded = Session.load(tmp_path / "a.session", make())
    assert loaded.messages == session.messages
    assert (loaded.params, loaded.on_full) == (session.params, "drop_oldest")
    assert loaded.n_restored == n_kept
    answer = loaded.send("and?")
    assert answer.usage.n_cached == n_kept  # all of the conversation: only the question was computed
    assert answer.usage.n_prompt - n_kept < 12
    assert answer.text == session.send("and?").text


def test_what_has_left_the_kv_cache_is_computed_for_the_file(llm: LLM, tmp_path: Path) -> None:
    session = llm.session(**SHORT)
    session.send("The ice " * 20)

    def forget(engine: Engine) -> None:
        for slot in list(engine.kv_cache._idle):
            engine.kv_cache.drop(slot)

    thread_of(llm).call(forget)
    assert session.save(tmp_path / "s") > len(llm.encode(session.messages[:1]))


def test_the_state_of_a_session_holds_nothing_of_another(make: Make, tmp_path: Path) -> None:
    """What follows a shared beginning in the slot it is taken from is somebody else's."""
    llm = make(n_slots=2)
    session = llm.session(system=SYSTEM * 3, **SHORT)
    llm.session(system=SYSTEM * 3, **SHORT).send("A secret of somebody else " * 10)
    n_kept = session.save(tmp_path / "s")
    other = make()
    loaded = Session.load(tmp_path / "s", other)
    held = thread_of(other).call(lambda engine: [list(engine.kv_cache.held(slot)) for slot in range(8)])
    assert loaded.n_restored == n_kept > 0
    assert max(map(len, held)) == n_kept


def test_a_saved_session_without_turns_is_its_options(make: Make, tmp_path: Path) -> None:
    make().session(temperature=0.5).save(tmp_path / "s")
    loaded = Session.load(tmp_path / "s", make())
    assert (loaded.messages, loaded.n_restored, loaded.params.temperature) == ([], 0, 0.5)


def test_without_knowing_the_model_the_messages_alone_are_saved(make: Make, tmp_path: Path) -> None:
    session = make(state_origin=None).session(**SHORT)
    session.send("The ice " * 20)
    assert session.save(tmp_path / "s") == 0
    loaded = Session.load(tmp_path / "s", make(state_origin=None))
    assert (loaded.messages, loaded.n_restored) == (session.messages, 0)


def test_another_model_takes_the_messages_only_when_told_to(make: Make, tmp_path: Path) -> None:
    session = make().session(**SHORT)
    session.send("The ice " * 20)
    assert session.save(tmp_path / "s")
    other = make(state_origin=partial(origin, model="cd"))
    with pytest.raises(StateError, match="other_model"):
        Session.load(tmp_path / "s", other)
    assert Session.load(tmp_path / "s", other, computed=False).messages == session.messages


def test_a_file_that_cannot_be_written_or_read_says_so(llm: LLM, tmp_path: Path) -> None:
    session = llm.session(**SHORT)
    session.send("The ice " * 20)
    for written in (session, llm.session()):  # with and without a state
        with pytest.raises(StateError, match="cannot be written") as caught:
            written.save(tmp_path / "no" / "s")
        assert caught.value.code == "file"
    with pytest.raises(StateError, match="cannot be read"):
        Session.load(tmp_path / "none", llm)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StateError, match="regular file"):
        Session.load(tmp_path / "fifo", llm)


def test_a_failed_save_leaves_the_old_file_and_the_session_usable(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = llm.session(**SHORT)
    session.send("The ice " * 20)
    session.save(tmp_path / "s")
    before = (tmp_path / "s").read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateError, match="No space left"):
        session.save(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == before
    assert os.listdir(tmp_path) == ["s"]  # noqa: PTH208
    assert session.send("and?").text


def saved_bytes(llm: LLM, path: Path, system: str | None = None) -> bytes:
    llm.session(system=system, **SHORT).save(path)
    return path.read_bytes()


def test_a_flipped_bit_in_any_byte_and_every_other_length_is_seen(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "s"
    good = saved_bytes(llm, path, system="ice")
    damaged = [good[:n] for n in range(len(good))] + [good + b"\n"]
    for at in range(len(good)):
        flipped = bytearray(good)
        flipped[at] ^= 1 << at % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(StateError):
            Session.load(path, llm)


def test_a_damaged_state_behind_sound_messages_is_seen_and_the_messages_can_be_had(
    llm: LLM, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    good = saved_bytes(llm, path, system=SYSTEM * 4)
    state_at = good.index(b"\n", good.index(b"\n") + 1) + 1
    for data in (good[:-1], good[:state_at], good + b"x", good[:-9] + b"?" + good[-8:]):
        path.write_bytes(data)
        with pytest.raises(StateError):
            Session.load(path, llm)
        assert Session.load(path, llm, computed=False).system == SYSTEM * 4


def forged(line: bytes) -> bytes:
    sha256 = hashlib.sha256(line).hexdigest()
    return f"gguf-engine session 1 {len(line)} {sha256}\n".encode() + line + b"\n"


@pytest.mark.parametrize(
    "change",
    [
        {"turns": [["a"]]},
        {"turns": [["a", 5]]},
        {"turns": "ab"},
        {"turns": 5},
        {"system": 5},
        {"on_full": "drop"},
        {"model": None},
        {"n_dropped": "1"},
        {"params": []},
        {"params": {"logit_bias": {}, "temprature": 1}},
        {"params": {"logit_bias": {"x": 1}}},
        {"params": {"logit_bias": {}, "max_tokens": -1}},
        {"more": 1},
    ],
)
def test_messages_that_nobody_writes_are_refused_though_their_digest_fits(
    llm: LLM, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "s"
    values = json.loads(saved_bytes(llm, path).split(b"\n")[1])
    path.write_bytes(forged(json.dumps(values).encode()))
    assert Session.load(path, llm).messages == []
    path.write_bytes(forged(json.dumps({**values, **change}).encode()))
    with pytest.raises(StateError, match="corrupt"):
        Session.load(path, llm)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not_a_state"),
        (b"{}", "not_a_state"),
        (b"gguf-engine session 2 1 " + b"0" * 64 + b"\n{\n", "version"),
        (b"gguf-engine session 1 999999999 " + b"0" * 64 + b"\n{}\n", "corrupt"),
        (forged(b"[" * 100_000), "corrupt"),
        (forged(b"\xff"), "corrupt"),
        (forged(b"{}")[:-2], "truncated"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_by_a_code(
    llm: LLM, tmp_path: Path, data: bytes, code: str
) -> None:
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(StateError) as caught:
        Session.load(tmp_path / "s", llm)
    assert caught.value.code == code


def test_when_requests_have_all_the_room_nothing_is_restored_and_that_is_told(
    make: Make, tmp_path: Path
) -> None:
    session = make().session(**SHORT)
    session.send("The ice " * 20)
    session.save(tmp_path / "s")
    busy = make(n_slots=1)
    stream = busy.stream("The snow", max_tokens=None, ignore_eos=True)
    next(stream)
    loaded = Session.load(tmp_path / "s", busy)
    stream.close()
    assert (loaded.n_restored, loaded.n_turns) == (0, 1)
    assert loaded.send("and?").text == session.send("and?").text


def test_what_a_slot_holds_is_not_cut_out_where_that_is_impossible() -> None:
    """A recurrent model keeps a slot whole; with every slot running there is none to cut it out in."""
    prompt = list(range(1, 60))
    for sizes, options in (({"can_truncate": False}, {}), ({"n_slots": 1}, {"max_tokens": 100})):
        engine = Engine(FakeBackend(**sizes))
        request = Request(engine, prompt, **options)
        if options:
            engine.submit(request.sequence)
            for _ in range(5):
                engine.step()
        else:
            run(engine, request)
        assert take_prefix(engine.kv_cache, array("i", prompt[:40])) is None
        finish(engine)
        fresh = Request(engine, [*prompt, 70])
        run(engine, fresh)
        assert fresh.error is None
        engine.close()


def test_beginnings_are_cut_out_again_and_again_and_every_slot_is_given_back() -> None:
    engine = Engine(FakeBackend(n_slots=3))
    prompt = list(range(1, 60))
    run(engine, Request(engine, prompt))
    for length in range(20, 50):
        state = take_prefix(engine.kv_cache, array("i", prompt[:length]))
        assert state is not None
        assert list(state.token_ids) == prompt[:length]
        assert json.loads(bytes(state.data)) == [
            [at, token_id] for at, token_id in enumerate(prompt[:length])
        ]
    engine.close()


# An engine in a process of its own.


def test_with_the_engine_in_a_process_the_child_writes_and_reads_the_state(
    make: Make, tmp_path: Path
) -> None:
    isolated, path = make(isolation="process"), tmp_path / "s"
    session = isolated.session(system=SYSTEM, **SHORT)
    session.send("The ice " * 20)
    n_kept = session.save(path)
    assert n_kept > 64
    for llm in (isolated, make(isolation="process"), make()):
        loaded = Session.load(path, llm)
        assert loaded.n_restored == n_kept
        assert loaded.send("and?").usage.n_cached == n_kept
        assert loaded.messages == session.messages + loaded.messages[-2:]
    other = make(isolation="process", n_ctx=512)
    with pytest.raises(StateError, match="other_settings"):
        Session.load(path, other)
    with pytest.raises(StateError, match="cannot be written"):
        session.save(tmp_path / "no" / "s")


def test_a_child_that_dies_costs_the_turn_and_not_the_session(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "BACK_OFF_S", 0.01)
    saved = make().session(**SHORT)
    saved.send("The ice " * 20)
    n_kept = saved.save(tmp_path / "s")
    llm = make(faulty.DiesAfter, faulty.abort, 3, tmp_path / "died", isolation="process")
    session = Session.load(tmp_path / "s", llm)
    with pytest.raises(EngineCrashed):
        session.send("and?")
    assert session.messages == saved.messages
    assert llm.prefix_files.load(tmp_path / "s", _offset(tmp_path / "s")) == n_kept  # starts it again
    answer = session.send("and?")
    assert answer.usage.n_cached == n_kept
    assert answer.text == saved.send("and?").text


def _offset(path: Path) -> int:
    data = path.read_bytes()
    return data.index(b"\n", data.index(b"\n") + 1) + 1
