"""Broken models of the corpus that are known to kill llama.cpp when nothing stands before it."""

from __future__ import annotations

# (mutation, model, variant): each ended the process of llama-cpp-python 0.3.36, by SIGABRT or SIGSEGV.
KILLERS = (
    ("tensor_type", "phi3-spm-f32", "blk.0.ffn_down.weight I8"),
    ("tensor_type", "llama-bpe-q8_0", "blk.0.attn_norm.weight F16"),
    ("all_matrices_of_type", "gemma2-spm-f32", "I32"),
    ("integer_extremes", "gpt2-bpe-q5_0", "gpt2.block_count 0"),
    ("integer_extremes", "qwen2-bpe-f16", "qwen2.rope.dimension_count 3"),
    ("float_extremes", "llama-bpe-q8_0", "llama.attention.layer_norm_rms_epsilon -inf"),
    ("rope_scaling", "phi3-spm-f32", "LINEAR 0.0"),
    ("heads", "gpt2-bpe-q5_0", "sizes 16 and 8, all rotated"),
    ("experts", "phi2-bpe-f32", "2 of 0"),
    ("experts", "llama-moe-spm-q4_0", "4294967295 of 4294967295 groups"),
    ("consistent_sizes", "phi3-spm-f32", "heads of 1"),
    ("sliding_window", "gemma3-bpe-bf16", "window 2 pattern u32 1"),
    ("duplicate_tokens", "qwen3-spm-f32", "1 and 300"),
    ("split_keys", "gemma3-bpe-bf16", "split.no 5 in part 1"),
)
