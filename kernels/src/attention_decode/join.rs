//! From the warps' parts to the output: the merge within a block, and the join of a sequence's chunks by whoever finishes last.

use super::{SharedPlan, THREADS, WARPS, item::Item, softmax::Softmax, split::MAX_CHUNKS};
use crate::{
    abi::{AttentionDecode, KV_BF16},
    ptx,
};

/// Chunks whose outputs a lane of the join has on their way at once: 64 chunks take eight round trips to L2.
const JOIN_AHEAD: usize = 8;
/// Chunks whose sums a lane of the join holds.
const LANE_CHUNKS: usize = MAX_CHUNKS as usize / 32;

/// Part of a row's output, unnormalised, under the largest score of the whole row.
#[derive(Clone, Copy)]
struct Part<const DIMS: usize> {
    sum: f32,
    out: [f32; DIMS],
}

impl<const DIMS: usize> Part<DIMS> {
    const NOTHING: Self = Part { sum: 0.0, out: [0.0; DIMS] };

    #[inline(always)]
    fn add(&mut self, weight: f32, sum: f32, out: [f32; DIMS]) {
        self.sum = ptx::fma(weight, sum, self.sum);
        for i in 0..DIMS {
            self.out[i] = ptx::fma(weight, out[i], self.out[i]);
        }
    }

    /// Normalised; zeros for a row that saw no key.
    #[inline(always)]
    fn normal(&self) -> [f32; DIMS] {
        let inverse = if self.sum == 0.0 { 0.0 } else { 1.0 / self.sum };
        self.out.map(|out| out * inverse)
    }
}

/// What a part under the maximum `max` weighs where the whole's is `whole`. Parts that saw no key are zeros under -inf, and so is
/// the whole if none saw any; -inf less -inf would be NaN.
#[inline(always)]
fn weight(max: f32, whole: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { ptx::ex2(max - whole) }
}

/// Byte offset of an element in a warp's part of the merge. Rows are as long as all banks, or twice; the four rows that the lanes
/// of a quad write together are turned by eight banks each. Four dims stay side by side.
#[inline(always)]
const fn merge_at(head_dim: u32, row: u32, dim: u32) -> u32 {
    (row * head_dim + (dim ^ (row >> 1 & 3) << 3)) * 4
}

/// Leaves a warp's outputs at `stage` of its ring, its maxima and sums beside the rings; rows below `rows` alone.
///
/// # Safety
/// The whole warp calls it; the stage is neither read nor on its way, and nobody reads the warp's last maxima and sums.
#[inline(always)]
pub(super) unsafe fn share<const FORMAT: u32, const STEPS: usize, const ROWS8: usize>(
    plan: &SharedPlan,
    stage: u32,
    rows: u32,
    softmax: &Softmax<STEPS, ROWS8>,
) {
    let tid = ptx::tid_x_anew();
    let (warp, lane) = (tid / 32, tid % 32);
    let (g, t) = (lane / 4, lane % 4);
    let s_part = ptx::shared_base() + warp * plan.ring_bytes() + stage;
    let s_sums = ptx::shared_base() + plan.merge_sums() + warp * plan.rows * 8;
    let mut sums = [[0.0; 2]; ROWS8];
    for n in 0..ROWS8 {
        for e in 0..2 {
            // SAFETY: the warp is whole.
            sums[n][e] = unsafe { softmax.total(n, e) };
        }
    }
    // SAFETY: each lane writes its own words of the warp's part.
    unsafe {
        if lane == 0 {
            ptx::st_shared_b32(ptx::shared_base() + plan.merge_stages() + warp * 4, stage);
        }
        for n in 0..ROWS8 {
            for e in 0..2 {
                let row = n as u32 * 8 + 2 * t + e as u32;
                if row < rows {
                    if g == 0 {
                        let pair = [softmax.max[n][e].to_bits(), sums[n][e].to_bits()];
                        ptx::st_shared_v2_b32(s_sums + row * 8, pair);
                    }
                    for d in 0..STEPS {
                        let (out, dim) = (&softmax.out[d][n], d as u32 * 16);
                        let pair = [out[e].to_bits(), out[2 + e].to_bits()];
                        let at = |dim| s_part + merge_at(plan.head_dim, row, dim);
                        if FORMAT == KV_BF16 {
                            ptx::st_shared_b32(at(dim + g), pair[0]);
                            ptx::st_shared_b32(at(dim + g + 8), pair[1]);
                        } else {
                            ptx::st_shared_v2_b32(at(dim + 2 * g), pair);
                        }
                    }
                }
            }
        }
    }
}

/// Merges the warps, in ascending order, four dims of a row a thread. The only chunk of a sequence goes to the output, others to
/// the scratch.
///
/// # Safety
/// The whole block calls it, after [`share`] and a barrier.
#[inline(always)]
pub(super) unsafe fn merge_warps(p: &AttentionDecode, plan: &SharedPlan, item: &Item) {
    let (base, pieces) = (ptx::shared_base(), plan.head_dim / 4);
    let mut index = ptx::tid_x_anew();
    while index < item.rows * pieces {
        let (row, dim) = (index / pieces, index % pieces * 4);
        let mut sums = [[f32::NEG_INFINITY, 0.0]; WARPS as usize];
        let mut max = f32::NEG_INFINITY;
        let mut whole = Part::<4>::NOTHING;
        // SAFETY: written by `share`; the unit's own slot of the scratch, the item's own row of the output.
        unsafe {
            for w in 0..WARPS {
                let pair = ptx::ld_shared_v2_b32(base + plan.merge_sums() + (w * plan.rows + row) * 8);
                sums[w as usize] = pair.map(f32::from_bits);
                max = ptx::max(max, sums[w as usize][0]);
            }
            for w in 0..WARPS {
                let stage = w * plan.ring_bytes() + ptx::ld_shared_b32(base + plan.merge_stages() + w * 4);
                let out = ptx::ld_shared_v4_b32(base + stage + merge_at(plan.head_dim, row, dim));
                let [warp_max, sum] = sums[w as usize];
                whole.add(weight(warp_max, max), sum, out.map(f32::from_bits));
            }
            if item.chunks == 1 {
                let out = whole.normal();
                let at = p.out + (item.head(p, row) * u64::from(plan.head_dim) + u64::from(dim)) * 2;
                let pairs = [ptx::pack_bf16(out[0], out[1]), ptx::pack_bf16(out[2], out[3])];
                ptx::st_global_v2_b32(at, pairs);
            } else {
                let slot = item.slot(item.chunk) * u64::from(plan.rows) + u64::from(row);
                let at = p.partial_out + (slot * u64::from(plan.head_dim) + u64::from(dim)) * 4;
                ptx::st_global_v4_b32(at, whole.out.map(f32::to_bits));
                if dim == 0 {
                    ptx::st_global_v2_b32(p.partial_sums + slot * 8, [max.to_bits(), whole.sum.to_bits()]);
                }
            }
        }
        index += THREADS;
    }
}

/// The largest over the warp.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn warp_max(value: f32) -> f32 {
    let mut max = value;
    for shift in 0..5 {
        // SAFETY: the warp is whole.
        max = ptx::max(max, unsafe { ptx::shfl_bfly_f32(max, 1 << shift) });
    }
    max
}

/// A lane's `DIMS` dims of a row of the scratch.
///
/// # Safety
/// The address is one of the scratch, written before.
#[inline(always)]
unsafe fn load_dims<const DIMS: usize>(address: u64) -> [f32; DIMS] {
    let mut dims = [0.0; DIMS];
    // SAFETY: the caller's promise. Not by way of the read-only cache: it was written in this launch.
    unsafe {
        if DIMS == 4 {
            let v = ptx::ld_global_v4_b32(address);
            for i in 0..DIMS {
                dims[i] = f32::from_bits(v[i]);
            }
        } else {
            let v = ptx::ld_global_v2_b32(address);
            for i in 0..DIMS {
                dims[i] = f32::from_bits(v[i]);
            }
        }
    }
    dims
}

/// Joins the chunks that the blocks left in the scratch, in ascending order, into the output: a row a warp, `DIMS` dims a lane.
///
/// # Safety
/// The whole block calls it, after all of the rows' chunks have been written and that has been acquired.
#[inline(always)]
pub(super) unsafe fn join_chunks<const DIMS: usize>(p: &AttentionDecode, plan: &SharedPlan, item: &Item) {
    const { assert!(DIMS == 2 || DIMS == 4) };
    let tid = ptx::tid_x_anew();
    let (mut row, lane) = (tid / 32, tid % 32);
    let dim = lane * DIMS as u32;
    while row < item.rows {
        let slot = |chunk: u32| item.slot(item.first_chunk + chunk) * u64::from(plan.rows) + u64::from(row);
        let mut sums = [[f32::NEG_INFINITY, 0.0]; LANE_CHUNKS];
        let mut max = f32::NEG_INFINITY;
        let mut whole = Part::<DIMS>::NOTHING;
        // SAFETY: the warp is whole, and walks the chunks together; the item's own row of the output.
        unsafe {
            for i in 0..LANE_CHUNKS {
                let chunk = lane + i as u32 * 32;
                if chunk < item.chunks {
                    sums[i] = ptx::ld_global_v2_b32(p.partial_sums + slot(chunk) * 8).map(f32::from_bits);
                }
                max = ptx::max(max, sums[i][0]);
            }
            let max = warp_max(max);
            let weights = sums.map(|[own, _]| weight(own, max));
            let mut first = 0;
            while first < item.chunks {
                let mut outs = [[0.0; DIMS]; JOIN_AHEAD];
                for i in 0..JOIN_AHEAD {
                    // Past the last chunk the last again, at no weight.
                    let chunk = (first + i as u32).min(item.chunks - 1);
                    let at = slot(chunk) * u64::from(plan.head_dim) + u64::from(dim);
                    outs[i] = load_dims::<DIMS>(p.partial_out + at * 4);
                }
                for i in 0..JOIN_AHEAD {
                    let chunk = first + i as u32;
                    let (mut weight, mut sum) = (weights[0], sums[0][1]);
                    for j in 1..LANE_CHUNKS {
                        if chunk >= j as u32 * 32 {
                            (weight, sum) = (weights[j], sums[j][1]);
                        }
                    }
                    let weight = f32::from_bits(ptx::shfl_idx(weight.to_bits(), chunk % 32));
                    let sum = f32::from_bits(ptx::shfl_idx(sum.to_bits(), chunk % 32));
                    if chunk < item.chunks {
                        whole.add(weight, sum, outs[i]);
                    }
                }
                first += JOIN_AHEAD as u32;
            }
            let out = whole.normal();
            let at = p.out + (item.head(p, row) * u64::from(plan.head_dim) + u64::from(dim)) * 2;
            for i in 0..DIMS / 2 {
                ptx::st_global_b32(at + i as u64 * 4, ptx::pack_bf16(out[2 * i], out[2 * i + 1]));
            }
        }
        row += WARPS;
    }
}

#[cfg(all(test, not(target_arch = "nvptx64")))]
mod tests {
    use super::merge_at;

    #[test]
    fn parts_are_a_bijection_without_bank_conflicts() {
        for head_dim in [64, 128] {
            let mut seen = vec![false; 16 * head_dim as usize];
            for row in 0..16 {
                for dim in 0..head_dim {
                    let at = merge_at(head_dim, row, dim);
                    assert!(!std::mem::replace(&mut seen[at as usize / 4], true));
                    assert_eq!(at, merge_at(head_dim, row, dim / 4 * 4) + dim % 4 * 4, "four dims together");
                }
            }
            for first_row in [0, 1, 8, 9] {
                let mut banks = [false; 32];
                for lane in 0..32 {
                    let at = merge_at(head_dim, first_row + lane % 4 * 2, 16 + lane / 4);
                    assert!(!std::mem::replace(&mut banks[at as usize / 4 % 32], true), "lanes of a store");
                }
            }
        }
    }
}
