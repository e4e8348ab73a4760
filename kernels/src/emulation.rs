//! Entries by name, for whoever launches them under the emulator from parameters that travel as bytes.

use bytemuck::pod_read_unaligned;

macro_rules! entries {
    ($($name:ident in $module:path: $params:ident,)*) => {
        /// The host-compiled entry called `name`. It takes the parameter block's bytes, and panics if there are too many or too few.
        ///
        /// What it returns must only be called under the emulator, which checks every access.
        pub fn entry(name: &str) -> Option<fn(params: &[u8])> {
            $(if name == stringify!($name) {
                return Some(|params| {
                    use $module as module;
                    // SAFETY: every access goes through the emulator, which faults on the bad ones.
                    unsafe { module::$name(pod_read_unaligned::<crate::abi::$params>(params)) }
                });
            })*
            None
        }
    };
}

entries! {
    gather_columns in crate::gather_columns::kernel: GatherColumns,
    gather_rows in crate::gather_rows::kernel: GatherRows,
    gelu in crate::gelu::kernel: Gelu,
    embed_sum in crate::embed_sum::kernel: EmbedSum,
    kv_widen_int8 in crate::kv_widen::kernel: KvWiden,
    kv_widen_fp8 in crate::kv_widen::kernel: KvWiden,
    page_copy in crate::page_copy::kernel: PageCopy,
    layer_norm in crate::layer_norm::kernel: LayerNorm,
    page_copy_out in crate::page_copy::kernel: PageCopy,
    page_copy_in in crate::page_copy::kernel: PageCopy,
    quantize_rows in crate::quantize_rows::kernel: QuantizeRows,
    rms_norm in crate::rms_norm::kernel: RmsNorm,
    rms_norm_int8 in crate::rms_norm::kernel: RmsNormInt8,
    rope_append in crate::rope_append::kernel: RopeAppend,
    rope_append_int8 in crate::rope_append::kernel: RopeAppend,
    rope_append_fp8 in crate::rope_append::kernel: RopeAppend,
    dequantize_int4_halves in crate::dequantize_int4::kernel: DequantizeInt4,
    dequantize_int4 in crate::dequantize_int4::kernel: DequantizeInt4,
    silu_mul in crate::silu_mul::kernel: SiluMul,
    attention_prefill_hd64 in crate::attention_prefill::kernel: AttentionPrefill,
    attention_prefill_hd96 in crate::attention_prefill::kernel: AttentionPrefill,
    attention_prefill_hd128 in crate::attention_prefill::kernel: AttentionPrefill,
    attention_prefill_sm90_hd64 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd64_f16 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd64_short in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd64_short_f16 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd128 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd96 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd96_f16 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd192 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd192_f16 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd256 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd256_f16 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_prefill_sm90_hd128_f16 in crate::attention_prefill_sm90::kernel: AttentionPrefillSm90,
    attention_decode_bf16_hd64_rows8 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_bf16_hd64_rows16 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_bf16_hd128_rows8 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_bf16_hd128_rows16 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_int8_hd64_rows8 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_int8_hd64_rows16 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_int8_hd128_rows8 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_int8_hd128_rows16 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_fp8_hd64_rows8 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_fp8_hd64_rows16 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_fp8_hd128_rows8 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_fp8_hd128_rows16 in crate::attention_decode::kernel: AttentionDecode,
    attention_decode_append_hd64 in crate::attention_decode::kernel: AttentionDecodeAppend,
    attention_decode_append_hd128 in crate::attention_decode::kernel: AttentionDecodeAppend,
    attention_prefill_hd192 in crate::attention_prefill::kernel: AttentionPrefill,
    attention_prefill_hd256 in crate::attention_prefill::kernel: AttentionPrefill,
    attention_prefill_hd64_f16 in crate::attention_prefill::kernel: AttentionPrefill,
    attention_prefill_hd96_f16 in crate::attention_prefill::kernel: AttentionPrefill,
    attention_prefill_hd128_f16 in crate::attention_prefill::kernel: AttentionPrefill,
    attention_prefill_hd192_f16 in crate::attention_prefill::kernel: AttentionPrefill,
    attention_prefill_hd256_f16 in crate::attention_prefill::kernel: AttentionPrefill,
    gemm_bf16_128x128 in crate::gemm_bf16::kernel: Gemm,
    gemm_bf16_64x64 in crate::gemm_bf16::kernel: Gemm,
    gemm_bf16_16x64 in crate::gemm_bf16::kernel: Gemm,
    gemm_sm90_bf16_128x256 in crate::gemm_sm90::kernel: GemmSm90,
    gemm_sm90_bf16_128x128 in crate::gemm_sm90::kernel: GemmSm90,
    gemm_sm90_int8_128x256 in crate::gemm_sm90::kernel: GemmSm90,
    gemm_sm90_int8_128x128 in crate::gemm_sm90::kernel: GemmSm90,
    gemm_few_bf16_8 in crate::gemm_few::kernel: GemmFew,
    gemm_few_bf16_16 in crate::gemm_few::kernel: GemmFew,
    gemm_few_bf16_32 in crate::gemm_few::kernel: GemmFew,
    gemm_few_bf16_64 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int8_8 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int8_16 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int8_32 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int8_64 in crate::gemm_few::kernel: GemmFew,
    gemm_few_bf16_128 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g128_8 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g128_16 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g128_32 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g128_64 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g128_128 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g64_8 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g64_16 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g64_128 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g32_8 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g32_16 in crate::gemm_few::kernel: GemmFew,
    gemm_few_int4_g32_128 in crate::gemm_few::kernel: GemmFew,
    gemm_whole_int4_g128 in crate::gemm_whole::kernel: GemmWhole,
    gemm_whole_chain_int4_g128 in crate::gemm_whole::kernel: GemmChain,
    gemm_whole_int4_g64 in crate::gemm_whole::kernel: GemmWhole,
    gemm_whole_chain_int4_g64 in crate::gemm_whole::kernel: GemmChain,
    gemm_whole_int4_g32 in crate::gemm_whole::kernel: GemmWhole,
    gemm_whole_chain_int4_g32 in crate::gemm_whole::kernel: GemmChain,
    sample in crate::sample::kernel: Sample,
    adjust_logits in crate::adjust_logits::kernel: AdjustLogits,
    argmax in crate::argmax::kernel: Argmax,
}
