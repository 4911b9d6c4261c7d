"""LLM, with a clock around each stage of its engine's step."""

from __future__ import annotations

import threading
import time
from typing import Any


def load() -> None:
    """Import the engine and the library it runs on."""
    import gguf_engine.backend.llama
    import gguf_engine.llm  # noqa: F401


class Engine:
    """LLM, as `LLM.load` makes it; see child.py for what it is asked."""

    def __init__(self, config: dict[str, Any]) -> None:
        from gguf_engine import __version__
        from gguf_engine.llm import LLM

        self.config = config
        self.version = __version__
        self.llm = LLM.load(
            config["path"],
            device=config["device"],
            tokenizer=config.get("tokenizer"),
            n_threads=config["n_threads"],
            n_ctx=config["n_ctx"],
            n_cells=config["n_ctx"] * config["n_slots"],
            n_slots=config["n_slots"],
            isolation="thread",  # this process is the engine's own already
            # Alone all engines compute with the threads that the case names.
            adapt_threads="exact" if config.get("neighbour") else "never",
            tuned=False,
        )
        self.clocks = Clocks(self.llm)
        placement = self.llm.placement
        buffers: dict[str, int] = {}
        for each in (
            ()
            if placement is None
            else (placement.weight_bytes, placement.kv_cache_bytes, placement.compute_bytes)
        ):
            for name, n_bytes in each.items():
                buffers[name] = buffers.get(name, 0) + n_bytes
        self.facts = {
            "n_vocab": self.llm.n_vocab,
            "device": None if placement is None else placement.device,
            "device_bytes": sum(
                n for name, n in buffers.items() if "CPU" not in name and "Host" not in name
            ),
        }

    def encode(self, text: str) -> list[int]:
        """Return the prompt's ids."""
        return self.llm.encode(text)

    def run(
        self, prompts: list[list[int]], *, n_tokens: int, seed: int, sampling: dict[str, float]
    ) -> dict[str, Any]:
        """Read all streams, each in a thread where there are several."""
        self.clocks.begin()
        streams = [
            self.llm.stream(prompt, max_tokens=n_tokens, ignore_eos=True, seed=seed + i, **sampling)  # type: ignore[arg-type]
            for i, prompt in enumerate(prompts)
        ]
        cached: list[int] = []

        def read(stream: Any) -> None:
            cached.extend([piece.usage.n_cached for piece in stream if piece.usage is not None])

        readers = [threading.Thread(target=read, args=(stream,)) for stream in streams[1:]]
        for reader in readers:
            reader.start()
        read(streams[0])
        for reader in readers:
            reader.join()
        return {
            "end_s": time.perf_counter(),
            "token_s": self.clocks.token_s(),
            "stages": self.clocks.stages(),
            "n_cached": cached,
        }

    def greedy(self, ids: list[int], n_tokens: int) -> tuple[list[int], str]:
        """Return the most probable continuation."""
        answer = self.llm.generate(
            ids, temperature=0.0, repeat_penalty=1.0, max_tokens=n_tokens, ignore_eos=True
        )
        return list(answer.token_ids), answer.text

    def rows(self, ids: list[int]) -> Any:
        """Return the logits row after each id, from the backend itself."""
        from pathlib import Path

        from gguf_engine.backend.base import Batch
        from gguf_engine.backend.llama import LlamaBackend
        from gguf_engine.params import EngineParams

        placement = self.llm.placement
        self.llm.close()
        params = EngineParams(
            device=self.config["device"],
            n_threads=self.config["n_threads"],
            n_ctx=self.config["n_ctx"],
            n_slots=1,
            n_batch=max(32, len(ids)),
            flash_attention="off" if placement is not None and not placement.flash_attention else "auto",
        )
        backend = LlamaBackend(Path(self.config["path"]), params)
        batch = Batch()
        batch.add(0, 0, ids, len(ids))
        rows = backend.forward(batch)[: len(ids)].copy()
        backend.close()
        return rows


class Clocks:
    """
    Clocks around what a step calls. None of the functions calls another; what is outside is the rest.

    Args:
        llm: A model whose engine runs in a thread of this process.
    """

    def __init__(self, llm: Any) -> None:
        self.passes: list[tuple[float, float]] = []  # when each forward pass began, and its seconds
        self.seconds = {"sampling": 0.0, "detokenising": 0.0, "hand_over": 0.0}
        self.times: dict[int, list[float]] = {}  # of each stream, when each token was known
        llm._worker.call(self._attach)

    def _attach(self, engine: Any) -> None:
        from gguf_engine.engine.sequence import Sequence
        from gguf_engine.text.detokenizer import Detokenizer

        clock = time.perf_counter
        forward, add, passes, times = engine.backend.forward, Sequence.add, self.passes, self.times

        def timed_forward(batch: Any) -> Any:
            begin = clock()
            rows = forward(batch)
            passes.append((begin, clock() - begin))
            return rows

        def timed_add(sequence: Any, *args: Any) -> Any:
            known = times.get(id(sequence))
            if known is None:
                known = times[id(sequence)] = []
            known.append(clock())
            return add(sequence, *args)

        engine.backend.forward = timed_forward
        setattr(Sequence, "add", timed_add)  # noqa: B010 - of a class with typed methods
        self._around(engine.sampler, "sample", "sampling")
        self._around(Detokenizer, "push", "detokenising")
        self._around(Sequence, "_hand_over", "hand_over")

    def _around(self, owner: Any, name: str, stage: str) -> None:
        function, clock, seconds = getattr(owner, name), time.perf_counter, self.seconds

        def timed(*args: Any) -> Any:
            begin = clock()
            result = function(*args)
            seconds[stage] += clock() - begin
            return result

        setattr(owner, name, timed)

    def begin(self) -> None:
        """Forget what was before."""
        self.passes.clear()
        self.times.clear()
        for stage in self.seconds:
            self.seconds[stage] = 0.0

    def token_s(self) -> list[list[float]]:
        """Return when each token of each stream was known."""
        return [list(times) for times in self.times.values()]

    def stages(self) -> dict[str, float]:
        """Return seconds by stage: a pass that began before every stream had a token is prefill."""
        last_first = max(times[0] for times in self.times.values())
        prefill = sum(seconds for begin, seconds in self.passes if begin < last_first)
        decode = sum(seconds for begin, seconds in self.passes if begin >= last_first)
        return {"prefill": prefill, "decode": decode, **self.seconds}
