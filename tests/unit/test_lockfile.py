"""Lock files: what they say, and that nothing else is used."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fakehub import FakeHub
from hub_samples import PHI3, TOKENIZER, WEIGHTS, everything_in, failure

from gguf_engine import LLM
from gguf_engine.errors import ModelNotFoundError, OptionError
from gguf_engine.loader.lockfile import format_lock, parse_lock, read_lock
from gguf_engine.loader.resolve import lock_model, resolve_model

SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
C, S = "a" * 40, "b" * 64
BARE = f"gguf-engine-lock 1\nmodel x/y:m.gguf main\nweights x/y@{C} m.gguf 5 {S}\n"
GOOD = f"{BARE}tokenizer x/z@{C} t.json 6 {S}\n"


@pytest.fixture
def lock(hub: FakeHub, tmp_path: Path) -> Path:
    """Return a lock file of phi3-mini and org/repo:m.gguf."""
    path = tmp_path / "gguf-engine.lock"
    path.write_text(format_lock([lock_model("phi3-mini"), lock_model("org/repo:m.gguf")]))
    return path


def test_the_text_is_a_line_for_each_file(hub: FakeHub, lock: Path) -> None:
    weights = hub.repositories[PHI3].revisions["main"]
    tokenizer = hub.repositories["microsoft/Phi-3-mini-4k-instruct"].revisions["main"]
    small = hashlib.sha256(TOKENIZER).hexdigest()
    assert lock.read_text().splitlines()[:4] == [
        "gguf-engine-lock 1",
        "model phi3-mini main",
        f"weights {PHI3}@{weights} Phi-3-mini-4k-instruct-q4.gguf {len(WEIGHTS)} {SHA256}",
        f"tokenizer microsoft/Phi-3-mini-4k-instruct@{tokenizer} tokenizer.json {len(TOKENIZER)} {small}",
    ]


def test_a_lock_file_reads_as_it_was_written() -> None:
    models = parse_lock(GOOD.encode(), "x")
    assert format_lock(models) == GOOD
    assert parse_lock(b"# who\n\n" + GOOD.encode() + b"# why\n", "x") == models


def test_a_model_without_a_tokenizer_has_no_line_for_one(hub: FakeHub) -> None:
    hub.add("org/bare", {"m.gguf": WEIGHTS})
    text = format_lock([lock_model("org/bare")])
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["model", "weights"]


def test_all_parts_of_a_split_model_are_fetched_and_locked(hub: FakeHub, tmp_path: Path) -> None:
    names = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    hub.add("org/split", {name: name.encode() for name in names})
    files = resolve_model("org/split")
    assert [path.name for path in sorted(files.weights.parent.iterdir())] == names
    model = lock_model("org/split")
    assert [file.file for file in model.weights] == names
    (tmp_path / "lock").write_text(format_lock([model]))
    assert resolve_model("org/split", lock=tmp_path / "lock") == files
    with pytest.raises(OptionError, match="the first part"):
        resolve_model(f"org/split:{names[1]}")


@pytest.mark.parametrize(
    "model", ["phi3-mini", f"{PHI3}:Phi-3-mini-4k-instruct-q4.gguf", "org/repo:m.gguf", "org/repo"]
)
def test_a_locked_model_needs_no_request_when_it_is_cached(hub: FakeHub, lock: Path, model: str) -> None:
    hub.requests.clear()
    files = resolve_model(model, lock=lock)
    assert files.weights.read_bytes() == WEIGHTS
    assert files.tokenizer is not None
    assert hub.requests == []


def test_a_locked_model_is_fetched_by_its_commit_alone(hub: FakeHub, lock: Path, tmp_path: Path) -> None:
    hub.requests.clear()
    assert resolve_model("phi3-mini", lock=lock, cache_dir=tmp_path / "c").weights.read_bytes() == WEIGHTS
    assert [line for line in hub.requests if "api/" in line] == []
    assert len(hub.requests) == 4


def test_a_new_commit_changes_nothing_for_a_locked_model(hub: FakeHub, lock: Path) -> None:
    before = resolve_model("org/repo:m.gguf", lock=lock)
    hub.add("org/repo", {"m.gguf": WEIGHTS[::-1]})
    assert resolve_model("org/repo:m.gguf", lock=lock) == before
    assert resolve_model("org/repo:m.gguf").commit != before.commit


def test_a_revision_that_the_lock_means_may_be_named(hub: FakeHub, lock: Path) -> None:
    commit = hub.repositories["org/repo"].revisions["main"]
    for revision in ("main", commit):
        assert resolve_model("org/repo:m.gguf", revision=revision, lock=lock).commit == commit
    with pytest.raises(OptionError, match=rf"revision is 'v2'; allowed: main \({commit}\)"):
        resolve_model("org/repo:m.gguf", revision="v2", lock=lock)


@pytest.mark.parametrize("model", ["org/other:m.gguf", "org/repo:other.gguf", "haiku"])
def test_a_model_that_is_not_in_the_lock_is_refused(hub: FakeHub, lock: Path, model: str) -> None:
    with pytest.raises(OptionError, match=r"a model of the lock file .*: phi3-mini, org/repo:m.gguf"):
        resolve_model(model, lock=lock)


def changed(lock: Path, old: str, new: str) -> Path:
    text = lock.read_text()
    assert old in text
    lock.write_text(text.replace(old, new))
    return lock


def test_other_bytes_than_the_locked_ones_are_refused_from_the_cache(hub: FakeHub, lock: Path) -> None:
    error = failure(lock=changed(lock, SHA256, S))
    assert error.code == "integrity"
    assert f"has 1024000 bytes with sha256 {SHA256}" in str(error)
    assert f"wants 1024000 bytes with sha256 {S}" in str(error)


@pytest.mark.parametrize(("old", "new"), [(SHA256, S), (f" {len(WEIGHTS)} ", " 17 ")])
def test_other_files_than_the_locked_ones_are_not_fetched(
    hub: FakeHub, lock: Path, tmp_path: Path, old: str, new: str
) -> None:
    hub.requests.clear()
    assert failure(lock=changed(lock, old, new), cache_dir=tmp_path / "c").code == "integrity"
    assert [line for line in hub.requests if line.startswith("GET")] == []
    assert not (tmp_path / "c").exists()


def test_a_small_file_that_is_not_the_locked_one_never_enters_the_cache(
    hub: FakeHub, lock: Path, tmp_path: Path
) -> None:
    """The hub names it by git's sha1, so its sha256 is known only when all of it has come."""
    small = hashlib.sha256(TOKENIZER).hexdigest()
    error = failure(lock=changed(lock, small, S), cache_dir=tmp_path / "c")
    assert (error.code, S in str(error)) == ("integrity", True)
    assert [path for path in everything_in(tmp_path / "c") if "tokenizer" in path.name] == []


def test_another_commit_than_the_locked_one_is_asked_for_and_not_found(
    hub: FakeHub, lock: Path, tmp_path: Path
) -> None:
    commit = hub.repositories["org/repo"].revisions["main"]
    assert failure(lock=changed(lock, commit, C), cache_dir=tmp_path / "c").code == "revision"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no model"),
        ("gguf-engine-lock 2\n", "line 1 .* is not 'gguf-engine-lock 1'"),
        (BARE.replace("weights", "weight"), "line 3 .* none of model, weights"),
        (GOOD.replace("model x/y:m.gguf main\n", ""), "line 2 .* before the first model"),
        (GOOD.replace(" main", ""), "`model NAME REVISION`"),
        (GOOD.replace(" main", " ../../x"), "line 2 .* revision is"),
        (GOOD.replace(f" 5 {S}", f" 5 {S} more"), "line 3 .* is not `ROLE"),
        (GOOD.replace("x/y@", "../y@"), "line 3 .* repository is"),
        (GOOD.replace("m.gguf 5", "../m.gguf 5"), "line 3 .* file is"),
        (GOOD.replace(f"x/y@{C}", "x/y@main"), "line 3 .* no commit"),
        (GOOD.replace(" 5 ", " -5 "), "line 3 .* no size"),
        (GOOD.replace(S, "b" * 63), "line 3 .* no sha256"),
        (GOOD + f"weights x/y@{C} n.gguf 5 {S}\n", "line 5 .* after the tokenizer"),
        (GOOD.replace("tokenizer x/z", "weights x/z"), "line 4 .* another repository"),
        (GOOD.replace("tokenizer x/z", "weights x/y"), "a line for each part"),
        (GOOD.replace("m.gguf 5", "m-00002-of-00002.gguf 5"), "a line for each part"),
        (GOOD.split("weights", maxsplit=1)[0], "a line for each part"),
        (GOOD + "\u00e9", "not ASCII"),
        (GOOD + "#" * 2**20, "longer than 1048576 bytes"),
    ],
)
def test_a_lock_file_that_says_nonsense_is_refused_with_its_line(
    tmp_path: Path, text: str, why: str
) -> None:
    (tmp_path / "lock").write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=why):
        read_lock(tmp_path / "lock")


def test_a_lock_file_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="make one with `gguf-engine lock MODEL`"):
        resolve_model("phi3-mini", lock=tmp_path / "none")


def test_the_bundled_model_can_be_locked(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(format_lock([lock_model("haiku")]))
    assert "model haiku -\nweights bundled haiku-q4_k_m.gguf" in lock.read_text()
    assert resolve_model("haiku", lock=lock) == resolve_model("haiku")
    size = resolve_model("haiku").weights.stat().st_size
    error = failure("haiku", lock=changed(lock, f" {size} ", " 7 "))
    assert error.code == "integrity"


def test_a_local_file_cannot_be_locked(tiny_model: Path) -> None:
    with pytest.raises(OptionError, match="no commit to lock"):
        lock_model(str(tiny_model))


@pytest.fixture
def copy(hub: FakeHub, lock: Path, tmp_path: Path) -> Path:
    """Return a copy, under another name, of a locked model's files."""
    (tmp_path / "copy.gguf").write_bytes(WEIGHTS)
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
    return tmp_path / "copy.gguf"


def test_a_copy_of_a_locked_model_is_as_good(copy: Path, lock: Path) -> None:
    assert resolve_model(copy, lock=lock) == resolve_model(copy)


def test_a_local_model_with_other_weights_is_refused(copy: Path, lock: Path) -> None:
    copy.write_bytes(WEIGHTS[::-1])
    error = failure(str(copy), lock=lock)
    assert (error.code, "does not name for phi3-mini" in str(error)) == ("integrity", True)


def test_a_local_model_with_another_tokenizer_is_refused(copy: Path, lock: Path) -> None:
    copy.with_name("tokenizer.json").write_bytes(TOKENIZER + b" ")
    assert failure(str(copy), lock=lock).code == "integrity"
    copy.with_name("tokenizer.json").unlink()
    assert "is 1 files, phi3-mini in the lock file 2" in str(failure(str(copy), lock=lock))


def test_a_local_split_model_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    name = "m-00001-of-00002.gguf"
    (tmp_path / name).write_bytes(WEIGHTS)
    text = BARE.replace("m.gguf 5", f"{name} {len(WEIGHTS)}").replace(S, SHA256)
    text += f"weights x/y@{C} m-00002-of-00002.gguf 5 {S}\n"
    (tmp_path / "lock").write_text(text)
    with pytest.raises(ModelNotFoundError, match="m-00002-of-00002"):
        resolve_model(tmp_path / name, lock=tmp_path / "lock")


def test_a_tokenizer_of_ones_own_and_a_lock_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="none beside a lock file"):
        LLM.load("haiku", lock=tmp_path / "lock", tokenizer=tmp_path / "tokenizer.json")
