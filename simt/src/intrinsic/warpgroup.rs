//! Matrix products of a warpgroup: four whole warps from a multiple of four on.

use std::panic::Location;

use crate::context::{wait_in, wait_in_with};
use crate::lane::Collective;
pub use crate::wgmma::WgmmaType;
use crate::wgmma::{descriptor_words, pack};

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
    let operands = pack(ty, n, [accumulate, trans_a, trans_b], descriptor_words(a_desc), b_desc);
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
    let operands = pack(ty, n, [accumulate, false, trans_b], a, b_desc);
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
/// accumulators that the lane uses next; none if it is empty or wasn't in flight.
#[track_caller]
pub fn wgmma_wait(newest: u32, d: &mut [f32]) {
    wait_in_with(Collective::WgmmaWait, &[newest], d, Location::caller());
}
