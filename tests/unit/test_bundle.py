"""Bundles: out of one cache, into another, and nothing that a stranger made of one."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fakehub import FakeHub
from hub_samples import TOKENIZER, WEIGHTS, everything_in, failure

from gguf_engine.errors import HubError, ModelNotFoundError, OptionError
from gguf_engine.loader.bundle import _header, unpack_bundle, write_bundle
from gguf_engine.loader.hub import Hub
from gguf_engine.loader.lockfile import format_lock
from gguf_engine.loader.resolve import lock_model, resolve_model

Change = Callable[[bytes], bytes]


@pytest.fixture
def bundle(hub: FakeHub, tmp_path: Path) -> Path:
    """Return a bundle of phi3-mini."""
    write_bundle("phi3-mini", tmp_path / "phi3.tar", Hub.open())
    return tmp_path / "phi3.tar"


@pytest.fixture
def empty(tmp_path: Path) -> Hub:
    """Return a hub with an empty cache."""
    return Hub.open(cache_dir=tmp_path / "far", offline=True)


def refusal(bundle: Path, hub: Hub, **options: Path) -> str:
    with pytest.raises(HubError) as caught:
        unpack_bundle(bundle, hub, **options)
    assert caught.value.code == "integrity"
    return str(caught.value)


def test_a_model_goes_through_a_bundle_and_answers_to_its_name_offline(
    hub: FakeHub, bundle: Path, empty: Hub
) -> None:
    hub.stop()
    weights = unpack_bundle(bundle, empty)
    files = resolve_model("phi3-mini", cache_dir=empty.cache, offline=True)
    assert files.weights == weights
    assert weights.read_bytes() == WEIGHTS
    assert files.tokenizer is not None
    assert files.tokenizer.read_bytes() == TOKENIZER
    assert not [
        path for path in everything_in(empty.cache) if ".partial" in path.name or ".lock" in path.name
    ]


def test_tar_can_look_inside(bundle: Path) -> None:
    with tarfile.open(bundle, "r:") as archive:
        members = archive.getmembers()
        lock = archive.extractfile(members[0])
        assert lock is not None
        assert lock.read().decode() == format_lock([lock_model("phi3-mini")])
    assert [member.size for member in members[1:]] == [len(WEIGHTS), len(TOKENIZER)]


@pytest.mark.parametrize("size", [0, 1, 8**11 - 1, 8**11, 2**45])
def test_a_header_is_what_tar_writes(size: int) -> None:
    info = tarfile.TarInfo.frombuf(_header("blobs/x", size), "ascii", "strict")
    assert (info.name, info.size, info.isreg(), info.mode) == ("blobs/x", size, True, 0o644)


def test_two_bundles_of_one_model_are_equal(hub: FakeHub, bundle: Path) -> None:
    write_bundle("phi3-mini", bundle.with_name("b"), Hub.open(offline=True))
    assert bundle.with_name("b").read_bytes() == bundle.read_bytes()


def test_what_is_there_stays_and_is_not_written_again(bundle: Path, empty: Hub) -> None:
    first = unpack_bundle(bundle, empty)
    inode = first.stat().st_ino
    assert unpack_bundle(bundle, empty) == first
    assert first.stat().st_ino == inode


def test_a_commit_that_the_cache_has_with_other_bytes_is_refused(
    hub: FakeHub, bundle: Path, empty: Hub
) -> None:
    """A bundle could bring other bytes under a commit that is known: they would be served from then on."""
    weights = unpack_bundle(bundle, empty)
    data = bundle.read_bytes().replace(WEIGHTS, WEIGHTS[::-1])
    lock = lock_model("phi3-mini").weights[0].sha256
    other = hashlib.sha256(WEIGHTS[::-1]).hexdigest()
    member = _header(f"blobs/{lock}", len(WEIGHTS))
    data = data.replace(member, _header(f"blobs/{other}", len(WEIGHTS))).replace(
        lock.encode(), other.encode()
    )
    bundle.write_bytes(data)
    assert str(weights) in refusal(bundle, empty)
    assert weights.read_bytes() == WEIGHTS


def swap(old: bytes, new: bytes) -> Change:
    return lambda data: data.replace(old, new, 1)


def device(data: bytes) -> bytes:
    place = data.index(b"blobs/") + 156  # the type of a member, in its header
    return data[:place] + b"3" + data[place + 1 :]


ALTERED: list[tuple[str, Change, str]] = [
    ("other weights", swap(WEIGHTS[:64], bytes(64)), "the lock file wants"),
    ("other tokenizer", swap(TOKENIZER, TOKENIZER[::-1]), "the lock file wants"),
    ("a byte in the padding", swap(TOKENIZER + b"\0", TOKENIZER + b"!"), "between its files"),
    ("cut in the weights", lambda data: data[:9000], "ends too early"),
    ("cut before the end", lambda data: data[:-512], "has no end"),
    ("more behind the end", lambda data: data + b"x", "goes on after it"),
    ("much behind the end", lambda data: data + bytes(20_000), "goes on after it"),
    ("nothing", lambda data: b"", "does not begin"),
    ("no tar", lambda data: b"GGUF" * 1000, "does not begin"),
    ("an absolute name first", swap(b"gguf-engine.lock", b"/etc/hosts.allow"), "does not begin"),
    ("a link first", lambda data: data[:156] + b"2" + data[157:], "does not begin"),
    ("no size", lambda data: data[:124] + b"9" * 11 + data[135:], "does not begin"),
    ("a device", device, "does not go on with"),
    ("a name outside", swap(b"blobs/", b"../../"), "does not go on with"),
    ("a size of its own", swap(b"00003720000\0", b"00003720001\0"), "does not go on with"),
    ("a lock of nonsense", swap(b"engine-lock 1", b"engine-lock 9"), "no good lock file"),
]


@pytest.mark.parametrize(("change", "why"), [pytest.param(*rest, id=name) for name, *rest in ALTERED])
def test_what_is_not_the_bundle_it_says_writes_nothing(
    bundle: Path, empty: Hub, tmp_path: Path, change: Change, why: str
) -> None:
    data = bundle.read_bytes()
    assert change(data) != data
    bundle.write_bytes(change(data))
    before = everything_in(tmp_path)
    assert why in refusal(bundle, empty)
    assert everything_in(tmp_path) == before


def test_a_bundle_of_a_bundled_model_cannot_be(tmp_path: Path, empty: Hub) -> None:
    text = format_lock([lock_model("haiku")]).encode()
    path = tmp_path / "b.tar"
    path.write_bytes(_header("gguf-engine.lock", len(text)) + text.ljust(512, b"\0") + bytes(1024))
    assert "does not hold one model of a hub" in refusal(path, empty)
    with pytest.raises(OptionError, match="haiku is in the package"):
        write_bundle("haiku", tmp_path / "x", empty)


def test_a_lock_that_came_another_way_is_agreed_with(
    hub: FakeHub, bundle: Path, empty: Hub, tmp_path: Path
) -> None:
    lock = tmp_path / "lock"
    lock.write_text(format_lock([lock_model("org/repo:m.gguf")]))
    assert "does not name microsoft/Phi-3" in refusal(bundle, empty, lock=lock)
    text = format_lock([lock_model("org/repo:m.gguf"), lock_model("phi3-mini")])
    lock.write_text(text.replace(lock_model("phi3-mini").weights[0].commit, "0" * 40))
    assert "does not say of phi3-mini" in refusal(bundle, empty, lock=lock)
    assert everything_in(empty.cache) == []
    lock.write_text(text)
    assert unpack_bundle(bundle, empty, lock=lock).read_bytes() == WEIGHTS


def test_a_bundle_is_made_of_the_locked_files(hub: FakeHub, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(format_lock([lock_model("org/repo:m.gguf")]))
    hub.add("org/repo", {"m.gguf": WEIGHTS[::-1]})
    locked = write_bundle("org/repo:m.gguf", tmp_path / "b", Hub.open(), lock=lock)
    assert format_lock([locked]) == lock.read_text()


def test_a_bundle_without_a_tokenizer(hub: FakeHub, empty: Hub, tmp_path: Path) -> None:
    hub.add("org/bare", {"m.gguf": WEIGHTS})
    write_bundle("org/bare", tmp_path / "b", Hub.open())
    assert unpack_bundle(tmp_path / "b", empty).name == "m.gguf"
    assert resolve_model("org/bare", cache_dir=empty.cache, offline=True).tokenizer is None


def test_a_cached_file_that_changes_while_it_is_bundled_makes_no_bundle(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = resolve_model("org/repo:m.gguf").weights.resolve()
    real = Hub.fetch

    def fetch(self: Hub, *args: object) -> object:
        fetched = real(self, *args)  # type: ignore[arg-type]
        blob.write_bytes(WEIGHTS[::-1])
        return fetched

    monkeypatch.setattr(Hub, "fetch", fetch)
    with pytest.raises(HubError, match="the lock file wants"):
        write_bundle("org/repo:m.gguf", tmp_path / "b", Hub.open())
    assert everything_in(tmp_path) == []


def test_an_output_that_cannot_be_written_is_named(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"output is .*No such file"):
        write_bundle("org/repo:m.gguf", tmp_path / "none" / "b", Hub.open())


def test_a_bundle_that_is_not_there_is_named(empty: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="make one with `gguf-engine bundle`"):
        unpack_bundle(tmp_path / "none", empty)


def test_a_disk_too_small_is_refused_first(
    hub: FakeHub, bundle: Path, empty: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gguf_engine.loader.disk.SPARE_BYTES", 2**60)
    for act in (
        lambda: unpack_bundle(bundle, empty),
        lambda: write_bundle("phi3-mini", bundle, Hub.open()),
    ):
        with pytest.raises(HubError) as caught:
            act()
        assert caught.value.code == "disk_full"
    assert failure("org/repo:m.gguf").code == "disk_full"
