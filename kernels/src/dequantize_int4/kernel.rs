//! Device code of [`super::DEQUANTIZE_INT4`] and its siblings.

use crate::{
    abi::DequantizeInt4,
    element::{Bf16, Element, F16},
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
                ptx::fma(ptx::bf16_lo(u32::from(ptx::ld_global_nc_b16(at))), 64.0, -128.0)
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

/// The tile of the grid's block, of `HALVES` pieces of each 16 rows that lie together and are added.
///
/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn dequantize<E: Element, const HALVES: usize>(p: &DequantizeInt4) {
    let tile = ptx::ctaid_x();
    let row_tile = layout::divide(tile, p.steps);
    let step = tile - row_tile * p.steps;
    let first_k = step * layout::TILE_K;
    // The thread's chunk of eight of the 64 columns of a half, its piece of four beside each other, and its upper row there.
    let (chunk, piece, row) = (ptx::tid_x() % 8, ptx::tid_x() / 64, ptx::tid_x() / 8 % 8);
    // A loop that isn't unrolled where two pieces are added: addresses of all of them would take too many registers.
    let mut part = if HALVES == 1 { 0 } else { ptx::here(0) };
    while part < layout::PIECES / 4 * 2 {
        let (piece, col) = (part / 2 * 4 + piece, part % 2 * 64 + chunk * 8);
        let of_rows = u64::from(row_tile * layout::PIECES + piece) * u64::from(p.steps) + u64::from(step);
        let g_first = p.packed + of_rows * HALVES as u64 * u64::from(p.piece_bytes);
        let g_piece = |half: usize| g_first + u64::from(half as u32 * p.piece_bytes);
        // A thread's words of neighbouring columns are its neighbours' in the fragment.
        let (byte, shift) = layout::nibble(row, col);
        let mut words = [[0; 4]; HALVES];
        for half in 0..HALVES {
            for i in 0..4 {
                // SAFETY: a word of the piece.
                words[half][i] =
                    unsafe { ptx::ld_global_nc_b32(g_piece(half) + u64::from(byte + i as u32 * 16)) };
            }
        }
        let group = layout::divide(col * p.groups, layout::TILE_K);
        for lower in 0..2 {
            let (row, register) = (row + lower * 8, shift / 4 + lower);
            // SAFETY: a row and a group of the pieces; what isn't there of the matrix isn't written.
            unsafe {
                let mut values = eight(words[0], register, meta(p, g_piece(0), group, row));
                for half in 1..HALVES {
                    let more = eight(words[half], register, meta(p, g_piece(half), group, row));
                    for i in 0..4 {
                        values[i] = [values[i][0] + more[i][0], values[i][1] + more[i][1]];
                    }
                }
                let (n, k) = (row_tile * ROWS + piece * layout::PIECE_ROWS + row, first_k + col);
                if n < p.n && k < p.k {
                    let at = u64::from(n) * u64::from(p.k) + u64::from(k);
                    ptx::st_global_v4_b32(p.out + at * 2, values.map(|[a, b]| E::pack(a, b)));
                }
            }
        }
        part += 1;
    }
}

kernel! {
    /// See [`DequantizeInt4`].
    pub fn dequantize_int4(p: DequantizeInt4) {
        dequantize::<Bf16, 1>(&p);
    }
}

kernel! {
    /// See [`DequantizeInt4`].
    pub fn dequantize_int4_f16(p: DequantizeInt4) {
        dequantize::<F16, 1>(&p);
    }
}

kernel! {
    /// See [`DequantizeInt4`].
    pub fn dequantize_int4_halves(p: DequantizeInt4) {
        dequantize::<Bf16, 2>(&p);
    }
}
