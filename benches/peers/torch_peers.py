"""cuDNN, FlashAttention-2 and cuBLAS, through PyTorch."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from timing import set_count, times_us

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def attention(name, problem, request):
    """Prefill or decode over contiguous keys and values, `[seqs, heads, tokens, head_dim]`."""
    queries = problem.get("seq_len", 1)
    keys = problem.get("seq_len") or problem["context"]
    seqs, head_dim = problem["seqs"], problem["head_dim"]
    q_heads, kv_heads = problem["q_heads"], problem["kv_heads"]
    nbytes = 2 * seqs * head_dim * 2 * (keys * kv_heads + queries * q_heads)
    sets = set_count(nbytes, request["cold_bytes"])
    inputs = [
        (
            random(seqs, q_heads, queries, head_dim),
            random(seqs, kv_heads, keys, head_dim),
            random(seqs, kv_heads, keys, head_dim),
        )
        for _ in range(sets)
    ]
    options = {"is_causal": problem.get("causal", False), "enable_gqa": q_heads != kv_heads}
    with torch.inference_mode(), sdpa_kernel(BACKENDS[name]):
        times, mode = times_us(
            lambda index: F.scaled_dot_product_attention(*inputs[index], **options), sets, request
        )
    return times, mode, sets


def cudnn(problem, request):
    return attention("cudnn", problem, request)


def fa2(problem, request):
    return attention("fa2", problem, request)


def cublas(problem, request):
    m, n, k = problem["m"], problem["n"], problem["k"]
    sets = set_count(2 * (m * k + n * k + m * n), request["cold_bytes"])
    inputs = [(random(m, k), random(n, k)) for _ in range(sets)]
    with torch.inference_mode():
        times, mode = times_us(lambda index: F.linear(*inputs[index]), sets, request)
    return times, mode, sets


def torch_argmax(problem, request):
    rows, cols = problem["rows"], problem["cols"]
    sets = set_count(4 * rows * cols, request["cold_bytes"])
    inputs = [torch.randn(rows, cols, device="cuda") for _ in range(sets)]
    times, mode = times_us(lambda index: inputs[index].argmax(-1), sets, request)
    return times, mode, sets


def _fastest_us(call):
    request = {"mode": "events", "iters": 10, "warm_ms": 30}
    return min(times_us(call, 1, request)[0])


def ceilings():
    """`(name, what it limits, per second)` of copies, reads and matrix products."""
    nbytes = 2 << 30
    source = torch.randint(0, 1 << 30, (nbytes // 4,), device="cuda", dtype=torch.int32)
    target = torch.empty_like(source)
    copied = _fastest_us(lambda _: target.copy_(source))
    yield "copy", "bandwidth", 2e6 * nbytes / copied
    del source, target
    numbers = torch.randn(nbytes // 4, device="cuda")
    yield "read", "bandwidth", 1e6 * nbytes / _fastest_us(lambda _: numbers.sum())
    del numbers
    size = 8192
    a, b = random(size, size), random(size, size)
    flops = 2 * size**3
    yield f"bf16 matmul {size}", "bf16", 1e6 * flops / _fastest_us(lambda _: a @ b)
    one = torch.ones((), device="cuda")
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()

    def fp8(_):
        return torch._scaled_mm(a8, b8, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    yield f"fp8 matmul {size}", "other", 1e6 * flops / _fastest_us(fp8)
