"""The shortest honest ctypes loop over llama.cpp, with its own settings, sampler chain and tokenizer."""

from __future__ import annotations

import ctypes
import importlib
import os
import time
from typing import Any

N_BATCH = 512
EVERYTHING = 999  # layers, of any model


def load() -> None:
    """Import llama.cpp's binding; a peer, which this package's own engine never runs on."""
    importlib.import_module("llama_cpp.llama_cpp")


class Engine:
    """Decode, sample, id to text; see child.py for what it is asked."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.lib = lib = importlib.import_module("llama_cpp.llama_cpp")
        self.version = f"llama-cpp-python {importlib.import_module('llama_cpp').__version__}"
        self._log = lib.llama_log_callback(lambda *_: None)  # C keeps its address
        lib.llama_log_set(self._log, None)
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0 if config["device"] == "cpu" else EVERYTHING
        params.use_extra_bufts = False  # as this package's engine by default: one copy of the weights
        self.model = lib.llama_model_load_from_file(os.fsencode(config["path"]), params)
        if not self.model:
            raise RuntimeError("llama.cpp refused the file")
        context = lib.llama_context_default_params()
        context.n_ctx = config["n_ctx"] * config["n_slots"]
        context.n_batch = context.n_ubatch = N_BATCH
        context.n_seq_max, context.kv_unified, context.no_perf = config["n_slots"], True, True
        context.n_threads = context.n_threads_batch = config["n_threads"]
        self.context = lib.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context")
        self.memory = lib.llama_get_memory(self.context)
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        self.batch = lib.llama_batch_init(N_BATCH, 0, 1)
        self.held: list[list[int]] = [[] for _ in range(config["n_slots"])]

    def encode(self, text: str) -> list[int]:
        """Return the prompt's ids."""
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 16))()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), True, False)
        return list(ids[:n])

    def run(
        self, prompts: list[list[int]], *, n_tokens: int, seed: int, sampling: dict[str, float]
    ) -> dict[str, Any]:
        """Compute the prompts one after another, then decode them in step."""
        chains = [self._chain(seed + i, sampling) for i in range(len(prompts))]
        token_s, _, seconds = self._run(prompts, chains, n_tokens)
        for chain in chains:
            self.lib.llama_sampler_free(chain)
        return {"end_s": time.perf_counter(), "token_s": token_s, "stages": seconds}

    def _run(
        self, prompts: list[list[int]], chains: list[Any], n_tokens: int
    ) -> tuple[list[list[float]], list[list[int]], dict[str, float]]:
        seconds = {"prefill": 0.0, "decode": 0.0, "sampling": 0.0, "detokenising": 0.0}
        answers = [_Answer(self, slot, prompt, seconds) for slot, prompt in enumerate(prompts)]
        for answer, chain in zip(answers, chains):  # noqa: B905 - older interpreters run this, too
            begin = time.perf_counter()
            self._prefill(answer.slot, answer.prompt)
            seconds["prefill"] += time.perf_counter() - begin
            answer.add(self.lib.llama_sampler_sample, chain, -1)
        for _ in range(n_tokens - 1):
            begin = time.perf_counter()
            for answer in answers:
                at = len(answer.prompt) + len(answer.ids) - 1
                self._put(answer.slot, answer.slot, at, answer.ids[-1], True)
            self.batch.n_tokens = len(answers)
            self._decode()
            seconds["decode"] += time.perf_counter() - begin
            for answer, chain in zip(answers, chains):  # noqa: B905
                answer.add(self.lib.llama_sampler_sample, chain, answer.slot)
        self.held = [*prompts, *([] for _ in self.held[len(prompts) :])]
        return [answer.times for answer in answers], [answer.ids for answer in answers], seconds

    def _prefill(self, slot: int, prompt: list[int]) -> None:
        """Compute a prompt but for what the slot holds of it."""
        held = self.held[slot]
        n_held = next((i for i, pair in enumerate(zip(held, prompt)) if pair[0] != pair[1]), len(held))  # noqa: B905 - shorter is right
        n_held = min(n_held, len(prompt) - 1)
        self.lib.llama_memory_seq_rm(self.memory, slot, n_held, -1)
        for start in range(n_held, len(prompt), N_BATCH):
            part = prompt[start : start + N_BATCH]
            for i, token in enumerate(part):
                self._put(i, slot, start + i, token, start + i == len(prompt) - 1)
            self.batch.n_tokens = len(part)
            self._decode()

    def _decode(self) -> None:
        status = self.lib.llama_decode(self.context, self.batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        self.lib.llama_synchronize(self.context)  # on a GPU the pass has only begun

    def _put(self, at: int, slot: int, position: int, token: int, wanted: bool) -> None:
        batch = self.batch
        batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, slot

    def _chain(self, seed: int, sampling: dict[str, float]) -> Any:
        lib = self.lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        last_n, penalty = int(sampling["repeat_last_n"]), sampling["repeat_penalty"]
        for sampler in (
            lib.llama_sampler_init_penalties(self.n_vocab, last_n, penalty, 0.0, 0.0),
            lib.llama_sampler_init_temp(sampling["temperature"]),
            lib.llama_sampler_init_min_p(sampling["min_p"], 1),
            lib.llama_sampler_init_dist(seed & 0xFFFFFFFF),
        ):
            lib.llama_sampler_chain_add(chain, sampler)
        return chain

    def greedy(self, ids: list[int], n_tokens: int) -> tuple[list[int], str]:
        """Return the most probable continuation; its text is ours to make of the ids."""
        lib = self.lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        _, made, _ = self._run([ids], [chain], n_tokens)
        lib.llama_sampler_free(chain)
        return made[0], ""

    def rows(self, ids: list[int]) -> Any:
        """Return the logits row after each id."""
        import numpy as np

        self.lib.llama_memory_clear(self.memory, True)
        self.held = [[] for _ in self.held]
        for i, token in enumerate(ids):
            self._put(i, 0, i, token, True)
        self.batch.n_tokens = len(ids)
        self._decode()
        pointer = self.lib.llama_get_logits(self.context)
        return np.ctypeslib.as_array(pointer, (len(ids), self.n_vocab)).copy()


class _Answer:
    """One stream's ids, and when each was known."""

    def __init__(self, engine: Engine, slot: int, prompt: list[int], seconds: dict[str, float]) -> None:
        self.engine, self.slot, self.prompt, self.seconds = engine, slot, prompt, seconds
        self.times: list[float] = []
        self.ids: list[int] = []
        self.piece = ctypes.create_string_buffer(256)

    def add(self, sample: Any, chain: Any, row: int) -> None:
        """Sample an id, and make its bytes."""
        engine, begin = self.engine, time.perf_counter()
        token = sample(chain, engine.context, row)
        sampled = time.perf_counter()
        engine.lib.llama_token_to_piece(engine.vocab, token, self.piece, 256, 0, False)
        self.seconds["sampling"] += sampled - begin
        self.seconds["detokenising"] += time.perf_counter() - sampled
        self.times.append(sampled)
        self.ids.append(token)
