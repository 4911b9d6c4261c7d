"""Prefixes on disk: kept once, found again, refused when damaged, never in the way."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from array import array
from pathlib import Path
from typing import Any

import pytest
from engine_samples import Request, alone, finish, run

from gguf_engine import LLM
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import prefix_store as module
from gguf_engine.engine.engine import Engine, EngineMaker
from gguf_engine.engine.prefix_store import MIN_IDS, PrefixCache, PrefixStore, make_folder
from gguf_engine.engine.state import State
from gguf_engine.engine.system_prefix import SystemPrefixes
from gguf_engine.errors import BackendError, OptionError, TemplateError

SYSTEM = [n % 89 + 1 for n in range(100)]
SIZES: dict[str, Any] = {"n_ctx": 256, "n_batch": 64}


def cache(folder: Path, **changes: Any) -> PrefixCache:
    values: dict[str, Any] = {
        "folder": folder,
        "max_bytes": 10**6,
        "model_sha256": "0" * 64,
        "library": "fake 1",
        "kv_cache_type": "f16",
        "flash_attention": "auto",
    }
    return PrefixCache(**{**values, **changes})


def engine_with(prefix_cache: PrefixCache, **sizes: Any) -> tuple[Engine, FakeBackend]:
    backend = FakeBackend(**{**SIZES, **sizes})
    return EngineMaker(lambda: backend, prefix_cache=prefix_cache)(), backend


def ask(engine: Engine, *rest: int, system: list[int] = SYSTEM, **options: Any) -> Request:
    request = Request(engine, [*system, *rest], **{"max_tokens": 5, **options})
    request.sequence.n_keep = len(system)
    return request


def expected(*rest: int, system: list[int] = SYSTEM) -> tuple[int, ...]:
    return alone([*system, *rest], SIZES, max_tokens=5).token_ids


def answer_once(prefix_cache: PrefixCache, *rest: int, system: list[int] = SYSTEM) -> tuple[Request, int]:
    """Return the answer of an engine that is started for it, and how many tokens it computed."""
    engine, backend = engine_with(prefix_cache)
    request = ask(engine, *rest, system=system)
    run(engine, request)
    engine.close()
    assert request.completion.token_ids == expected(*rest, system=system)
    return request, backend.n_tokens


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_prefix_is_found_again_after_a_restart(tmp_path: Path) -> None:
    first, n_first = answer_once(cache(tmp_path), 3, 4)
    second, n_second = answer_once(cache(tmp_path), 5, 6)
    assert (first.completion.usage.n_cached, second.completion.usage.n_cached) == (0, 100)
    assert n_first - n_second == 100
    assert len(files(tmp_path)) == 1
    assert files(tmp_path)[0].name.startswith("100-")


def test_its_folder_and_file_are_for_their_owner_alone(tmp_path: Path) -> None:
    answer_once(cache(tmp_path / "new"), 3)
    (file,) = files(tmp_path / "new")
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_used_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    for folder in (file, file / "below"):
        with pytest.raises(
            OptionError, match=r"prefix_cache is .* allowed: a folder that can be made"
        ) as caught:
            make_folder(folder)
        assert caught.value.value == str(folder)
        with pytest.raises(OptionError, match="prefix_cache"):
            LLM.load("haiku", prefix_cache=folder)


def test_a_running_engine_keeps_a_prefix_once_and_shares_it_in_memory(tmp_path: Path) -> None:
    engine, backend = engine_with(cache(tmp_path))
    requests = [ask(engine, n) for n in range(4)]
    run(engine, *requests)
    assert backend.n_tokens == 100 + 4 * 5
    engine.close()
    assert len(files(tmp_path)) == 1


def test_the_longest_kept_prefix_is_taken(tmp_path: Path) -> None:
    answer_once(cache(tmp_path), 1, system=SYSTEM[:70])
    answer_once(cache(tmp_path), 1, system=SYSTEM)
    request, _ = answer_once(cache(tmp_path), *range(20, 40))
    assert request.completion.usage.n_cached == 100


def test_requests_that_come_together_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_once(cache(tmp_path), 3)
    read: list[str] = []
    original = PrefixStore._read

    def count(store: PrefixStore, name: str) -> State:
        read.append(name)
        return original(store, name)

    monkeypatch.setattr(PrefixStore, "_read", count)
    engine, backend = engine_with(cache(tmp_path))
    requests = [ask(engine, n) for n in range(4)]
    run(engine, *requests)
    engine.close()
    assert len(read) == 1
    assert backend.n_tokens == 4 * 5
    assert all(request.completion.usage.n_cached == 100 for request in requests)


def test_a_short_prefix_is_not_kept(tmp_path: Path) -> None:
    answer_once(cache(tmp_path), 3, system=SYSTEM[: MIN_IDS - 1])
    assert not files(tmp_path)


@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "other ids", "garbage"])
def test_a_damaged_file_is_refused_said_and_replaced(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer_once(cache(tmp_path), 3)
    (file,) = files(tmp_path)
    good = file.read_bytes()
    bad = {
        "byte": good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
        "cut": good[:-1],
        "empty": b"",
        "garbage": os.urandom(500),
        "other ids": b"",
    }
    if damage == "other ids":
        answer_once(cache(tmp_path / "other"), 3, system=[*reversed(SYSTEM)])
        bad[damage] = files(tmp_path / "other")[0].read_bytes()
    file.write_bytes(bad[damage])
    with caplog.at_level(logging.WARNING):
        request, _ = answer_once(cache(tmp_path), 3)
    assert request.completion.usage.n_cached == 0
    assert str(file) in caplog.text
    assert file.read_bytes() == good
    assert answer_once(cache(tmp_path), 4)[0].completion.usage.n_cached == 100


@pytest.mark.parametrize(
    "change", [{"model_sha256": "1" * 64}, {"library": "fake 2"}, {"kv_cache_type": "q8_0"}]
)
def test_another_models_prefix_is_not_even_looked_at(tmp_path: Path, change: dict[str, str]) -> None:
    answer_once(cache(tmp_path), 3)
    request, _ = answer_once(cache(tmp_path, **change), 3)
    assert request.completion.usage.n_cached == 0
    assert len(files(tmp_path)) == 2


def test_a_file_of_another_model_put_in_its_place_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer_once(cache(tmp_path / "a"), 3)
    answer_once(cache(tmp_path / "b", model_sha256="1" * 64), 3)
    (ours,), (theirs,) = files(tmp_path / "a"), files(tmp_path / "b")
    ours.write_bytes(theirs.read_bytes())
    assert answer_once(cache(tmp_path / "a"), 3)[0].completion.usage.n_cached == 0
    assert "model_sha256" in caplog.text


def test_a_state_that_the_backend_refuses_costs_nothing_but_the_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_once(cache(tmp_path), 3)

    def refuse(self: FakeBackend, slot: int, state: bytes) -> None:
        raise BackendError(0, "refused")

    monkeypatch.setattr(FakeBackend, "load", refuse)
    request, n_tokens = answer_once(cache(tmp_path), 3)
    assert request.completion.usage.n_cached == 0
    assert n_tokens == 101 + 4
    assert len(files(tmp_path)) == 1


def test_a_file_that_another_process_has_removed_is_computed_again(tmp_path: Path) -> None:
    answer_once(cache(tmp_path), 3)
    engine, _ = engine_with(cache(tmp_path))
    files(tmp_path)[0].unlink()
    request = ask(engine, 3)
    run(engine, request)
    engine.close()
    assert request.completion.token_ids == expected(3)


def test_the_files_unused_for_longest_make_room(tmp_path: Path) -> None:
    systems = [[n, *SYSTEM] for n in range(3)]
    for n, system in enumerate(systems[:2]):
        answer_once(cache(tmp_path), 3, system=system)
        for file in files(tmp_path):
            os.utime(file, (n, n))
    size = files(tmp_path)[0].stat().st_size
    answer_once(cache(tmp_path), 4, system=systems[0])  # used again: now the second one is the oldest
    answer_once(cache(tmp_path, max_bytes=2 * size + size // 2), 3, system=systems[2])
    assert len(files(tmp_path)) == 2
    assert answer_once(cache(tmp_path), 4, system=systems[0])[0].completion.usage.n_cached == 101
    assert answer_once(cache(tmp_path), 4, system=systems[1])[0].completion.usage.n_cached == 0


def test_what_others_have_in_the_folder_stays(tmp_path: Path) -> None:
    names = ("notes.state", "music/1-0.state", "0123456789abcdef/readme", "0123456789abcdef/1-2.state")
    strangers = [tmp_path / name for name in names]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 5000)
        os.utime(path, (0, 0))
    answer_once(cache(tmp_path), 3)
    size = max(path.stat().st_size for path in files(tmp_path) if path.name.startswith("100-"))
    answer_once(cache(tmp_path, max_bytes=size + 10), 3, system=[7, *SYSTEM])
    assert all(path.exists() for path in strangers)


def test_what_a_killed_process_left_half_written_is_removed_later(tmp_path: Path) -> None:
    answer_once(cache(tmp_path), 3)
    folder = files(tmp_path)[0].parent
    old, new = folder / ".state-old", folder / ".state-new"
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (0, 0))
    answer_once(cache(tmp_path), 3, system=[7, *SYSTEM])
    assert not old.exists()
    assert new.exists()


def test_a_prefix_larger_than_the_limit_is_not_kept_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer_once(cache(tmp_path, max_bytes=100), 3)
    assert not files(tmp_path)
    assert "prefix_cache_mb" in caplog.text


def test_a_disk_that_cannot_be_written_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path, packed: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_state", fail)
    answer_once(cache(tmp_path), 3)
    assert "No space left" in caplog.text


def test_more_than_may_wait_to_be_written_is_kept_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 1)
    written = threading.Event()
    original = PrefixStore._write

    def slow(self: PrefixStore, name: str, state: State) -> None:
        assert written.wait(60)
        original(self, name, state)

    monkeypatch.setattr(PrefixStore, "_write", slow)
    engine, _ = engine_with(cache(tmp_path))
    run(engine, ask(engine, 3), ask(engine, 3, system=[7, *SYSTEM]))
    written.set()
    engine.close()
    assert len(files(tmp_path)) == 1
    answer_once(cache(tmp_path), 3, system=[7, *SYSTEM])
    assert len(files(tmp_path)) == 2


class Held:
    """Makes reading wait until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        original = PrefixStore._read

        def read(store: PrefixStore, name: str) -> State:
            assert self.go.wait(60)
            return original(store, name)

        monkeypatch.setattr(PrefixStore, "_read", read)


def test_others_run_while_a_prefix_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_once(cache(tmp_path), 3)
    held = Held(monkeypatch)
    engine, _ = engine_with(cache(tmp_path))
    reading, other = ask(engine, 3), Request(engine, [5, 6], max_tokens=20)
    engine.submit(reading.sequence)
    engine.submit(other.sequence)
    for _ in range(20):
        engine.step()
    assert other.completion.token_ids == alone([5, 6], SIZES, max_tokens=20).token_ids
    assert not reading.delivered
    held.go.set()
    finish(engine)
    engine.close()
    assert reading.completion.token_ids == expected(3)
    assert reading.completion.usage.n_cached == 100


def test_a_request_can_be_cancelled_while_its_prefix_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_once(cache(tmp_path), 3)
    held = Held(monkeypatch)
    engine, _ = engine_with(cache(tmp_path))
    request, later = ask(engine, 3), ask(engine, 4)
    engine.submit(request.sequence)
    engine.step()
    engine.cancel(request.sequence)
    assert request.completion.finish_reason == "cancelled"
    held.go.set()
    run(engine, later)
    engine.close()
    assert later.completion.token_ids == expected(4)


def test_a_prefix_that_has_no_room_now_is_put_in_later(tmp_path: Path) -> None:
    answer_once(cache(tmp_path), 3)
    engine, _ = engine_with(cache(tmp_path), n_slots=1)
    running, waiting = Request(engine, [5], max_tokens=10), ask(engine, 3)
    engine.submit(running.sequence)
    engine.step()
    engine.submit(waiting.sequence)
    finish(engine)
    engine.close()
    assert waiting.completion.token_ids == expected(3)
    assert waiting.completion.usage.n_cached == 100


def test_a_model_without_a_store_cuts_no_prompt_for_it() -> None:
    backend = FakeBackend(**{**SIZES, "n_batch": 256})
    engine = Engine(backend)
    run(engine, ask(engine, 3, max_tokens=1))
    assert backend.n_forwards == 1


def test_where_prefixes_are_kept_can_be_sent_to_another_process(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(cache(tmp_path))) == cache(tmp_path)  # noqa: S301 - our own


def fake_encode(messages: list[Any]) -> list[int]:
    """Spell messages as their characters, a control id before each."""
    if len(messages) > 4:
        raise TemplateError("too many turns")
    return [i for message in messages for i in (1, *map(ord, message["content"]))]


def test_a_chats_prefix_is_what_its_system_messages_alone_decide() -> None:
    prefixes = SystemPrefixes(fake_encode)
    system = {"role": "system", "content": "Be brief."}
    chat = [system, {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    ids = array("i", fake_encode(chat))
    assert prefixes.length(chat, ids) == 11  # 9 characters and both control ids
    assert prefixes.length(chat[1:], ids) == 0
    assert prefixes.length("Hello", ids) == 0
    assert prefixes.length([5, 6], ids) == 0


def test_a_template_that_wants_other_turns_keeps_nothing() -> None:
    prefixes = SystemPrefixes(fake_encode)
    chat = [{"role": "system", "content": "x"}] * 4
    assert prefixes.length(chat, array("i", fake_encode(chat))) == 0
