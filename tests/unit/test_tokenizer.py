from __future__ import annotations

import json
from pathlib import Path

import pytest
from text_samples import (
    LLAMA3_CONTROLS,
    PHI3_CONTROLS,
    TEXTS,
    LlamaVocab,
    byte_level_json,
    byte_level_metadata,
    from_json,
    hf,
    spm_json,
    spm_metadata,
    write_gguf,
)

from gguf_engine.errors import TokenizerError
from gguf_engine.loader.gguf import read_gguf
from gguf_engine.text.audit import audit
from gguf_engine.text.tokenizer import Tokenizer, check_same
from gguf_engine.text.tokenizer_json import MAX_FILE_BYTES
from gguf_engine.text.vocabulary import USER_DEFINED

BUNDLED = Path(__file__).parents[2] / "gguf_engine" / "data" / "tokenizer.json"


@pytest.fixture
def spm() -> Tokenizer:
    return from_json(spm_json())


@pytest.fixture
def byte_level() -> Tokenizer:
    return from_json(byte_level_json())


@pytest.mark.parametrize("text", TEXTS)
def test_a_tokenizer_json_encodes_as_the_tokenizers_library_does(
    text: str, spm: Tokenizer, byte_level: Tokenizer
) -> None:
    assert spm.encode(text) == hf(spm_json()).encode(text).ids
    assert byte_level.encode(text) == hf(byte_level_json()).encode(text).ids


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("metadata", [spm_metadata(), byte_level_metadata()], ids=["spm", "bpe"])
def test_a_tokenizer_from_metadata_encodes_as_llama_cpp_does(
    text: str, metadata: dict[str, object], tmp_path: Path
) -> None:
    llama = LlamaVocab(write_gguf(tmp_path / "vocab.gguf", metadata))
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode(text) == llama.encode(text, add_bos=True)
    marked = f"<|end|>\n{text}<|eot_id|> {text}"
    assert tokenizer.encode(marked, control_tokens=True, add_bos=False) == llama.encode(
        marked, control_tokens=True
    )
    llama.close()


@pytest.mark.parametrize(
    "pre",
    ["default", "gpt-2", "llama-bpe", "qwen2", "starcoder", "falcon", "tekken", "gpt-4o", "deepseek-v3"],
)
def test_each_pre_tokenizer_splits_as_llama_cpp_does(pre: str, tmp_path: Path) -> None:
    metadata = byte_level_metadata(pre)
    llama = LlamaVocab(write_gguf(tmp_path / "vocab.gguf", metadata))
    tokenizer = Tokenizer.from_metadata(metadata)
    for text in [*TEXTS, "I'll they'RE 'S x='y' (12345) $1.50!!\n\n  end", "CamelCase ABCdef été Été"]:
        assert tokenizer.encode(text, add_bos=False) == llama.encode(text), text
    llama.close()


def test_the_two_sources_of_one_vocabulary_agree(spm: Tokenizer) -> None:
    built = Tokenizer.from_metadata(spm_metadata())
    for text in TEXTS:
        assert built.encode(text, add_bos=False) == spm.encode(text, add_bos=False)
    check_same(spm, built)


def test_typed_control_text_becomes_ordinary_pieces(spm: Tokenizer) -> None:
    ids = spm.encode("a<|end|><s></s><|system|>")
    assert spm.special_ids.isdisjoint(ids)
    assert spm.decode(ids) == "a<|end|><s></s><|system|>"


def test_control_text_of_ours_becomes_its_id_as_the_library_does_it(spm: Tokenizer) -> None:
    text = "<s>a <|user|>\n b<|end|>\n\n<|assistant|> c"
    assert spm.encode(text, control_tokens=True) == hf(spm_json()).encode(text).ids


def test_bos_is_added_once_when_the_text_brings_its_own(byte_level: Tokenizer) -> None:
    begin = "<|begin_of_text|>"
    assert byte_level.add_bos
    assert byte_level.encode("Hi")[0] == byte_level.bos_id
    assert byte_level.encode(begin + "Hi", control_tokens=True) == byte_level.encode("Hi")
    assert byte_level.encode("Hi", add_bos=False) == byte_level.encode("Hi")[1:]


def test_pieces_that_merge_into_a_control_text_are_spelled_out() -> None:
    data = json.loads(spm_json())
    vocab, merges = data["model"]["vocab"], data["model"]["merges"]
    vocab["<|"], vocab["end|>"], vocab["nd|>"], vocab["d|>"], vocab["|>"] = range(
        len(vocab), len(vocab) + 5
    )
    for piece in "<|>end":
        vocab.setdefault(piece, len(vocab))
    merges += [["|", ">"], ["d", "|>"], ["n", "d|>"], ["e", "nd|>"], ["<", "|"], ["<|", "end|>"]]
    tokenizer = from_json(json.dumps(data))
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("x<|end|>y"))
    assert tokenizer.decode(tokenizer.encode("x<|end|>y")) == "x<|end|>y"


def test_no_space_is_put_after_a_control_token_when_only_the_first_word_gets_one() -> None:
    data = json.loads(spm_json())
    data["normalizer"] = None
    data["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    tokenizer = from_json(json.dumps(data))
    for text in ("a<s>b c", "<s>a b", "a b"):
        assert tokenizer.encode(text, control_tokens=True) == hf(json.dumps(data)).encode(text).ids


def test_user_defined_pieces_are_found_in_text_as_llama_cpp_finds_them(tmp_path: Path) -> None:
    metadata = spm_metadata() | {
        "tokenizer.ggml.token_type": list(spm_metadata()["tokenizer.ggml.token_type"])
    }
    system = metadata["tokenizer.ggml.tokens"].index("<|system|>")
    metadata["tokenizer.ggml.token_type"][system] = USER_DEFINED
    llama = LlamaVocab(write_gguf(tmp_path / "vocab.gguf", metadata))
    tokenizer = Tokenizer.from_metadata(metadata)
    text = "a<|system|> b <|user|>"
    assert system in tokenizer.encode(text)
    assert tokenizer.encode(text) == llama.encode(text, add_bos=True)
    llama.close()


def test_end_ids_hold_every_piece_that_ends_an_answer() -> None:
    spm, bpe = Tokenizer.from_metadata(spm_metadata()), Tokenizer.from_metadata(byte_level_metadata())
    assert {spm.token_text(i) for i in spm.end_ids} == {"</s>", "<|end|>", "<|endoftext|>"}
    assert {bpe.token_text(i) for i in bpe.end_ids} == {"<|end_of_text|>", "<|eot_id|>"}


def test_with_model_takes_what_the_gguf_says(spm: Tokenizer) -> None:
    metadata = spm_metadata() | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 1}
    tokenizer = spm.with_model(metadata)
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_id == metadata["tokenizer.ggml.eos_token_id"]
    assert tokenizer.encode("Hi") == [1, *spm.encode("Hi")]


def test_a_token_that_only_the_gguf_calls_control_stays_text_too() -> None:
    data = json.loads(spm_json())
    for token in data["added_tokens"]:
        token["special"] = token["content"] != "</s>"
    tokenizer = from_json(json.dumps(data))
    assert 2 in tokenizer.encode("a</s>")
    merged = tokenizer.with_model(spm_metadata())
    assert merged.special_ids.isdisjoint(merged.encode("a</s>", add_bos=False))
    assert merged.decode([2]) == ""


def test_padding_that_only_the_gguf_has_is_allowed(spm: Tokenizer) -> None:
    metadata = _longer("[PAD1]", kind=5)
    tokenizer = spm.with_model(metadata)
    assert tokenizer.n_vocab == spm.n_vocab + 1
    assert tokenizer.token_text(spm.n_vocab) == ""


def test_a_piece_that_only_the_gguf_has_is_refused_by_id(spm: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=f"id {spm.n_vocab} is 'lost' in the GGUF only"):
        check_same(spm, Tokenizer.from_metadata(_longer("lost", kind=1)))


def _longer(piece: str, kind: int) -> dict[str, object]:
    metadata = dict(spm_metadata())
    for name, value in (("tokens", piece), ("scores", -1e4), ("token_type", kind)):
        metadata[f"tokenizer.ggml.{name}"] = [*metadata[f"tokenizer.ggml.{name}"], value]
    return metadata


def test_another_models_tokenizer_is_refused_with_the_first_differing_id(spm: Tokenizer) -> None:
    metadata = dict(spm_metadata())
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[259:] = [tokens[-1], *tokens[259:-1]]
    metadata["tokenizer.ggml.tokens"] = tokens
    with pytest.raises(TokenizerError, match=r"id \d+ is '.+' there and '.+' in the GGUF"):
        spm.with_model(metadata)


def test_every_piece_is_compared_not_a_sample(spm: Tokenizer) -> None:
    for wrong in (259, 300, 301, 302, 303):
        tokens = list(spm_metadata()["tokenizer.ggml.tokens"])
        tokens[wrong] = "other"
        with pytest.raises(TokenizerError, match=f"id {wrong} is .+ there and 'other' in the GGUF"):
            spm.with_model(spm_metadata() | {"tokenizer.ggml.tokens": tokens})


def test_an_end_token_that_the_file_lacks_is_refused(spm: Tokenizer) -> None:
    data = json.loads(spm_json())
    lost = data["added_tokens"].pop()
    del data["model"]["vocab"][lost["content"]]
    metadata = spm_metadata() | {"tokenizer.ggml.eos_token_id": lost["id"]}
    with pytest.raises(TokenizerError, match=f"id {lost['id']} is .* missing there"):
        from_json(json.dumps(data)).with_model(metadata)


def test_a_post_processor_that_writes_another_bos_is_refused(byte_level: Tokenizer) -> None:
    end = byte_level.eos_id
    metadata = byte_level_metadata() | {"tokenizer.ggml.bos_token_id": end}
    with pytest.raises(
        TokenizerError, match=f"id {byte_level.bos_id} .*begin_of_text.* with id {end} .*end_of_text"
    ):
        byte_level.with_model(metadata)


def test_an_audit_of_two_of_a_kind_finds_all_the_same(spm: Tokenizer, byte_level: Tokenizer) -> None:
    for tokenizer, metadata in ((spm, spm_metadata()), (byte_level, byte_level_metadata())):
        checks = audit(tokenizer, metadata)
        verdicts = {check.name: check.verdict for check in checks}
        # Phi-3's post-processor leaves BOS to the GGUF's rule.
        if tokenizer is spm:
            assert verdicts.pop("text begins with BOS") == "gguf"
        assert set(verdicts.values()) == {"same"}, checks


def test_an_audit_finds_the_same_pieces_joined_by_other_rules(byte_level: Tokenizer) -> None:
    metadata = byte_level_metadata()
    merges = list(metadata["tokenizer.ggml.merges"])
    checks = audit(byte_level, metadata | {"tokenizer.ggml.merges": merges[: len(merges) // 2]})
    wrong = [check for check in checks if check.verdict == "differs"]
    assert [check.name for check in wrong] == ["sample texts"]
    assert "goes on" in wrong[0].detail


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no model with a vocab"),
        ('{"model": {"vocab": 3}}', "no model with a vocab"),
        ('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "id -1"),
        ('{"model": {"type": "BPE", "vocab": {"a": 1e99}, "merges": []}}', "id 1e"),
        ('{"model": {"type": "Nothing", "vocab": {"a": 0}}}', "its model is 'Nothing'"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}', "Token `x` out of vocabulary"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(content: str, says: str) -> None:
    with pytest.raises(TokenizerError, match=says):
        from_json(content)


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="does not exist"):
        Tokenizer.from_file(tmp_path / "none.json")
    with pytest.raises(TokenizerError, match="is a directory"):
        Tokenizer.from_file(tmp_path)
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(TokenizerError, match=str(MAX_FILE_BYTES)):
        Tokenizer.from_file(huge)


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////9hAA=="}},
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<none>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        },
    ],
    ids=["encode", "post-process"],
)
def test_a_panic_inside_tokenizers_is_a_tokenizer_error(part: dict[str, object]) -> None:
    with pytest.raises(TokenizerError, match="panicked"):
        from_json(json.dumps(json.loads(spm_json()) | part)).encode("a")


def test_settings_that_drop_or_draw_are_off() -> None:
    data = json.loads(spm_json())
    data["model"]["dropout"] = 0.9
    data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    text = "The ice is quiet now."
    assert from_json(json.dumps(data)).encode(text) == hf(spm_json()).encode(text).ids


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.ggml.tokens": []}, "holds no vocabulary"),
        ({"tokenizer.ggml.model": "bert"}, "type 'bert'"),
        ({"tokenizer.ggml.scores": [0.0]}, "1 values for"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "bos_token_id is 1000000"),
    ],
)
def test_a_gguf_vocabulary_that_cannot_be_used_is_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(TokenizerError, match=says):
        Tokenizer.from_metadata(spm_metadata() | change)


def test_a_piece_held_twice_is_refused_with_both_ids() -> None:
    tokens = list(spm_metadata()["tokenizer.ggml.tokens"])
    tokens[300] = tokens[270]
    with pytest.raises(TokenizerError, match="twice, as ids 270 and 300"):
        Tokenizer.from_metadata(spm_metadata() | {"tokenizer.ggml.tokens": tokens})


def test_an_unknown_pre_tokenizer_asks_for_a_tokenizer_json() -> None:
    with pytest.raises(TokenizerError, match=r"'newest-thing'.*pass the model's tokenizer\.json"):
        Tokenizer.from_metadata(byte_level_metadata("newest-thing"))


def test_text_with_a_lone_surrogate_and_ids_outside_are_refused(spm: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="cannot be encoded"):
        spm.encode("\ud800")
    with pytest.raises(TokenizerError, match="cannot be decoded"):
        spm.decode([-1])
    with pytest.raises(TokenizerError, match=f"token id is {spm.n_vocab}"):
        spm.token_text(spm.n_vocab)


def test_control_ids_are_those_of_the_file(spm: Tokenizer, byte_level: Tokenizer) -> None:
    assert {spm.token_text(i) for i in spm.special_ids} == {"<unk>", "<s>", "</s>", *PHI3_CONTROLS}
    assert {byte_level.token_text(i) for i in byte_level.special_ids} == set(LLAMA3_CONTROLS)


@pytest.mark.parametrize("text", TEXTS)
def test_the_bundled_tokenizer_its_gguf_and_llama_cpp_give_the_same_ids(text: str) -> None:
    weights = next(BUNDLED.parent.glob("*.gguf"))
    metadata = read_gguf(weights).metadata
    tokenizer, llama = Tokenizer.from_file(BUNDLED).with_model(metadata), LlamaVocab(weights)
    expected = llama.encode(text)
    llama.close()
    assert tokenizer.encode(text, add_bos=False) == expected
    assert Tokenizer.from_metadata(metadata).encode(text, add_bos=False) == expected
    assert hf(BUNDLED.read_text("utf-8")).encode(text, add_special_tokens=False).ids == expected
