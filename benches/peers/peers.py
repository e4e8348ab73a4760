"""Times the peers: a request a line on standard input, answers a line each on standard output.

    python3 benches/peers/peers.py [--compile KERNEL...] < requests.jsonl > peers.jsonl

Requests are what 'sidebyside --list --requests' prints; `{"ceilings": true}` asks for the ceilings. The runner starts this program
itself with '--with-peers'.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# Only answers go to standard output; libraries print elsewhere.
ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

# A cell that takes a peer longer than this is worth a line.
SLOW_SECONDS = 5

# Which module and function time which operation, by peer.
PEERS = {
    "prefill": {
        "cudnn": ("torch_peers", "cudnn"),
        "fa2": ("torch_peers", "fa2"),
        "flashinfer-fa3": ("flashinfer_peers", "fa3"),
    },
    "decode": {
        "cudnn": ("torch_peers", "cudnn"),
        "fa2": ("torch_peers", "fa2"),
        "flashinfer": ("flashinfer_peers", "decode"),
    },
    "gemm": {"cublas": ("torch_peers", "cublas")},
    "gemm/int4": {
        "cublas": ("torch_peers", "cublas"),
        "marlin": ("torch_peers", "marlin"),
        "tinygemm": ("torch_peers", "tinygemm"),
    },
    "gemm/int8": {"cublas": ("torch_peers", "cublas"), "int_mm": ("torch_peers", "int_mm")},
    "argmax": {"torch": ("torch_peers", "torch_argmax")},
}


def answer(kind, **fields):
    print(json.dumps({"kind": kind, **fields}), file=ANSWERS, flush=True)


def one_line(error):
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]


def versions():
    """Of what there is, and why something isn't."""
    found = []
    for name in ("torch", "flashinfer"):
        try:
            found.append(f"{name} {importlib.import_module(name).__version__}")
        except Exception as error:
            found.append(f"{name} absent: {one_line(error)}")
    try:
        import torch

        found += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
    except Exception as error:
        print(one_line(error), file=sys.stderr)
    return found


def compile_kernels(names):
    """Each in a process of its own, all at once."""
    script = Path(__file__).with_name("flashinfer_peers.py")
    began = time.time()
    running = [(name, subprocess.Popen([sys.executable, str(script), name])) for name in names]
    for name, process in running:
        if process.wait() != 0:
            print(f"flashinfer: compiling {name} failed", file=sys.stderr)
    if names:
        print(f"flashinfer: compiled {' '.join(names)} in {time.time() - began:.0f} s", file=sys.stderr)


def free_memory():
    """The runner's own buffers need room too."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()


def time_cell(request):
    cell, problem = request["cell"], request["problem"]
    peers = PEERS.get(f"{problem['op']}/{problem.get('weights')}") or PEERS.get(problem["op"], {})
    for name, (module, function) in peers.items():
        if problem.get("kv", "bf16") != "bf16":
            continue
        began = time.time()
        try:
            call = getattr(importlib.import_module(module), function)
            times, mode, sets = call(problem, request)
            cold = request["cold_bytes"] > 0
            answer("time", cell=cell, by=name, mode=mode, sets=sets, cold=cold, times_us=times)
        except Exception as error:
            answer("failure", cell=cell, by=name, reason=one_line(error))
        if time.time() - began > SLOW_SECONDS:
            print(f"{cell} by {name}: {time.time() - began:.0f} s, loading and compiling included", file=sys.stderr)
        free_memory()


def time_ceilings():
    try:
        from torch_peers import ceilings

        for name, limit, per_second in ceilings():
            answer("ceiling", name=name, by="torch", limit=limit, per_second=per_second)
    except Exception as error:
        answer("failure", cell="ceilings", by="torch", reason=one_line(error))
    free_memory()


def main():
    arguments = sys.argv[1:]
    if arguments and arguments[0] == "--compile":
        compile_kernels(arguments[1:])
    elif arguments:
        sys.exit(f"peers.py: unknown argument '{arguments[0]}'; see its first lines")
    answer("ready", versions=versions())
    for line in sys.stdin:
        if not line.strip():
            continue
        request = json.loads(line)
        if request.get("ceilings"):
            time_ceilings()
        else:
            time_cell(request)
        answer("done")


if __name__ == "__main__":
    main()
