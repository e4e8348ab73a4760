//! Device code of [`super::DEQUANTIZE_INT4`] and [`super::DEQUANTIZE_HALVES`].

use crate::{
    abi::DequantizeInt4,
    entry::kernel,
    gemm_few::{ROWS, layout},
    ptx,
};

/// 128 as bf16: with a nibble in its low bits, 128 plus that.
const MAGIC: u32 = 0x4300;
/// -(128 + 8).
const MINUS_ZERO: f32 = -136.0;

/// Scale and zero point of a row's group.
#[derive(Clone, Copy)]
struct Meta {
    scale: f32,
    minus_zero: f32,
}

/// # Safety
/// `g_piece` is a piece, `row` a row and `group` a group of it.
#[inline(always)]
unsafe fn meta(p: &DequantizeInt4, g_piece: u64, group: u32, row: u32) -> Meta {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = ptx::ld_global_nc_b16(g_piece + u64::from(layout::scale(group, row)));
        let scale = match p.scales_f16 {
            0 => ptx::bf16_lo(u32::from(bits)),
            _ => ptx::f16_to_f32(bits),
        };
        let minus_zero = match p.zeros {
            0 => MINUS_ZERO,
            _ => {
                let at = g_piece + u64::from(layout::zero(p.groups, group, row));
                ptx::bf16_lo(u32::from(ptx::ld_global_nc_b16(at)))
            }
        };
        Meta { scale, minus_zero }
    }
}

/// Eight elements of a row: the nibbles of one register of four words, less the zero point, times the scale.
#[inline(always)]
fn eight(words: [u32; 4], register: u32, meta: Meta) -> [[f32; 2]; 4] {
    words.map(|word| {
        [0, 16].map(|shift| {
            let nibble = ptx::bf16_lo(MAGIC | word >> (shift + register * 4) & 15);
            (nibble + meta.minus_zero) * meta.scale
        })
    })
}

kernel! {
    /// See [`DequantizeInt4`].
    pub fn dequantize_int4(p: DequantizeInt4) {
        let tile = ptx::ctaid_x();
        let row_tile = layout::divide(tile, p.steps);
        let first_k = (tile - row_tile * p.steps) * layout::TILE_K;
        // The thread's chunk of eight of the 64 columns of a half, its piece of four beside each other, and its upper row there.
        let (chunk, piece, row) = (ptx::tid_x() % 8, ptx::tid_x() / 64, ptx::tid_x() / 8 % 8);
        for part in 0..layout::PIECES / 4 * 2 {
            let (piece, half) = (part / 2 * 4 + piece, part % 2);
            let run = u64::from(row_tile * layout::PIECES + piece) * u64::from(p.steps);
            let g_piece = p.packed + (run + u64::from(first_k / layout::TILE_K)) * u64::from(p.piece_bytes);
            let col = half * 64 + chunk * 8;
            // A thread's words of neighbouring columns are its neighbours' in the fragment.
            let (byte, shift) = layout::nibble(row, col);
            let mut words = [0; 4];
            for i in 0..4 {
                words[i] = ptx::ld_global_nc_b32(g_piece + u64::from(byte + i as u32 * 16));
            }
            let group = layout::divide(col * p.groups, layout::TILE_K);
            for lower in 0..2 {
                let row = row + lower * 8;
                let meta = meta(&p, g_piece, group, row);
                let register = shift / 4 + lower;
                let out = [0, 1, 2, 3].map(|i: usize| pair(words[i], register, meta));
                let (n, k) = (row_tile * ROWS + piece * layout::PIECE_ROWS + row, first_k + col);
                if n < p.n && k < p.k {
                    let at = u64::from(n) * u64::from(p.k) + u64::from(k);
                    ptx::st_global_v4_b32(p.out + at * 2, values.map(|[a, b]| ptx::pack_bf16(a, b)));
                }
            }
        }
    }
}

kernel! {
    /// See [`DequantizeInt4`].
    pub fn dequantize_int4(p: DequantizeInt4) {
        dequantize::<1>(&p);
    }
}

kernel! {
    /// See [`DequantizeInt4`].
    pub fn dequantize_int4_halves(p: DequantizeInt4) {
        dequantize::<2>(&p);
    }
}
