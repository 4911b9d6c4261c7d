"""From trained weights to what llama.cpp runs: GGUF in float32, then Q4_K_M by its own quantiser."""

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
from haiku_tokenizer import Vocabulary

FloatArray = npt.NDArray[np.float32]

CONTEXT_LENGTH = 4096
LICENSE = "mit"
NAME = "Haiku, a demonstration of the phi3 architecture"
DESCRIPTION = (
    "A very small model that writes haiku, trained from scratch on a generated corpus by "
    "tools/train_haiku.py of gguf_engine. It has the architecture and chat format of Phi-3 and none of "
    "its weights."
)
# As Phi-3's: no token opens the conversation, and <|endoftext|> closes one that is not to be answered.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    ids = {piece: i for i, piece in enumerate(vocabulary.pieces)}
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(vocabulary.pieces))
    writer.add_token_scores(list(vocabulary.scores))
    writer.add_token_types(list(vocabulary.types))
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["<|endoftext|>"])
    writer.add_eot_token_id(ids["<|end|>"])
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_gguf(
    weights: dict[str, FloatArray], shape: dict[str, float], vocabulary: Vocabulary, path: Path
) -> None:
    """
    Write a float32 GGUF of the phi3 architecture.

    Args:
        weights: GGUF names (the modules' own) to float32 arrays, (out, in) for matrices. There is no
            output.weight: llama.cpp then reads token_embd.weight in its place.
        shape: The fields of `haiku_model.Shape`.
        vocabulary: Pieces in the order of the embedding's rows.
        path: File to write.
    """
    n_head, n_embd = int(shape["n_head"]), int(shape["n_embd"])
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_name(NAME)
    writer.add_description(DESCRIPTION)
    writer.add_license(LICENSE)
    writer.add_size_label(f"{sum(weight.size for weight in weights.values()) / 1e6:.1f}M")
    writer.add_languages(["en"])
    writer.add_vocab_size(len(vocabulary.pieces))
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_rope_scaling_orig_ctx_len(CONTEXT_LENGTH)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(int(shape["n_ff"]))
    writer.add_block_count(int(shape["n_layer"]))
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head)
    writer.add_layer_norm_rms_eps(shape["norm_eps"])
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_rope_freq_base(shape["rope_base"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, vocabulary)
    for name, weight in weights.items():
        writer.add_tensor(name, np.ascontiguousarray(weight, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source: Path, target: Path) -> None:
    """Quantise a float32 GGUF to Q4_K_M with llama.cpp's quantiser; one thread, so the same bytes again."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    params.nthread = 1
    llama_cpp.llama_backend_init()
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise RuntimeError(f"llama.cpp could not quantise {source}: status {status}")
