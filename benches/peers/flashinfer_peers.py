"""FlashInfer: paged decode on tensor cores, and FlashAttention-3 over ragged prompts. It compiles each kernel on first use; run as a
program with the names of kernels, this only compiles them."""

import os
import sys

os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")

import torch

from timing import set_count, times_us

WORKSPACE_BYTES = 256 << 20
_workspace = None


def workspace():
    global _workspace
    if _workspace is None:
        _workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
    return _workspace


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def decode(problem, request):
    """Pages in random order, `[pages, 2, page_size, kv_heads, head_dim]`; another cache a set, one plan for all."""
    import flashinfer

    seqs, context, page_size = problem["seqs"], problem["context"], problem["page_size"]
    q_heads, kv_heads, head_dim = problem["q_heads"], problem["kv_heads"], problem["head_dim"]
    pages = -(-context // page_size)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace(), "NHD", use_tensor_cores=True)
    starts = pages * torch.arange(seqs + 1, dtype=torch.int32, device="cuda")
    table = torch.randperm(seqs * pages, device="cuda").int()
    last = torch.full((seqs,), (context - 1) % page_size + 1, dtype=torch.int32, device="cuda")
    types = {"q_data_type": torch.bfloat16, "data_type": torch.bfloat16}
    wrapper.plan(starts, table, last, q_heads, kv_heads, head_dim, page_size, **types)
    nbytes = 2 * seqs * head_dim * 2 * (context * kv_heads + q_heads)
    sets = set_count(nbytes, request["cold_bytes"])
    inputs = [
        (random(seqs, q_heads, head_dim), random(seqs * pages, 2, page_size, kv_heads, head_dim))
        for _ in range(sets)
    ]
    times, mode = times_us(lambda index: wrapper.run(*inputs[index]), sets, request)
    return times, mode, sets


def fa3(problem, request):
    """Prompts on end, `[tokens, heads, head_dim]`."""
    import flashinfer

    seqs, seq_len, head_dim = problem["seqs"], problem["seq_len"], problem["head_dim"]
    q_heads, kv_heads = problem["q_heads"], problem["kv_heads"]
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace(), "NHD", backend="fa3")
    starts = seq_len * torch.arange(seqs + 1, dtype=torch.int32, device="cuda")
    wrapper.plan(
        starts, starts, q_heads, kv_heads, head_dim, causal=problem["causal"], q_data_type=torch.bfloat16
    )
    tokens = seqs * seq_len
    nbytes = 2 * tokens * head_dim * 2 * (q_heads + kv_heads)
    sets = set_count(nbytes, request["cold_bytes"])
    inputs = [
        (random(tokens, q_heads, head_dim), random(tokens, kv_heads, head_dim), random(tokens, kv_heads, head_dim))
        for _ in range(sets)
    ]
    times, mode = times_us(lambda index: wrapper.run(*inputs[index]), sets, request)
    return times, mode, sets


def compile_kernel(name):
    """`decode128`, `prefill64`, `prefill128`: runs the smallest problem that needs it."""
    request = {"mode": "events", "iters": 1, "warm_ms": 0, "cold_bytes": 0}
    if name.startswith("decode"):
        head_dim = int(name.removeprefix("decode"))
        problem = {"seqs": 1, "context": 64, "page_size": 16, "q_heads": 4, "kv_heads": 1, "head_dim": head_dim}
        decode(problem, request)
        return
    head_dim = int(name.removeprefix("prefill"))
    for causal in (False, True):
        problem = {
            "seqs": 1, "seq_len": 256, "q_heads": 1, "kv_heads": 1, "head_dim": head_dim, "causal": causal,
        }
        fa3(problem, request)


if __name__ == "__main__":
    for kernel in sys.argv[1:]:
        compile_kernel(kernel)
