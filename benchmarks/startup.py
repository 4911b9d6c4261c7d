"""
Seconds from starting the program to the first text of the bundled model, as whole processes.

What bounds it: the interpreter (some 15 ms), the imports, and what llama.cpp takes to load. The bare script
does the least that can be done over the same bindings: import them, load, decode the prompt, choose the
best id, print its text. What the program takes above that is ours: reading options, the checks of the file,
the tokenizer and the template, the engine's thread. `import` is `import gguf_engine` above an empty script.

    python benchmarks/startup.py [--rounds N] [--record]

The processes take turns within each round; figures are medians. Beside the time to the first byte of
stdout stands the processor time of the process up to its end, which a busy machine changes less. The
table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from common import PROGRAM, finish, quartiles, say

from gguf_engine.loader.resolve import resolve_model

EMPTY = "print('x', flush=True)"
IMPORT = "import gguf_engine; print('x', flush=True)"
BARE = """
import os, sys
os.environ["GOMP_SPINCOUNT"] = "1000"
import ctypes
import llama_cpp.llama_cpp as lib
log = lib.llama_log_callback(lambda *_: None)
lib.llama_log_set(log, None)
lib.llama_backend_init()
params = lib.llama_model_default_params()
params.use_extra_bufts, params.n_gpu_layers = False, 0
model = lib.llama_model_load_from_file(sys.argv[1].encode(), params)
options = lib.llama_context_default_params()
options.n_ctx, options.n_threads, options.n_threads_batch = 0, N_THREADS, N_THREADS
context = lib.llama_init_from_model(model, options)
vocab = lib.llama_model_get_vocab(model)
text = sys.argv[2].encode()
ids = (lib.llama_token * 64)()
n = lib.llama_tokenize(vocab, text, len(text), ids, 64, True, True)
lib.llama_decode(context, lib.llama_batch_get_one(ids, n))
row = lib.llama_get_logits_ith(context, -1)
best = max(range(lib.llama_vocab_n_tokens(vocab)), key=row.__getitem__)
piece = ctypes.create_string_buffer(64)
n = lib.llama_token_to_piece(vocab, best, piece, 64, 0, False)
sys.stdout.write(piece.raw[:n].decode() + "\\n"); sys.stdout.flush()
lib.llama_free(context); lib.llama_model_free(model)
"""
PROMPT = "Write a haiku about ice hockey"


def processes(n_threads: int) -> dict[str, list[str]]:
    """Return the command of each process."""
    python = [sys.executable, "-c"]
    program = [PROGRAM, "run", PROMPT, "--model", "haiku", "-n", "4"]
    weights = str(resolve_model("haiku").weights)
    return {
        "empty": [*python, EMPTY],
        "import": [*python, IMPORT],
        "bare": [*python, BARE.replace("N_THREADS", str(n_threads)), weights, PROMPT],
        "run": [*program, "--n-threads", str(n_threads), "--seed", "1"],
        "version": [PROGRAM, "--version"],
    }


def once(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a process; return the seconds to its first byte, and its processor time."""
    before = os.times()
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    with child:
        assert child.stdout is not None
        first = child.stdout.read(1)
        seconds = time.perf_counter() - begin
        child.stdout.read()
    after = os.times()
    if child.returncode != 0 or not first:
        raise RuntimeError(f"{command[:4]} ended with {child.returncode}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu


def main() -> None:
    """Measure, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds is at least 2: quartiles need two figures")
    commands = processes(args.threads)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as home:
        # What is remembered of model files lies in a cache of its own, warm after the first round.
        environment = {**os.environ, "XDG_CACHE_HOME": home, "HF_HUB_OFFLINE": "1"}
        for round_ in range(args.rounds + 1):
            for name, command in commands.items():
                first_byte, used = once(command, environment)
                if round_:
                    seconds[name].append(first_byte)
                    cpu[name].append(used)
    results: dict[str, Any] = {
        name: {"first_byte_s": quartiles(seconds[name]), "cpu_s": quartiles(cpu[name])} for name in commands
    }
    for what in ("first_byte_s", "cpu_s"):
        median = {name: results[name][what]["median"] for name in commands}
        results[f"import_{what}"] = median["import"] - median["empty"]
        results[f"own_{what}"] = median["run"] - median["bare"]
    say(f"{'process':10}{'first byte, ms':>16}{'processor, ms':>16}")
    for name in commands:
        row = results[name]
        say(f"{name:10}{row['first_byte_s']['median'] * 1e3:16.0f}{row['cpu_s']['median'] * 1e3:16.0f}")
    say(f"import gguf_engine: {results['import_first_byte_s'] * 1e3:.0f} ms above an empty script")
    say(f"run above bare: {results['own_first_byte_s'] * 1e3:.0f} ms")
    finish("startup", {"n_threads": args.threads, **results}, args.record)


if __name__ == "__main__":
    main()
