"""Names people write, and where they lead."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_engine.errors import ModelNotFoundError, OptionError
from gguf_engine.loader.catalog import CATALOG, ModelSpec, parse_model, part_names
from gguf_engine.loader.resolve import resolve_model


def spec_of(name: str, *, revision: str | None = None) -> ModelSpec:
    spec = parse_model(name, revision=revision)
    assert isinstance(spec, ModelSpec)
    return spec


def test_the_default_model_is_microsofts_q4_with_the_tokenizer_of_the_original() -> None:
    assert parse_model("phi3-mini") == ModelSpec(
        name="phi3-mini",
        repo="microsoft/Phi-3-mini-4k-instruct-gguf",
        file="Phi-3-mini-4k-instruct-q4.gguf",
        revision="main",
        tokenizer_repo="microsoft/Phi-3-mini-4k-instruct",
    )


def test_the_catalog_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        CATALOG["other"] = ModelSpec(name="other")  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "repo", "file", "revision"),
    [
        ("org/repo:a.gguf@v1.2", "org/repo", "a.gguf", "v1.2"),
        ("org/repo:a.gguf", "org/repo", "a.gguf", "main"),
        ("org/repo:sub/a.gguf", "org/repo", "sub/a.gguf", "main"),
        ("org/repo@refs/pr/1", "org/repo", "", "refs/pr/1"),
        ("org/repo", "org/repo", "", "main"),
    ],
)
def test_a_repository_name_is_taken_apart(name: str, repo: str, file: str, revision: str) -> None:
    spec = spec_of(name)
    assert (spec.repo, spec.file, spec.revision) == (repo, file, revision)


def test_an_explicit_revision_overrides_the_one_in_the_name() -> None:
    assert spec_of("org/repo:a.gguf@v1", revision="v2").revision == "v2"
    assert spec_of("phi3-mini", revision="v2").revision == "v2"


@pytest.mark.parametrize(
    "name",
    ["a/b:../x.gguf", "a/b:x/../../y.gguf", "a/b:/x.gguf", "a/b:.git", "a..b/c:x.gguf", "a--b/c:x.gguf",
     "a b/c:x.gguf", "-a/b:x.gguf", "a/b:x.gguf@../../etc", "a/b:x.gguf@-rf", "a/b:x\n.gguf", "a/b:",
     "a/b:x.gguf@"],
)  # fmt: skip
def test_names_that_could_leave_the_cache_are_refused(name: str) -> None:
    with pytest.raises(OptionError):
        parse_model(name)


def test_a_misspelt_name_is_answered_with_the_close_one_and_all_known() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        parse_model("phi-3-mini")
    assert "did you mean phi3-mini?" in str(caught.value)
    assert "haiku, phi3-mini" in str(caught.value)


@pytest.mark.parametrize("name", ["", "  ", "nothing", "a/b/c", "phi3-mini@", "x\0y"])
def test_what_is_no_name_is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        parse_model(name)


def test_a_catalog_name_wins_over_a_path_and_a_path_over_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phi3-mini").mkdir()
    (tmp_path / "org" / "repo").mkdir(parents=True)
    assert parse_model("phi3-mini") == CATALOG["phi3-mini"]
    assert parse_model("./phi3-mini") == Path("phi3-mini")
    assert parse_model("org/repo") == Path("org/repo")


def test_the_bundled_model_resolves_to_files_of_the_package() -> None:
    files = resolve_model("haiku")
    assert files.weights.name == "haiku-q4_k_m.gguf"
    assert files.tokenizer == files.weights.with_name("tokenizer.json")
    assert (files.revision, files.commit) == (None, None)


def test_a_local_file_resolves_to_itself_and_the_tokenizer_beside_it(tiny_model: Path) -> None:
    files = resolve_model(str(tiny_model))
    assert (files.weights, files.tokenizer) == (tiny_model, tiny_model.with_name("tokenizer.json"))
    assert resolve_model(tiny_model).weights == tiny_model
    assert resolve_model(tiny_model.parent).weights == tiny_model


def test_a_file_without_a_tokenizer_has_none(make_tiny_model: Callable[..., Path]) -> None:
    assert resolve_model(make_tiny_model()).tokenizer is None


def test_a_folder_with_several_models_is_refused_with_their_names(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelNotFoundError, match=r"holds 2 models: a\.gguf, b\.gguf; name one: .*a\.gguf"):
        resolve_model(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no \.gguf model; name a \.gguf file"):
        resolve_model(str(tmp_path))


def test_of_a_split_model_the_first_part_is_taken(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"m-{number:05}-of-00003.gguf").touch()
    assert resolve_model(tmp_path).weights.name == "m-00001-of-00003.gguf"
    (tmp_path / "m-00001-of-00003.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match="no first part of a split model"):
        resolve_model(tmp_path)


def test_a_missing_file_is_answered_with_the_models_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="gguf-engine pull phi3-mini"):
        resolve_model(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").touch()
    with pytest.raises(ModelNotFoundError, match=r"no such file: .*x\.gguf; .* has y\.gguf"):
        resolve_model(str(tmp_path / "x.gguf"))


@pytest.mark.parametrize("model", ["haiku", "./somewhere"])
def test_what_has_no_revisions_takes_none(model: str) -> None:
    with pytest.raises(OptionError, match="revision is 'v1'; allowed: none"):
        resolve_model(model, revision="v1")


def test_an_installation_without_its_model_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gguf_engine.loader.resolve.resources.files", lambda package: tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"this installation lacks .* reinstall gguf-engine"):
        resolve_model("haiku")


def test_a_path_whose_folder_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist either"):
        resolve_model(tmp_path / "none" / "x.gguf")


@pytest.mark.parametrize("name", ["m-00001-of-00002.gguf", "a/B-00001-of-00001.GGUF", "plain.gguf"])
def test_the_first_part_names_all_parts(name: str) -> None:
    names = part_names(name)
    assert names[0] == name
    assert len(names) == (2 if "00002" in name else 1)


@pytest.mark.parametrize(
    "name", ["m-00002-of-00002.gguf", "m-00000-of-00002.gguf", "m-00001-of-00000.gguf"]
)
def test_a_part_that_is_not_the_first_names_no_others(name: str) -> None:
    with pytest.raises(OptionError, match="the first part"):
        part_names(name)
