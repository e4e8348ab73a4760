//! 4-bit weights in the tiles of [`gemm_few::layout`](crate::gemm_few::layout) as a matrix of bf16 or f16: for products of so many rows that
//! converting the weights once and multiplying that (`gemm_sm90`) beats converting them for every tile of the output.
//!
//! ```text
//! block    a tile: 256 rows by 128 of k
//! thread   rows g and g + 8 by 8 of k at a time: 4 words in, 16 bytes out for each row; 8 lanes write a line of a row
//! ```
//!
//! An element is `(nibble - zero point) * scale`, exact in f32, rounded once. Bound by memory: half a byte in, two out.
//!
//! [`DEQUANTIZE_HALVES`] does so with 8 bits in halves ([`gemm_few::halves`](crate::gemm_few::halves)): the sum of an element's halves is as exact.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: all rows of a 64th, by the chunks of eight of its half of `k`.
pub const THREADS: u32 = 256;

/// Grid: `(tiles, 1, 1)`.
pub static DEQUANTIZE_INT4: KernelSpec = KernelSpec {
    name: "dequantize_int4",
    threads: THREADS,
    min_blocks: 2,
    shared_bytes: 0,
    allowance: None,
    starts_early: false,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};

/// As f16: where that has few bits (below 2^-14, for one), the element has as few. Grid: `(tiles, 1, 1)`.
pub static DEQUANTIZE_F16: KernelSpec = KernelSpec { name: "dequantize_int4_f16", ..DEQUANTIZE_INT4 };

/// Grid: `(tiles, 1, 1)`, of two halves each.
pub static DEQUANTIZE_HALVES: KernelSpec = KernelSpec { name: "dequantize_int4_halves", ..DEQUANTIZE_INT4 };
