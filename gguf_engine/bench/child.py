"""
One engine in a process of its own: a JSON object a line in, one a line out.

    PYTHON child.py ENGINE

Run by its path, under the interpreter that has the engine: here and in `engines/` nothing but the standard
library is imported before the engine itself, and each file of `engines/` has a class `Engine`:

    Engine(config)                      loads config["path"]; `load()` of its module was called before
    version, facts                      what it is; anything else that is known from then on
    encode(text) -> ids or None         None where the engine does not show it
    run(prompts, n_tokens, ...)         -> token_s, end_s, stages; or total_s and rates; see `Trial`;
                                        n_cached of each stream where the engine tells
    greedy(ids, n_tokens)               -> (ids, text), one of them may be empty
    rows(ids)                           -> the logits after each id, or None; the last thing it is asked
    takes_text                          if true, prompts are texts
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BEGIN = time.perf_counter()
N_TOP = 64


def main() -> None:
    """Serve what stdin asks until it ends."""
    if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
        del sys.path[0]  # engines import packages, not the files beside this one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is for people

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    served = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if served is None:
                served = Served(sys.argv[1], asked)
                answer(served.facts)
            else:
                answer(getattr(served, asked.pop("do"))(**asked))
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is its answer
            answer({"error": f"{type(error).__name__}: {error}"})
    os._exit(0)  # engines free gigabytes slowly, and some crash at it


class Served:
    """
    A loaded engine and the clock around it.

    Args:
        name: A file of `engines/`, without its ending.
        config: path, device, n_threads, n_ctx (of a stream), n_slots, began_at (of the process, by
            `time.time`).
    """

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        place = Path(__file__).resolve().parent / "engines" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"engine_{name}", place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        before = max(0.0, time.time() - config["began_at"])  # the interpreter's own start
        begin = time.perf_counter()
        module.load()
        imported = time.perf_counter()
        self.engine = module.Engine(config)
        self.facts = {
            "import_s": before + imported - begin,
            "load_s": time.perf_counter() - imported,
            "version": str(self.engine.version),
            **getattr(self.engine, "facts", {}),
        }

    def _inputs(self, texts: list[str], prompts: list[list[int]]) -> list[Any]:
        """Return what the engine takes: text where it takes no ids."""
        return list(texts if getattr(self.engine, "takes_text", False) else prompts)

    def trial(
        self, texts: list[str], prompts: list[list[int]], n_past: int, **options: Any
    ) -> dict[str, Any]:
        """
        Run some requests at once and return what a trial's record needs.

        Args:
            texts: The prompts; encoding the first is timed.
            prompts: Their ids, of which the first n_past are computed before the clock starts.
            n_past: The depth.
            options: n_tokens, seed, sampling.
        """
        if n_past:
            for prompt in prompts:
                self.engine.run([prompt[:n_past]], n_tokens=1, seed=0, sampling=options["sampling"])
        reset_peak()
        begin = time.perf_counter()
        ids = self.engine.encode(texts[0])
        encode_s = time.perf_counter() - begin
        start = time.perf_counter()
        done = self.engine.run(self._inputs(texts, prompts), **options)
        made = [len(times) for times in done["token_s"]]
        if made and made != [options["n_tokens"]] * len(prompts):
            raise RuntimeError(f"{made} tokens came back, {options['n_tokens']} of each stream were wanted")
        # The last id of what is kept may be computed again, for its row.
        if any(n_cached < n_past - 1 for n_cached in done.get("n_cached", ())):
            raise RuntimeError(
                f"of the {n_past} ids before the prompt {done['n_cached']} were kept: no depth"
            )
        return {
            "encode_s": None if ids is None else encode_s,
            "same_ids": ids is None or list(ids) == prompts[0],
            "token_s": [[round(when - start, 7) for when in times] for times in done["token_s"]],
            "total_s": done["total_s"] if "total_s" in done else done["end_s"] - begin,
            "stages": {"encode": encode_s, **done["stages"]} if done["stages"] else {},
            "prefill_tokens_per_s": done.get("prefill_tokens_per_s"),
            "decode_tokens_per_s": done.get("decode_tokens_per_s"),
            "peak_host_bytes": peak_bytes(),
        }

    def warm_up(self, text: str, prompt: list[int], sampling: dict[str, float]) -> dict[str, Any]:
        """Run a short request that nobody measures: threads start, weights come from the disk."""
        self.engine.run(self._inputs([text], [prompt]), n_tokens=4, seed=0, sampling=sampling)
        return {}

    def anchor(self, prompt: list[int], sampling: dict[str, float], n_tokens: int, seconds: float) -> Any:
        """Return decode tokens/s: as many answers as some seconds allow, their median."""
        rates: list[float] = []
        begin = time.perf_counter()
        while not rates or time.perf_counter() - begin < seconds:
            times = self.engine.run([prompt], n_tokens=n_tokens, seed=len(rates), sampling=sampling)[
                "token_s"
            ][0]
            rates.append((len(times) - 1) / (times[-1] - times[0]))
        return {"decode_tokens_per_s": sorted(rates)[len(rates) // 2]}

    def greedy(self, text: str, ids: list[int], n_tokens: int) -> dict[str, Any]:
        """Return the most probable continuation."""
        made, said = self.engine.greedy(self._inputs([text], [ids])[0], n_tokens)
        return {"ids": made, "text": said}

    def tops(self, ids: list[int]) -> dict[str, Any]:
        """Return the most probable next ids after each of some ids, and their log-probabilities."""
        rows = self.engine.rows(ids)
        return {"ids": [], "logprobs": []} if rows is None else best_of(rows)


def best_of(rows: Any) -> dict[str, Any]:
    """
    Return the N_TOP best ids of each row, best first, and their log-probabilities.

    Args:
        rows: (n, n_vocab) logits, a NumPy array.
    """
    import numpy as np

    rows = np.asarray(rows, np.float64)
    highest = rows.max(axis=1, keepdims=True)
    logprobs = rows - highest - np.log(np.exp(rows - highest).sum(axis=1, keepdims=True))
    order = np.argsort(-logprobs, axis=1, kind="stable")[:, :N_TOP]
    values = np.take_along_axis(logprobs, order, axis=1)
    return {"ids": order.tolist(), "logprobs": [[round(float(v), 5) for v in row] for row in values]}


def reset_peak() -> None:
    """Let the system forget the most memory held so far, where it can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int | None:
    """Return the most memory this process has held."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
