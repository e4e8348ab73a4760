//! Attention that writes its scores down, of the device's products and softmax, beside the attention of its own: as the ladder measures both.

use tilewright::ladder::{AttentionErrors, AttentionShape, attention_on};
use tilewright_host::gpu::GpuDevice;
use tilewright_tests::emulated::Emulated;

use super::setup::{gpu, hopper};

/// What is off, and the kernels that were launched, each once.
fn compare(device: &GpuDevice<Emulated>, shape: AttentionShape) -> (AttentionErrors, Vec<&'static str>) {
    let found = attention_on(device, shape, 1).expect("both ways");
    // What is counted is what each way makes beside its outputs: the scores of all heads, and nothing.
    assert_eq!(found.peak_bytes, Some([2 * shape.q_heads * shape.tokens * shape.tokens, 0]));
    let rung = found.rung();
    assert!(rung.measured.is_some_and(|times| times > 0.0), "{rung:?}");
    let mut kernels: Vec<_> =
        device.driver().take_launched().iter().map(|launched| launched.kernel).collect();
    kernels.retain(|name| ["attention", "causal", "gemm"].iter().any(|family| name.starts_with(family)));
    kernels.sort_unstable();
    kernels.dedup();
    (found.errors, kernels)
}

#[test]
fn scores_written_down_and_tiles_agree_within_rounding() {
    for (device, own, product) in [
        (gpu(), "attention_prefill_hd", "gemm_bf16_"),
        (hopper(), "attention_prefill_sm90_hd", "gemm_sm90_bf16_"),
    ] {
        for (tokens, q_heads, kv_heads, head_dim) in [(136, 3, 1, 64), (72, 2, 2, 128)] {
            let shape = AttentionShape { tokens, q_heads, kv_heads, head_dim };
            let (AttentionErrors { worst, largest, apart, .. }, kernels) = compare(&device, shape);
            println!("{tokens} tokens: errors {worst:?} of {largest}, {apart} apart: {kernels:?}");
            assert!(kernels.iter().any(|name| name.starts_with(own)), "{kernels:?}");
            assert!(kernels.contains(&"causal_softmax"), "{kernels:?}");
            assert!(
                kernels.iter().filter(|name| name.starts_with("gemm")).all(|name| name.starts_with(product))
            );
            // Outputs of about 2 are rounded by 2^-8, and so are scores of up to 4 before their exponential is taken.
            assert!(largest > 1.0 && worst.iter().all(|worst| *worst < 0.03), "{worst:?}");
            assert!(worst[1] <= 2.0 * worst[0], "tiles are as exact: {worst:?}");
            assert!(apart < 0.05);
        }
    }
}
