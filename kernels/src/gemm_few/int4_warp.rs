//! Products of 4-bit weights, converted in registers, a warp at a time: for few tokens.

use super::{
    LINE_BYTES, Tile,
    int4::{Stored, meta},
    item::Item,
    layout,
    nibbles::{Nibbles, convert, whole},
    piece_stride,
};
use crate::{abi::GemmFew, ptx, tile::Ring};

/// Pairs of steps of 16 of `k` in a piece: what one load of matrices brings.
pub(crate) const PAIRS: usize = 4;

/// The warp's 16 rows of `w` times the tokens, over the item's stages. `N` sums, which lie as those of [`super::int4::multiply`].
///
/// # Safety
/// All consumers call it; the barriers are initialised.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn multiply<E: Nibbles, const N: usize, const GROUPS: usize>(
    p: &GemmFew,
    plan: Tile,
    item: Item,
) -> [f32; N] {
    let base = ptx::shared_base();
    let thread = ptx::here(ptx::tid_x());
    let (warp, lane) = (thread / 32, thread % 32);
    // The lane's place in the matrices that are loaded together.
    let (token, chunk) = (lane % 8, lane / 8);
    let stored = Stored { scales_f16: p.scales_f16 != 0, zeros: p.zeros != 0 };
    let mut ring = Ring::new();
    let mut total = [0.0f32; N];
    for _ in item.first..item.end {
        let stage = ring.stage(plan.stages);
        let s_a = base + stage * plan.stage_bytes();
        let s_piece = s_a + plan.a_bytes() + warp * const { piece_stride(GROUPS as u32) };
        let columns = |eight: u32, pair: u32| {
            let line = pair / 2 * plan.tokens + eight * 8 + token;
            s_a + line * LINE_BYTES + ((pair % 2 * 4 + chunk) ^ token) * 16
        };
        // SAFETY: the whole warp takes the same branches; the stage has landed, and is given back once it has been read.
        unsafe {
            ptx::mbarrier_wait(base + plan.full() + stage * 8, ring.parity(plan.stages));
            let operands = |eight, pair| ptx::ldmatrix_x4(columns(eight, pair));
            piece::<E, N, GROUPS>(stored, s_piece, operands, &mut total);
            ptx::bar_warp_sync();
            if lane == 0 {
                ptx::mbarrier_arrive(base + plan.empty() + stage * 8);
            }
        }
        ring = ring.next();
    }
    whole::<E, N>(total)
}

/// Adds the products of a piece of weights to `total`, in units; `operands(eight, pair)` is the lane's part of four matrices of `a`: of eight tokens, of a pair of
/// steps.
///
/// # Safety
/// The whole warp calls it; the piece at `s_piece` and its part of `a` have landed.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn piece<E: Nibbles, const N: usize, const GROUPS: usize>(
    stored: Stored,
    s_piece: u32,
    mut operands: impl FnMut(u32, u32) -> [u32; 4],
    total: &mut [f32; N],
) {
    let lane = ptx::here(ptx::tid_x()) % 32;
    let mut acc = [0.0f32; N];
    // SAFETY: the caller's promise.
    unsafe {
        let mut meta_of_group = meta::<E, GROUPS>(stored, s_piece, 0, lane / 4);
        let mut words = [0u32; 4];
        for pair in 0..PAIRS {
            if pair % 2 == 0 {
                words = ptx::ld_shared_v4_b32(s_piece + pair as u32 / 2 * layout::HALF_BYTES + lane * 16);
            }
            let at = pair % 2 * 2;
            let a = [0, 1].map(|step: usize| convert::<E>(words[at + step], meta_of_group.minus_zeros));
            for eight in 0..N / 4 {
                let b = operands(eight as u32, pair as u32);
                let at = eight * 4;
                let mut c = [acc[at], acc[at + 1], acc[at + 2], acc[at + 3]];
                c = E::mma(a[0], [b[0], b[1]], c);
                c = E::mma(a[1], [b[2], b[3]], c);
                [acc[at], acc[at + 1], acc[at + 2], acc[at + 3]] = c;
            }
            if (pair + 1) % (PAIRS / GROUPS) == 0 {
                for r in 0..N {
                    total[r] = ptx::fma(acc[r], meta_of_group.scales[r / 2 % 2], total[r]);
                    acc[r] = 0.0;
                }
                let group = ((pair + 1) * GROUPS / PAIRS) as u32;
                if group < GROUPS as u32 {
                    meta_of_group = meta::<E, GROUPS>(stored, s_piece, group, lane / 4);
                }
            }
        }
    }
}
