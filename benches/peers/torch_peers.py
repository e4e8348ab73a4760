"""cuDNN, FlashAttention-2, cuBLAS and kernels for quantised weights, through PyTorch."""

import os

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
    """bf16, whatever the weights of the problem are."""
    m, n, k = problem["m"], problem["n"], problem["k"]
    sets = set_count(2 * (m * k + n * k + m * n), request["cold_bytes"])
    inputs = [(random(m, k), random(n, k)) for _ in range(sets)]
    with torch.inference_mode():
        times, mode = times_us(lambda index: F.linear(*inputs[index]), sets, request)
    return times, mode, sets


def _random_bytes(*shape):
    return torch.randint(-128, 128, shape, device="cuda", dtype=torch.int8)


def int_mm(problem, request):
    """The bare product of bytes, i32 out: scales not applied."""
    m, n, k = problem["m"], problem["n"], problem["k"]
    sets = set_count(m * k + n * k + 4 * m * n, request["cold_bytes"])
    inputs = [(_random_bytes(m, k), _random_bytes(n, k).t()) for _ in range(sets)]
    with torch.inference_mode():
        times, mode = times_us(lambda index: torch._int_mm(*inputs[index]), sets, request)
    return times, mode, sets


def tinygemm(problem, request):
    """PyTorch's own kernel for 4-bit weights in groups of 128."""
    m, n, k = problem["m"], problem["n"], problem["k"]
    if m > 256:
        raise RuntimeError("made for few rows")
    sets = set_count(n * k // 2, request["cold_bytes"])
    inputs = []
    for _ in range(sets):
        packed = torch.randint(0, 256, (n, k // 2), device="cuda", dtype=torch.uint8)
        weights = torch._convert_weight_to_int4pack(packed, 8)
        scales = (torch.rand(k // 128, n, 2, device="cuda") * 0.01).to(torch.bfloat16)
        inputs.append((random(m, k), weights, scales))

    def call(index):
        a, weights, scales = inputs[index]
        return torch._weight_int4pack_mm(a, weights, 128, scales)

    with torch.inference_mode():
        times, mode = times_us(call, sets, request)
    return times, mode, sets


_marlin_module = None


def marlin(problem, request):
    """Marlin, where MARLIN names the folder of its two source files."""
    global _marlin_module
    folder = os.environ.get("MARLIN")
    if not folder:
        raise RuntimeError("MARLIN names no folder with its sources")
    if _marlin_module is None:
        from torch.utils.cpp_extension import load

        os.environ["TORCH_CUDA_ARCH_LIST"] = "9.0"
        sources = [f"{folder}/marlin_cuda.cpp", f"{folder}/marlin_cuda_kernel.cu"]
        _marlin_module = load("marlin_cuda", sources, extra_cuda_cflags=["-O3"])
    m, n, k = problem["m"], problem["n"], problem["k"]
    sets = set_count(n * k // 2, request["cold_bytes"])
    workspace = torch.zeros(n // 128 * 16, device="cuda", dtype=torch.int32)
    scales = torch.rand(k // 128, n, device="cuda", dtype=torch.half) * 0.01
    out = torch.empty(m, n, device="cuda", dtype=torch.half)
    a = torch.randn(m, k, device="cuda", dtype=torch.half)
    weights = [
        torch.randint(-(2**31), 2**31 - 1, (k // 16, n * 16 // 8), device="cuda", dtype=torch.int32) for _ in range(sets)
    ]

    def call(index):
        _marlin_module.mul(a, weights[index], out, scales, workspace, -1, -1, -1, 16)
        return out

    times, mode = times_us(call, sets, request)
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
