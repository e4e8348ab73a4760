//! Device code of tilewright: kernels in Rust, the parameters they are launched with and the PTX made of them.
//!
//! The same source has three lives. For `nvptx64` it is compiled to PTX ([`ptx`] holds the only assembly). On the host it
//! offers [`abi`], which launchers read. On the host with the feature `emulation` the device code is compiled too, each
//! intrinsic answered by the `simt` crate, so that a kernel can be run and checked without a GPU.
// Arrays that live in registers are indexed by the counters of unrolled loops, several arrays by one counter.
#![allow(clippy::needless_range_loop)]
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, stdarch_nvptx, asm_experimental_arch))]

pub mod abi;
pub mod adjust_logits;
pub mod argmax;
pub mod attention_decode;
pub mod attention_prefill;
pub mod attention_prefill_sm90;
pub mod causal_softmax;
pub mod dequantize_int4;
pub mod embed_sum;
pub mod gather_columns;
pub mod gather_rows;
pub mod gelu;
pub mod gemm_bf16;
pub mod gemm_few;
pub mod gemm_sm90;
pub mod gemm_whole;
pub mod kv_widen;
pub mod layer_norm;
#[cfg(not(target_arch = "nvptx64"))]
pub mod module;
pub mod page_copy;
pub mod quantize_rows;
pub mod rms_norm;
pub mod rope_append;
pub mod sample;
pub mod silu_mul;
pub mod tile;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod attention_tile;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod element;
#[cfg(all(feature = "emulation", not(target_arch = "nvptx64")))]
pub mod emulation;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod entry;
#[cfg(any(target_arch = "nvptx64", feature = "emulation", test))]
mod logit;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod ptx;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod quant;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod reduce;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod vector;

/// The entries of every module.
pub static KERNELS: &[&abi::KernelSpec] = &[
    &adjust_logits::ADJUST_LOGITS,
    &argmax::ARGMAX,
    &attention_decode::VARIANTS[0].spec,
    &attention_decode::VARIANTS[1].spec,
    &attention_decode::VARIANTS[2].spec,
    &attention_decode::VARIANTS[3].spec,
    &attention_decode::VARIANTS[4].spec,
    &attention_decode::VARIANTS[5].spec,
    &attention_decode::VARIANTS[6].spec,
    &attention_decode::VARIANTS[7].spec,
    &attention_decode::VARIANTS[8].spec,
    &attention_decode::VARIANTS[9].spec,
    &attention_decode::VARIANTS[10].spec,
    &attention_decode::VARIANTS[11].spec,
    &attention_decode::APPENDING[0].spec,
    &attention_decode::APPENDING[1].spec,
    &attention_prefill::HD64,
    &attention_prefill::HD96,
    &attention_prefill::HD128,
    &attention_prefill::HD192,
    &attention_prefill::HD256,
    &attention_prefill::HD64_F16,
    &attention_prefill::HD96_F16,
    &attention_prefill::HD128_F16,
    &attention_prefill::HD192_F16,
    &attention_prefill::HD256_F16,
    &causal_softmax::CAUSAL_SOFTMAX,
    &embed_sum::EMBED_SUM,
    &gather_rows::GATHER_ROWS,
    &gelu::GELU,
    &gemm_bf16::TILE_128X128,
    &gemm_bf16::TILE_64X64,
    &gemm_bf16::TILE_16X64,
    &kv_widen::INT8,
    &kv_widen::FP8,
    &layer_norm::LAYER_NORM,
    &page_copy::PAGE_COPY,
    &page_copy::PAGE_COPY_OUT,
    &page_copy::PAGE_COPY_IN,
    &quantize_rows::QUANTIZE_ROWS,
    &rms_norm::RMS_NORM,
    &rms_norm::RMS_NORM_INT8,
    &rope_append::BF16,
    &rope_append::INT8,
    &rope_append::FP8,
    &sample::SAMPLE,
    &silu_mul::SILU_MUL,
    &dequantize_int4::DEQUANTIZE_INT4,
    &dequantize_int4::DEQUANTIZE_F16,
    &dequantize_int4::DEQUANTIZE_HALVES,
];

/// The further entries of the module for compute capability 9.0.
pub static KERNELS_SM90A: &[&abi::KernelSpec] = &[
    &attention_prefill_sm90::HD64,
    &attention_prefill_sm90::HD64_SHORT,
    &attention_prefill_sm90::HD96,
    &attention_prefill_sm90::HD128,
    &attention_prefill_sm90::HD192,
    &attention_prefill_sm90::HD256,
    &attention_prefill_sm90::HD64_F16,
    &attention_prefill_sm90::HD64_SHORT_F16,
    &attention_prefill_sm90::HD96_F16,
    &attention_prefill_sm90::HD128_F16,
    &attention_prefill_sm90::HD192_F16,
    &attention_prefill_sm90::HD256_F16,
    &gather_columns::GATHER_COLUMNS,
    &gemm_sm90::BF16_WIDE,
    &gemm_sm90::BF16_NARROW,
    &gemm_sm90::F16_WIDE,
    &gemm_sm90::F16_NARROW,
    &gemm_sm90::INT8_WIDE,
    &gemm_sm90::INT8_NARROW,
    &gemm_few::VARIANTS[0].spec,
    &gemm_few::VARIANTS[1].spec,
    &gemm_few::VARIANTS[2].spec,
    &gemm_few::VARIANTS[3].spec,
    &gemm_few::VARIANTS[4].spec,
    &gemm_few::VARIANTS[5].spec,
    &gemm_few::VARIANTS[6].spec,
    &gemm_few::VARIANTS[7].spec,
    &gemm_few::VARIANTS[8].spec,
    &gemm_few::VARIANTS[9].spec,
    &gemm_few::VARIANTS[10].spec,
    &gemm_few::VARIANTS[11].spec,
    &gemm_few::VARIANTS[12].spec,
    &gemm_few::VARIANTS[13].spec,
    &gemm_few::VARIANTS[14].spec,
    &gemm_few::VARIANTS[15].spec,
    &gemm_few::VARIANTS[16].spec,
    &gemm_few::VARIANTS[17].spec,
    &gemm_few::VARIANTS[18].spec,
    &gemm_few::VARIANTS[19].spec,
    &gemm_few::VARIANTS[20].spec,
    &gemm_few::VARIANTS[21].spec,
    &gemm_few::VARIANTS[22].spec,
    &gemm_few::VARIANTS[23].spec,
    &gemm_few::VARIANTS[24].spec,
    &gemm_few::VARIANTS[25].spec,
    &gemm_few::VARIANTS[26].spec,
    &gemm_few::VARIANTS[27].spec,
    &gemm_few::VARIANTS[28].spec,
    &gemm_few::VARIANTS[29].spec,
    &gemm_few::VARIANTS[30].spec,
    &gemm_few::VARIANTS[31].spec,
    &gemm_few::VARIANTS[32].spec,
    &gemm_whole::VARIANTS[0].one,
    &gemm_whole::VARIANTS[0].half,
    &gemm_whole::CHAINS[0],
    &gemm_whole::VARIANTS[1].one,
    &gemm_whole::VARIANTS[1].half,
    &gemm_whole::CHAINS[1],
    &gemm_whole::VARIANTS[2].one,
    &gemm_whole::VARIANTS[2].half,
    &gemm_whole::CHAINS[2],
    &gemm_whole::VARIANTS[3].one,
    &gemm_whole::VARIANTS[3].half,
    &gemm_whole::VARIANTS[4].one,
    &gemm_whole::VARIANTS[4].half,
    &gemm_whole::VARIANTS[5].one,
    &gemm_whole::VARIANTS[5].half,
    &gemm_whole::BF16,
];

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: `trap` ends the grid; nothing runs after it.
    unsafe { core::arch::nvptx::trap() }
}
