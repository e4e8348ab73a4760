//! Matrix products of a warpgroup: four whole warps from a multiple of four on.

use std::panic::Location;

pub use crate::accumulators::Accumulator;
use crate::context::{wait_in, wait_in_with};
use crate::lane::Collective;
use crate::matrix::Factors;
use crate::operands::{descriptor_words, pack};
pub use crate::wgmma::WgmmaType;

/// `wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{ty}.{ty}`, both operands in shared memory: starts `d = a * b`, or `d += a * b`
/// if `accumulate`.
///
/// # Shapes
/// A is 64 x 16, B is 16 x `n`, `n` a multiple of 8 from 8 to 256. `d` has `n / 2` registers a lane; register `4 j + i` of lane
/// `l` of warp `w` of the group is row `16 w + l / 4 + 8 (i / 2)`, column `8 j + 2 (l % 4) + i % 2`. Operands are K-major, or
/// MN-major where transposed; descriptors as in the PTX ISA.
///
/// Until [`wgmma_wait`] gives them back, the registers hold NaNs, and what was read from shared memory may not be written.
/// Products are exact and summed in f64 in ascending order of k; `d` is added and the result rounded once to f32.
#[track_caller]
#[allow(clippy::too_many_arguments)]
pub fn wgmma_ss(
    ty: WgmmaType,
    n: u32,
    d: &mut [f32],
    a_desc: u64,
    b_desc: u64,
    accumulate: bool,
    trans_a: bool,
    trans_b: bool,
) {
    let operands =
        pack(Factors::Float(ty), n, [accumulate, trans_a, trans_b], descriptor_words(a_desc), b_desc);
    wait_in_with(Collective::Wgmma { registers: false }, &operands, d, Location::caller());
}

/// As [`wgmma_ss`], with each warp's 16 rows of A in registers as `mma.m16n8k16` has them.
#[track_caller]
pub fn wgmma_rs(
    ty: WgmmaType,
    n: u32,
    d: &mut [f32],
    a: [u32; 4],
    b_desc: u64,
    accumulate: bool,
    trans_b: bool,
) {
    let operands = pack(Factors::Float(ty), n, [accumulate, false, trans_b], a, b_desc);
    wait_in_with(Collective::Wgmma { registers: true }, &operands, d, Location::caller());
}

/// `wgmma.mma_async.sync.aligned.m64n{n}k32.s32.s8.s8`, both operands in shared memory: starts `d = a * b`, or `d += a * b` if
/// `accumulate`, modulo 2^32.
///
/// # Shapes
/// A is 64 x 32, B is 32 x `n`, `n` 8, 24 or a multiple of 16 up to 256; both K-major. `d` as in [`wgmma_ss`].
///
/// Integers have no NaNs: until [`wgmma_wait`] gives them back, the registers hold numbers of about 2.14e9 that name the
/// product. A use of them is told when the next product or wait, or the warp's end, misses them; so each product's
/// accumulators have to be taken by a wait, even if nobody wants them.
#[track_caller]
pub fn wgmma_s8_ss(n: u32, d: &mut [i32], a_desc: u64, b_desc: u64, accumulate: bool) {
    let operands = pack(Factors::S8, n, [accumulate, false, false], descriptor_words(a_desc), b_desc);
    wait_in_with(Collective::Wgmma { registers: false }, &operands, d, Location::caller());
}

/// As [`wgmma_s8_ss`], with each warp's 16 rows of A in registers as `mma.m16n8k32` has them.
#[track_caller]
pub fn wgmma_s8_rs(n: u32, d: &mut [i32], a: [u32; 4], b_desc: u64, accumulate: bool) {
    let operands = pack(Factors::S8, n, [accumulate, false, false], a, b_desc);
    wait_in_with(Collective::Wgmma { registers: true }, &operands, d, Location::caller());
}

/// `wgmma.fence.sync.aligned`: has to follow what the warp does to registers before `wgmma` uses them.
#[track_caller]
pub fn wgmma_fence() {
    wait_in(Collective::WgmmaFence, &[], Location::caller());
}

/// `wgmma.commit_group.sync.aligned`: closes the group of the products issued since the last one.
#[track_caller]
pub fn wgmma_commit() {
    wait_in(Collective::WgmmaCommit, &[], Location::caller());
}

/// `wgmma.wait_group.sync.aligned`: waits until at most the `newest` newest groups are in flight, and gives back `d`, the
/// accumulators, f32 or i32, that the lane uses next; none if it is empty or wasn't in flight.
#[track_caller]
pub fn wgmma_wait<T: Accumulator>(newest: u32, d: &mut [T]) {
    wait_in_with(Collective::WgmmaWait, &[newest, u32::from(T::INTEGER)], d, Location::caller());
}
