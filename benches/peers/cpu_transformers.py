"""The demo model in Hugging Face transformers on the CPU, float32: what `cargo run --release -p tilewright --example cpu_speed` measures, as
`name value` lines. Two threads unless a number is given: `python3 benches/peers/cpu_transformers.py [THREADS]`.

Decode steps are timed twice: a bare loop over the model, which is the fastest way to drive it, and `generate`. Needs torch and transformers; let
nothing else run, for OpenMP's threads spin.
"""
import pathlib
import sys
import time

import torch
import transformers

torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
target = pathlib.Path(__file__).resolve().parents[2] / "models/demo/target"
model = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()


def ids(count):
    """The token ids that the example takes."""
    state, out = 12345, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out.append(1 + (state >> 8) % 4000)
    return torch.tensor([out])


def step(out):
    token = out.logits[:, -1].argmax(-1, keepdim=True)
    return model(token, past_key_values=out.past_key_values, use_cache=True)


def decode(prompt, new):
    """Seconds of the steps behind the first token."""
    out = model(ids(prompt), use_cache=True, logits_to_keep=1)
    begin = time.perf_counter()
    for _ in range(new - 1):
        out = step(out)
    out.logits[:, -1].argmax(-1)
    return time.perf_counter() - begin


def generate(prompt, new):
    mask = torch.ones(1, prompt, dtype=torch.long)
    begin = time.perf_counter()
    out = model.generate(
        ids(prompt), attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0
    )
    assert out.shape[1] == prompt + new
    return time.perf_counter() - begin


def prefill(count):
    begin = time.perf_counter()
    model(ids(count), use_cache=True, logits_to_keep=1).logits.argmax(-1)
    return time.perf_counter() - begin


with torch.inference_mode():
    decode(5, 32)
    print(f"decode_tok_s {127 / decode(5, 128):.2f}")
    generate(5, 32)
    print(f"generate_tok_s {128 / generate(5, 128):.2f}")
    prefill(1024)
    print(f"prefill1024_tok_s {1024 / prefill(1024):.2f}")
