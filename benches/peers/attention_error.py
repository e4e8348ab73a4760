"""The error of attention kernels beside that of PyTorch, both against float64, on the same inputs.

    sidebyside --no-peers --no-ceilings --iters 1 --cell prefill/hd128/causal/2048 --cell decode/int8/16x8192 --dump DUMP
    python3 benches/peers/attention_error.py DUMP

Reads what `sidebyside --dump` wrote. PyTorch gets bf16 queries, keys and values, those of a quantised cache as bf16; the truth is
what the cache holds, in float64. A row a kernel and cell: root mean square and largest error of ours and of each backend of PyTorch,
and ours over the better of its fused kernels, which have bf16 weights as ours do; `math` may compute in float32 throughout and is
shown only. Exits with 1 if a root mean square is more than twice, or a largest error more than three times, that of the better.
Needs PyTorch and a GPU.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

FUSED = {"fa2": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
BACKENDS = {**FUSED, "math": SDPBackend.MATH}
CODES = {"bf16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Scores that are held in float64 at a time.
MOST_SCORES = 1 << 28
LIMITS = {"rms": 2.0, "max": 3.0}


def load(folder, name, dtype, *shape):
    raw = bytearray((folder / f"{name}.bin").read_bytes())
    return torch.frombuffer(raw, dtype=dtype).reshape(shape).to(DEVICE)


def contiguous(folder, problem, tensor, scale, tokens, page_size):
    """A paged cache as float64 `[seqs, kv_heads, tokens, head_dim]`."""
    seqs, kv_heads, head_dim = problem["seqs"], problem["kv_heads"], problem["head_dim"]
    pages = -(-tokens // page_size)
    codes = load(folder, tensor, CODES[problem.get("kv", "bf16")], seqs * pages, kv_heads, page_size, head_dim)
    table = load(folder, "block_table", torch.int32, seqs * pages).long()
    # Widened first: not every operation takes 8-bit floats.
    values = codes.to(torch.float64)[table]
    if (folder / f"{scale}.bin").exists():
        values *= load(folder, scale, torch.float32, seqs * pages, kv_heads, page_size)[table].unsqueeze(-1)
    values = values.reshape(seqs, pages, kv_heads, page_size, head_dim).transpose(1, 2)
    return values.reshape(seqs, kv_heads, pages * page_size, head_dim)[:, :, :tokens]


def tensors(folder, problem):
    """Queries and output as they are, `[seqs, heads, queries, head_dim]`, keys and values in float64."""
    queries = problem.get("seq_len", 1)
    tokens = problem.get("seq_len") or problem["context"]
    page_size = problem.get("page_size") or tokens
    shape = problem["seqs"], queries, problem["q_heads"], problem["head_dim"]
    q, out = (load(folder, name, torch.bfloat16, *shape).transpose(1, 2) for name in ("q", "out"))
    k = contiguous(folder, problem, "k_cache", "k_scale", tokens, page_size)
    v = contiguous(folder, problem, "v_cache", "v_scale", tokens, page_size)
    return q, k, v, out


def truth(q, k, v, causal):
    """Softmax attention in float64, a sequence and a few heads at a time."""
    out = torch.empty(q.shape, dtype=torch.float64, device=DEVICE)
    group = q.shape[1] // k.shape[1]
    heads = max(1, MOST_SCORES // (q.shape[2] * k.shape[2]))
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=DEVICE).tril() if causal else None
    for seq in range(q.shape[0]):
        for first in range(0, q.shape[1], heads):
            some = torch.arange(first, min(first + heads, q.shape[1]), device=DEVICE)
            scores = q[seq, some].double() @ k[seq, some // group].transpose(1, 2) * q.shape[3] ** -0.5
            if causal:
                scores.masked_fill_(~mask, float("-inf"))
            out[seq, some] = scores.softmax(-1) @ v[seq, some // group]
    return out


def errors(out, expected):
    off = out.double() - expected
    return {"rms": off.square().mean().sqrt().item(), "max": off.abs().max().item()}


def torch_errors(q, k, v, causal, expected):
    found = {}
    k, v = k.bfloat16(), v.bfloat16()
    for name, backend in BACKENDS.items():
        try:
            with torch.inference_mode(), sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
            found[name] = errors(out, expected)
        except Exception as error:
            print(f"torch {name}: {str(error).strip().splitlines()[0]}", file=sys.stderr)
    return found


def compare(folder):
    """Prints a dump's row; whether it is within the limits."""
    problem = json.loads((folder / "problem.json").read_text())
    if problem["op"] not in ("prefill", "decode"):
        return True
    causal = problem.get("causal", False)
    q, k, v, out = tensors(folder, problem)
    expected = truth(q, k, v, causal)
    ours, theirs = errors(out, expected), torch_errors(q, k, v, causal, expected)
    fused = [theirs[name] for name in FUSED if name in theirs]
    row, within = [f"{folder.parent.name} {folder.name}:"], bool(fused)
    for kind, limit in LIMITS.items():
        ratio = ours[kind] / min((error[kind] for error in fused), default=float("nan"))
        within &= ratio <= limit
        others = ", ".join(f"{name} {error[kind]:.2e}" for name, error in theirs.items())
        row.append(f"{kind} {ours[kind]:.2e} (torch: {others}; {ratio:.2f}x)")
    print(*row, "" if within else "TOO FAR OFF", flush=True)
    return within


def main():
    if len(sys.argv) != 2:
        sys.exit("attention_error.py: expected the folder that 'sidebyside --dump' wrote; see its first lines")
    folders = sorted(path.parent for path in Path(sys.argv[1]).rglob("problem.json"))
    if not folders:
        sys.exit(f"attention_error.py: expected dumps below '{sys.argv[1]}', found none")
    sys.exit(0 if all([compare(folder) for folder in folders]) else 1)


if __name__ == "__main__":
    main()
