//! `out = a * w^T (+ bias) (+ residual)` for Hopper, of bf16, of f16 or of bytes with scales, for many rows: copy engine, warpgroup products,
//! persistent blocks.
//!
//! A block owns `128 x BLOCK_N` of `out`, 64 rows a consumer warpgroup.
//!
//! ```text
//! producer    k0 | k1 | k2 | k3 | ... | next tile's k0 ...     a ring; waits for `empty`, the copies complete `full`
//! consumers   k0 | k1 | ...           | bias, residual, store  one line (128 bytes) of k a stage, four products; the stage before
//!                                                              is given back once its products are done
//! store       registers -> shared memory -> copy engine, half a tile at a time, under the next tile's products
//! ```
//!
//! Tiles are taken in bands of `band` tile rows, down the rows first, so that what the blocks share at a time stays in the L2. Every
//! tile shape adds the same steps of `k` in the same order. Shapes: any `m`, `n` a multiple of 8, `k` of 16 bytes.

use crate::abi::KernelSpec;

#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod consumer;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub mod kernel;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod producer;

/// Bytes of a line of a tile: what a stage holds of `k`.
pub const LINE_BYTES: u32 = 128;
/// Rows of `out` a block.
pub const BLOCK_M: u32 = 128;
/// Consumer warpgroups, 64 rows each.
pub const CONSUMERS: u32 = 2;
/// Stages of the ring.
pub const STAGES: u32 = 4;
/// Columns that a warpgroup stores at a time.
pub const STORE_COLS: u32 = 128;
/// Bytes of a box of the store: 64 rows of a line.
pub const STORE_BOX_BYTES: u32 = 64 * LINE_BYTES;
/// Bytes that a warpgroup's store takes.
const STORE_BYTES: u32 = STORE_COLS * 2 / LINE_BYTES * STORE_BOX_BYTES;

/// A tile's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Columns of `out` a block.
    pub block_n: u32,
}

/// For products that fill the device with large tiles.
pub const WIDE: Tile = Tile { block_n: 256 };
/// For those that don't.
pub const NARROW: Tile = Tile { block_n: 128 };

/// What a block keeps in shared memory, in bytes from its start.
impl Tile {
    /// Bytes of a stage: `a`'s lines, then `w`'s.
    pub const fn stage_bytes(self) -> u32 {
        (BLOCK_M + self.block_n) * LINE_BYTES
    }
    /// [`CONSUMERS`] places to store from.
    pub const fn s_store(self) -> u32 {
        STAGES * self.stage_bytes()
    }
    /// `full[STAGES]`: the stage has landed.
    pub const fn full(self) -> u32 {
        self.s_store() + CONSUMERS * STORE_BYTES
    }
    /// `empty[STAGES]`: all consumers have used the stage.
    pub const fn empty(self) -> u32 {
        self.full() + STAGES * 8
    }
    /// All of it.
    pub const fn shared_bytes(self) -> u32 {
        self.empty() + STAGES * 8
    }
}

/// bf16, 128 x 256.
pub static BF16_WIDE: KernelSpec = spec("gemm_sm90_bf16_128x256", WIDE);
/// bf16, 128 x 128.
pub static BF16_NARROW: KernelSpec = spec("gemm_sm90_bf16_128x128", NARROW);
/// f16, 128 x 256.
pub static F16_WIDE: KernelSpec = spec("gemm_sm90_f16_128x256", WIDE);
/// f16, 128 x 128.
pub static F16_NARROW: KernelSpec = spec("gemm_sm90_f16_128x128", NARROW);
/// Bytes, 128 x 256.
pub static INT8_WIDE: KernelSpec = spec("gemm_sm90_int8_128x256", WIDE);
/// Bytes, 128 x 128.
pub static INT8_NARROW: KernelSpec = spec("gemm_sm90_int8_128x128", NARROW);

const fn spec(name: &'static str, tile: Tile) -> KernelSpec {
    KernelSpec {
        name,
        threads: (CONSUMERS + 1) * 128,
        min_blocks: 1,
        shared_bytes: tile.shared_bytes(),
        allowance: None,
        starts_early: false,
        waits_in_row: false,
        cooperative: false,
        spreads: false,
    }
}

/// What the launcher decides.
#[cfg(not(target_arch = "nvptx64"))]
pub mod launch;
