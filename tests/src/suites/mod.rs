//! One suite a kernel.

mod adjust_logits;
mod argmax;
mod attention;
mod attention_decode;
mod attention_decode_append;
mod attention_decode_case;
mod attention_layout;
mod attention_prefill;
mod attention_prefill_sm90;
mod causal_softmax;
mod dequantize_int4;
mod dequantize_int4_halves;
mod embed_sum;
mod gather_columns;
mod gather_rows;
mod gelu;
mod gemm_bf16;
mod gemm_few;
mod gemm_sm90;
mod gemm_whole;
mod half;
mod kv_widen;
mod layer_norm;
mod page_copy;
mod quantize_rows;
mod rms_norm;
mod rope_append;
mod rotation;
mod sample;
mod silu_mul;
mod wider;

use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_reference::Mismatch;

use crate::runner::Suite;

/// Every suite, the slowest first.
pub fn all<D: Driver>() -> Vec<Suite<D>> {
    vec![
        Suite::of::<gemm_bf16::GemmBf16>(),
        Suite::of::<gemm_sm90::GemmSm90>(),
        Suite::of::<gemm_few::GemmFew>(),
        Suite::of::<gemm_whole::Chains>(),
        Suite::of::<attention_prefill::AttentionPrefill>(),
        Suite::of::<attention_prefill_sm90::AttentionPrefillSm90>(),
        Suite::of::<attention_decode::AttentionDecode>(),
        Suite::of::<attention_decode_append::AttentionDecodeAppend>(),
        Suite::of::<sample::Sample>(),
        Suite::of::<argmax::Argmax>(),
        Suite::of::<adjust_logits::AdjustLogits>(),
        Suite::of::<rope_append::RopeAppend>(),
        Suite::of::<kv_widen::KvWiden>(),
        Suite::of::<page_copy::PageCopy>(),
        Suite::of::<rms_norm::RmsNorm>(),
        Suite::of::<quantize_rows::QuantizeRows>(),
        Suite::of::<layer_norm::LayerNorm>(),
        Suite::of::<silu_mul::SiluMul>(),
        Suite::of::<gelu::Gelu>(),
        Suite::of::<causal_softmax::CausalSoftmax>(),
        Suite::of::<embed_sum::EmbedSum>(),
        Suite::of::<dequantize_int4::DequantizeInt4>(),
        Suite::of::<dequantize_int4_halves::DequantizeHalves>(),
        Suite::of::<gather_columns::GatherColumns>(),
        Suite::of::<gather_rows::GatherRows>(),
    ]
}

/// A size in `1..=most`, often at a multiple of `tile` or one beside it, or a prime.
fn sizes(tile: usize, most: usize) -> BoxedStrategy<usize> {
    let mut special = vec![1, 2, 3, 5, 7, 13, 31, 61, 127];
    for multiple in 1..=most.div_ceil(tile) {
        special.extend([multiple * tile - 1, multiple * tile, multiple * tile + 1]);
    }
    special.retain(|&size| (1..=most).contains(&size));
    special.sort_unstable();
    special.dedup();
    prop_oneof![2 => select(special), 1 => 1..=most].boxed()
}

/// As [`sizes`], of multiples of eight, counted in eights.
fn eights(tile: usize, most: usize) -> BoxedStrategy<usize> {
    sizes(tile / 8, most / 8).prop_map(|eights| eights * 8).boxed()
}

fn mismatch(mismatch: Mismatch) -> String {
    mismatch.to_string()
}
