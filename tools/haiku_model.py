"""The Phi-3 architecture in PyTorch, at the size of the demonstration model, and its training batches."""

import math
from dataclasses import asdict, dataclass
from random import Random

import numpy as np
import torch
from haiku_corpus import draw_conversation
from haiku_tokenizer import Encoder
from torch import Tensor, nn
from torch.nn import functional

REPEAT_PENALTY = 1.2


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the model; rows are multiples of 256 because Q4_K packs 256 weights."""

    n_vocab: int = 2048
    n_embd: int = 256
    n_head: int = 4
    n_ff: int = 768
    n_layer: int = 4
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5

    def as_dict(self) -> dict[str, float]:
        """Name the sizes, for `haiku_export.write_gguf`."""
        return asdict(self)


class RMSNorm(nn.Module):  # type: ignore[misc] # torch is Any where it is not installed
    """x / rms(x) * weight over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., size)."""
        return functional.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


def rope_table(length: int, size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (length, size / 2) float32."""
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (..., length, size) by position, pairing i with i + size / 2 (the "neox" order)."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class Block(nn.Module):  # type: ignore[misc]
    """One layer: attention with fused q, k, v; SwiGLU with fused gate and up, gate first; no biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_head = shape.n_head
        self.attn_norm = RMSNorm(shape.n_embd, shape.norm_eps)
        self.attn_qkv = nn.Linear(shape.n_embd, 3 * shape.n_embd, bias=False)
        self.attn_output = nn.Linear(shape.n_embd, shape.n_embd, bias=False)
        self.ffn_norm = RMSNorm(shape.n_embd, shape.norm_eps)
        self.ffn_up = nn.Linear(shape.n_embd, 2 * shape.n_ff, bias=False)
        self.ffn_down = nn.Linear(shape.n_ff, shape.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Map (n_rows, length, n_embd) to the same shape; mask as in `Phi3.forward`."""
        n_rows, length, n_embd = x.shape
        qkv = self.attn_qkv(self.attn_norm(x)).view(n_rows, length, 3, self.n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (n_rows, n_head, length, n_embd / n_head)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(n_rows, length, n_embd))
        gate, up = self.ffn_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.ffn_down(functional.silu(gate) * up)


class Phi3(nn.Module):  # type: ignore[misc]
    """A Phi-3 whose output head is its embedding: it reads and writes what it copies with one vector."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.output_norm = RMSNorm(shape.n_embd, shape.norm_eps)
        nn.init.normal_(self.token_embd.weight, std=0.04)
        for name, weight in self.blk.named_parameters():
            if weight.ndim == 2:
                adds = name.endswith(("attn_output.weight", "ffn_down.weight"))
                small = math.sqrt(2 * shape.n_layer) if adds else 1.0
                nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]) / small)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Return the normalised states, (n_rows, length, n_embd); `logits` reads them.

        Args:
            ids: (n_rows, length) int64.
            mask: (n_rows, 1, length, length) bool, true where attention may look; None is plain causal.
        """
        cos, sin = rope_table(ids.shape[1], self.shape.n_embd // self.shape.n_head, self.shape.rope_base)
        x = self.token_embd(ids)
        if torch.is_autocast_enabled("cpu"):
            x, cos, sin = x.bfloat16(), cos.bfloat16(), sin.bfloat16()
        for block in self.blk:
            x = block(x, cos, sin, mask)
        return self.output_norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """Scores of each piece for (..., n_embd) states."""
        return functional.linear(states, self.token_embd.weight)


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations packed into rows; only answers are learned."""

    ids: Tensor  # (n_rows, length) int64
    mask: Tensor  # (n_rows, 1, length, length) bool: causal, and within one conversation
    rows: Tensor  # (n_targets,) int64: flat positions that predict an answer's token
    targets: Tensor  # (n_targets,) int64
    seen: Tensor  # (2, n_seen) int64: target number and id, for each distinct id earlier in the same answer


def draw_batch(rng: Random, encoder: Encoder, n_rows: int, length: int) -> Batch:
    """Draw conversations until the rows are full, each put into the fullest row that still holds it."""
    ids = np.full((n_rows, length), encoder.control["<|endoftext|>"], dtype=np.int64)
    owner = np.zeros((n_rows, length), dtype=np.int64)
    used = [0] * n_rows
    rows: list[int] = []
    targets: list[int] = []
    seen: list[tuple[int, int]] = []
    misses = 0
    while misses < 12:
        tokens, answers = encoder.conversation(draw_conversation(rng))
        fitting = [row for row in range(n_rows) if used[row] + len(tokens) <= length]
        if not fitting:
            misses += 1
            continue
        row = max(fitting, key=used.__getitem__)
        at = used[row]
        ids[row, at : at + len(tokens)] = tokens
        owner[row, at : at + len(tokens)] = owner[row].max() + 1
        used[row] += len(tokens)
        for first, after in answers:
            for position in range(first, after):
                seen += [(len(targets), i) for i in set(tokens[max(first, position - 64) : position])]
                rows.append(row * length + at + position - 1)
                targets.append(tokens[position])
    same = owner[:, None, :, None] == owner[:, None, None, :]
    mask = same & np.tril(np.ones((length, length), dtype=bool))
    arrays = (ids, mask, np.array(rows), np.array(targets), np.array(seen).T)
    return Batch(*map(torch.from_numpy, arrays))


def penalise(logits: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return (n, n_vocab) logits with the repeat penalty on each (row, column), none given twice."""
    raw = logits[row, column]
    return logits.index_put((row, column), torch.where(raw > 0, raw / REPEAT_PENALTY, raw * REPEAT_PENALTY))


def batch_loss(model: Phi3, batch: Batch) -> Tensor:
    """
    Mean cross-entropy of the answers under the repeat penalty the model is run with.

    With the penalty inside the loss, the second line break is learned as likely as it has to be after it.
    """
    states = model(batch.ids, batch.mask).flatten(0, 1)[batch.rows]
    logits = model.logits(states).float()  # (n_targets, n_vocab)
    return functional.cross_entropy(penalise(logits, *batch.seen), batch.targets)


def sample_answers(
    model: Phi3, prompts: list[list[int]], end: int, seed: int, max_tokens: int = 100
) -> list[list[int]]:
    """Answer prompts at temperature 1 with the repeat penalty; the end token, if met, is the last id."""
    generator = torch.Generator().manual_seed(seed)
    rows = [list(prompt) for prompt in prompts]
    open_rows = list(range(len(rows)))
    for _ in range(max_tokens):
        longest = max(len(rows[row]) for row in open_rows)
        ids = torch.tensor([rows[row] + [end] * (longest - len(rows[row])) for row in open_rows])
        last = torch.tensor([len(rows[row]) - 1 for row in open_rows])
        seen = [
            (i, t) for i, row in enumerate(open_rows) for t in set(rows[row][len(prompts[row]) :][-64:])
        ]
        with torch.inference_mode():
            logits = model.logits(model(ids)[torch.arange(len(open_rows)), last]).float()
            if seen:
                logits = penalise(logits, *torch.tensor(seen).T)
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0].tolist()
        for row, token in zip(open_rows, drawn, strict=True):
            rows[row].append(token)
        open_rows = [row for row in open_rows if rows[row][-1] != end]
        if not open_rows:
            break
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
