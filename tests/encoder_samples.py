"""A small BERT for llama.cpp: a model that looks ahead in a text and keeps no KV cache."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

N_CTX, N_VOCAB, N_EMBD, N_FF, N_LAYER = 128, 64, 32, 64, 2
CLS, SEP = 2, 3


def write_encoder(path: Path) -> Path:
    """Write a model of BERT's architecture with random weights; texts are pooled by their first token."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁x{i}" for i in range(5, N_VOCAB))]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 5 + [1] * (N_VOCAB - 5))
    writer.add_token_type_count(2)
    for name, token_id in (("unk", 1), ("sep", SEP), ("pad", 0), ("mask", 4), ("bos", CLS), ("eos", SEP)):
        getattr(writer, f"add_{name}_token_id")(token_id)

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        drawn = around + 0.3 * random.standard_normal(shape)
        writer.add_tensor(name, drawn.astype(np.float32))

    add("token_embd.weight", N_VOCAB, N_EMBD)
    add("position_embd.weight", N_CTX, N_EMBD)
    add("token_types.weight", 2, N_EMBD)
    norms = ["token_embd_norm"]
    matrices: dict[str, tuple[int, int]] = {}
    for layer in range(N_LAYER):
        at = f"blk.{layer}."
        norms += [f"{at}attn_output_norm", f"{at}layer_output_norm"]
        matrices |= {f"{at}attn_{name}": (N_EMBD, N_EMBD) for name in ("q", "k", "v", "output")}
        matrices |= {f"{at}ffn_up": (N_FF, N_EMBD), f"{at}ffn_down": (N_EMBD, N_FF)}
    for name in norms:
        add(f"{name}.weight", N_EMBD, around=1.0)
        add(f"{name}.bias", N_EMBD)
    for name, shape in matrices.items():
        add(f"{name}.weight", *shape)
        add(f"{name}.bias", shape[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
