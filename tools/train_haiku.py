"""
Make the bundled demonstration model: corpus, tokenizer, training, GGUF, Q4_K_M, evaluation, model card.

    python tools/train_haiku.py                 all of it, about an hour on two cores
    python tools/train_haiku.py --resume        go on from the last checkpoint
    python tools/train_haiku.py --export-only   write gguf_engine/data/ from the last checkpoint
    python tools/train_haiku.py --evaluate      judge the model in gguf_engine/data/ and write its card
"""

import argparse
import json
import sys
import time
from pathlib import Path
from random import Random

import torch
from haiku_corpus import VALIDATION, Turn, is_575
from haiku_export import quantise, write_gguf
from haiku_model import Batch, Phi3, Shape, batch_loss, draw_batch, sample_answers
from haiku_tokenizer import Encoder, learn_vocabulary, read_vocabulary, write_tokenizer
from tokenizers import Tokenizer

DATA = Path(__file__).resolve().parent.parent / "gguf_engine" / "data"
CARD = Path(__file__).with_name("haiku_card.md")
MODEL_NAME = "haiku-q4_k_m.gguf"
N_ROWS, LENGTH = 22, 192
WARM_UP = 100
MUON_RATE, ADAM_RATE = 4e-3, 3e-3


def rate_factor(step: int, steps: int) -> float:
    """Rise over the first steps, then fall in a line to zero."""
    return min((step + 1) / WARM_UP, 1.0) * (1 - step / steps)


def make_optimizers(model: Phi3) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [weight for weight in model.blk.parameters() if weight.ndim == 2]
    others = [
        weight for weight in model.parameters() if weight.ndim != 2 or weight is model.token_embd.weight
    ]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def save_checkpoint(
    path: Path, model: Phi3, optimizers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    """Write everything the run needs to go on; the old checkpoint stays until the new one is whole."""
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def validate(model: Phi3, encoder: Encoder) -> str:
    """Answer the validation topics as the model will be run; a line with the three rates and one poem."""
    prompts = [encoder.prompt([Turn("user", f"Write a haiku about {topic}")]) for topic in VALIDATION]
    answers = sample_answers(model, prompts, encoder.end, seed=0)
    poems = [encoder.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    ended = [answer[-1] == encoder.end for answer in answers]
    form = sum(whole and poem.count("\n") == 2 for poem, whole in zip(poems, ended, strict=True))
    named = sum(topic.lower() in poem.lower() for topic, poem in zip(VALIDATION, poems, strict=True))
    rates = f"form {form} named {named} 5-7-5 {sum(map(is_575, poems))} of {len(poems)}"
    return f"{rates}: {' / '.join(poems[0].splitlines())}"


def load_checkpoint(path: Path, model: Phi3, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Load what `save_checkpoint` wrote; the steps done and the seconds they took."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"]), float(state["seconds"])


def tell(text: str, *, progress: bool = False) -> None:
    """Write a line to stderr; progress stays on one line of a terminal."""
    print(text, file=sys.stderr, end="\r" if progress and sys.stderr.isatty() else "\n", flush=True)


def train_step(model: Phi3, optimizers: list[torch.optim.Optimizer], batch: Batch) -> float:
    """Learn from one batch; its loss."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = batch_loss(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.item())


def train(encoder: Encoder, checkpoint: Path, steps: int, seed: int, resume: bool) -> None:
    """Train for a fixed number of steps, each on a batch drawn from the seed and the step's number."""
    torch.manual_seed(seed)
    model = Phi3(Shape(n_vocab=encoder.tokenizer.get_vocab_size()))
    optimizers = make_optimizers(model)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    first, seconds = 0, 0.0
    if resume and checkpoint.exists():
        first, seconds = load_checkpoint(checkpoint, model, optimizers)
    started, told = time.monotonic() - seconds, time.monotonic()
    for step in range(first, steps):
        for rate, group in zip(rates, (g for o in optimizers for g in o.param_groups), strict=True):
            group["lr"] = rate * rate_factor(step, steps)
        batch = draw_batch(Random(f"batch {seed} {step}"), encoder, N_ROWS, LENGTH)
        loss = train_step(model, optimizers, batch)
        now, done = time.monotonic(), step + 1
        if now - told > (1 if sys.stderr.isatty() else 30):
            told = now
            tell(f"step {done}/{steps} loss {loss:.3f} after {now - started:.0f} s", progress=True)
        if done % 200 == 0 or done == steps:
            save_checkpoint(checkpoint, model, optimizers, done, now - started)
        if done % 400 == 0 or done == steps:
            tell(f"step {done}: {validate(model, encoder)}")


def export(checkpoint: Path, tokenizer_path: Path, work: Path, data: Path) -> None:
    """Write the model and the tokenizer of a checkpoint into the package."""
    weights = torch.load(checkpoint, weights_only=True)["model"]
    vocabulary = read_vocabulary(tokenizer_path)
    shape = Shape(n_vocab=len(vocabulary.pieces))
    arrays = {name: weight.float().numpy() for name, weight in weights.items()}
    write_gguf(arrays, shape.as_dict(), vocabulary, work / "haiku-f32.gguf")
    quantise(work / "haiku-f32.gguf", work / MODEL_NAME)
    data.mkdir(parents=True, exist_ok=True)
    (data / MODEL_NAME).write_bytes((work / MODEL_NAME).read_bytes())
    (data / "tokenizer.json").write_bytes(tokenizer_path.read_bytes())


def evaluate(checkpoint: Path, seed: int, data: Path) -> None:
    """Judge the model in the package, print the table; with the checkpoint it came from, write the card."""
    from haiku_judge import judge

    figures, table, examples = judge(data / MODEL_NAME)
    print(table, examples, sep="\n\n")
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        facts = {
            "megabytes": (data / MODEL_NAME).stat().st_size / 1e6,
            "parameters": sum(weight.numel() for weight in state["model"].values()) / 1e6,
            "steps": state["step"],
            "minutes": state["seconds"] / 60,
            "tokens": N_ROWS * LENGTH,
            "length": LENGTH,
            "seed": seed,
        }
        card = CARD.read_text(encoding="utf-8").format(
            table=table, examples=examples, **facts, **Shape().as_dict(), **figures
        )
        (data / "README.md").write_text(card, encoding="utf-8")
    print(json.dumps(figures))


def main() -> None:
    """Read the options and do the steps they ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/haiku"), help="checkpoints, float32 model")
    parser.add_argument("--data", type=Path, default=DATA, help="where the finished files go")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--export-only", action="store_true", help="do not train")
    parser.add_argument("--evaluate", action="store_true", help="neither train nor export")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer_path, checkpoint = options.work / "tokenizer.json", options.work / "checkpoint.pt"
    if not (options.export_only or options.evaluate):
        if not (options.resume and tokenizer_path.exists()):
            write_tokenizer(learn_vocabulary(options.seed, Shape().n_vocab), tokenizer_path)
        encoder = Encoder(Tokenizer.from_file(str(tokenizer_path)))
        train(encoder, checkpoint, options.steps, options.seed, options.resume)
    if not options.evaluate:
        export(checkpoint, tokenizer_path, options.work, options.data)
    if not options.export_only:
        evaluate(checkpoint, options.seed, options.data)


if __name__ == "__main__":
    main()
