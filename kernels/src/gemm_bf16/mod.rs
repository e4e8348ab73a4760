//! `out = a * w^T (+ bias) (+ residual)` in bf16 with f32 accumulation, on tensor cores.
//!
//! ```text
//! copies   k0 | k1 | k2 | k3 | ...        STAGES - 1 tiles ahead, one group of cp.async a tile of k
//! compute            | k0 | k1 | ...      wait for the tile, one barrier (it also frees the oldest stage), start the next copies
//! ```
//!
//! Every tile shape adds the same 16-wide steps of `k` in the same ascending order into the same f32 accumulator, and fills the
//! tail of `k` with zeros, so that an element has the same bits whichever shape computed it. Shapes: any `m` and `n`, `k` a
//! multiple of 8.

use crate::{abi::KernelSpec, tile::tile_bytes};

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// One tile shape.
#[derive(Debug, Clone, Copy)]
pub struct Tile {
    /// The entry.
    pub spec: &'static KernelSpec,
    /// Rows of `out` a block.
    pub block_m: u32,
    /// Columns of `out` a block.
    pub block_n: u32,
}

/// What a block keeps in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct SharedPlan<const BLOCK_M: u32, const BLOCK_N: u32, const BLOCK_K: u32, const STAGES: u32>;

impl<const BLOCK_M: u32, const BLOCK_N: u32, const BLOCK_K: u32, const STAGES: u32>
    SharedPlan<BLOCK_M, BLOCK_N, BLOCK_K, STAGES>
{
    /// `STAGES` tiles of `a`.
    pub const A: u32 = 0;
    /// `STAGES` tiles of `w`.
    pub const W: u32 = Self::A + STAGES * tile_bytes(BLOCK_M, BLOCK_K);
    /// All of it.
    pub const BYTES: u32 = Self::W + STAGES * tile_bytes(BLOCK_N, BLOCK_K);
}

/// For many rows: 8 warps of 64 x 32. Three stages are 48 KiB, what a block gets without asking.
pub static TILE_128X128: KernelSpec = KernelSpec {
    name: "gemm_bf16_128x128",
    threads: 256,
    min_blocks: 1,
    shared_bytes: SharedPlan::<128, 128, 32, 3>::BYTES,
    allowance: None,
    starts_early: false,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};

/// For products too small to fill the device with the larger tile: 4 warps of 32 x 32.
pub static TILE_64X64: KernelSpec = KernelSpec {
    name: "gemm_bf16_64x64",
    threads: 128,
    min_blocks: 2,
    shared_bytes: SharedPlan::<64, 64, 32, 4>::BYTES,
    allowance: None,
    starts_early: false,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};

/// For a decode step's few rows, bound by reading `w`: 4 warps of 16 x 16, longer steps of `k`.
pub static TILE_16X64: KernelSpec = KernelSpec {
    name: "gemm_bf16_16x64",
    threads: 128,
    min_blocks: 4,
    shared_bytes: SharedPlan::<16, 64, 64, 4>::BYTES,
    allowance: None,
    starts_early: false,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};

/// All shapes, the largest first. Grid of each: `(ceil(n / block_n), ceil(m / block_m), 1)`.
pub static TILES: [Tile; 3] = [
    Tile { spec: &TILE_128X128, block_m: 128, block_n: 128 },
    Tile { spec: &TILE_64X64, block_m: 64, block_n: 64 },
    Tile { spec: &TILE_16X64, block_m: 16, block_n: 64 },
];
