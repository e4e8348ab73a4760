//! From the warps' sums to the output.

use super::{Plan, SUM_BYTES, WARPS, weights::Part};
use crate::{
    abi::GemmWhole,
    element::Element,
    gemm_few::{
        exchange::NOTHING,
        finish::{Output, residual_of, store_eights},
        layout,
    },
    ptx,
};

/// Sums of a lane: 16 rows by eight tokens.
pub(super) const SUMS: usize = 4;
/// Splits that are read together: half of the most that there are.
const AT_ONCE: u32 = WARPS / 2;

/// Where results go.
#[inline(always)]
fn output(p: &GemmWhole, mail: u64) -> Output {
    Output {
        bias: p.bias,
        residual: p.residual,
        out: p.out,
        a_scales: 0,
        w_scales: 0,
        m: p.m,
        n: p.n,
        out_stride: p.out_stride,
        out_f32: p.out_f32 != 0,
        silu: p.silu != 0,
        mail,
    }
}

/// What a warp stores: 16 rows, or none.
#[derive(Clone, Copy)]
pub(super) struct End {
    row: u32,
    is_there: bool,
    residual: [u32; 2],
}

impl End {
    /// Its residual is on its way from here on: behind all weights it would come from memory when everyone waits for it.
    ///
    /// # Safety
    /// The whole warp calls it, when what is added may be read.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) unsafe fn new(p: &GemmWhole, part: Part) -> End {
        let warp = ptx::tid_x() / 32;
        let (group, is_there) = match p.splits {
            1 => (part.group, part.pieces > 0),
            // The first warps join a group each.
            _ => {
                let group = ptx::ctaid_x() * p.row_groups + warp;
                (group, warp < p.row_groups && group * layout::PIECE_ROWS < p.n)
            }
        };
        let row = group * layout::PIECE_ROWS;
        let mut residual = [0; 2];
        if is_there && p.residual != 0 {
            let to = output(p, 0);
            // SAFETY: the caller's promise.
            residual = unsafe { [residual_of(&to, row, 0, 0), residual_of(&to, row, 0, 1)] };
        }
        End { row, is_there, residual }
    }
}

/// Joins the splits and stores, and sends what `mail` is for.
///
/// # Safety
/// All threads call it with their warps' sums.
#[inline(always)]
pub(super) unsafe fn finish<E: Element>(p: &GemmWhole, plan: Plan, end: End, mail: u64, sums: [f32; SUMS]) {
    let (warp, lane) = (ptx::tid_x() / 32, ptx::tid_x() % 32);
    let place = |warp: u32| ptx::shared_base() + plan.sums() + warp * SUM_BYTES + lane * 16;
    // SAFETY: rows and tokens that aren't there are neither read nor written; warps stay whole. A barrier stands between sums and their readers,
    // and one of the next phase between these and its sums.
    unsafe {
        let mut joined = sums;
        if p.splits > 1 {
            ptx::st_shared_v4_b32(place(warp), sums.map(f32::to_bits));
            ptx::bar_sync();
            joined = [NOTHING; SUMS];
            let mut first = 0;
            while first < p.splits {
                let mut bits = [[NOTHING.to_bits(); SUMS]; AT_ONCE as usize];
                for i in 0..AT_ONCE {
                    if end.is_there && first + i < p.splits {
                        bits[i as usize] = ptx::ld_shared_v4_b32(place(warp * p.splits + first + i));
                    }
                }
                for pair in 0..AT_ONCE as usize / 2 {
                    let [a, b] = [2 * pair, 2 * pair + 1].map(|i| bits[i].map(f32::from_bits));
                    joined = [0, 1, 2, 3].map(|i| joined[i] + (a[i] + b[i]));
                }
                first += AT_ONCE;
            }
        }
        if end.is_there {
            store_eights::<E, 1, false>(&output(p, mail), end.row, 0, [joined], |_, half| end.residual[half]);
        }
    }
}
