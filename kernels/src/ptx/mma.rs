//! Tensor-core matrix products and the loads that feed them, a warp together.
//!
//! # Safety
//! Every lane of the warp must execute the same call.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

macro_rules! mma_m16n8k16 {
    ($name:ident, $text:literal, $doc:literal) => {
        intrinsic! {
            #[doc = $doc]
            ///
            /// With `g = lane / 4` and `t = lane % 4`, each register holding two neighbours along k (a, b) or one value (c, d):
            ///
            /// | register | row | column |
            /// |---|---|---|
            /// | a0, a1, a2, a3 | g, g+8, g, g+8 | 2t, 2t, 2t+8, 2t+8 (k) |
            /// | b0, b1 | 2t, 2t+8 (k) | g |
            /// | c0, c1, c2, c3 | g, g, g+8, g+8 | 2t, 2t+1, 2t, 2t+1 |
            pub fn $name(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
                let mut d = c;
                asm!(concat!($text, " {{{0}, {1}, {2}, {3}}}, {{{4}, {5}, {6}, {7}}}, {{{8}, {9}}}, {{{0}, {1}, {2}, {3}}};"),
                    inout(reg32) d[0], inout(reg32) d[1], inout(reg32) d[2], inout(reg32) d[3],
                    in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3], in(reg32) b[0], in(reg32) b[1],
                    options(nostack));
                d
            } else {
                simt::intrinsic::$name(a, b, c)
            }
        }
    };
}
mma_m16n8k16!(
    mma_m16n8k16_bf16,
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "`mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32` (sm_80): `d = a * b + c`."
);
mma_m16n8k16!(
    mma_m16n8k16_f16,
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "`mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32` (sm_80): `d = a * b + c`."
);

macro_rules! ldmatrix {
    ($name:ident, $text:literal, $doc:literal, $emu:ident) => {
        intrinsic! {
            #[doc = $doc]
            ///
            /// Lane `8i + r` gives the address (16-byte aligned) of row `r` of 8x8 matrix `i`; lane `l` gets of matrix `i` the
            /// elements of row `l / 4`, columns `2 * (l % 4)` and the next (transposed: of that column, those rows).
            pub fn $name(address: u32) -> [u32; 4] {
                let mut d = [0u32; 4];
                asm!(concat!($text, " {{{0}, {1}, {2}, {3}}}, [{4}];"), out(reg32) d[0], out(reg32) d[1], out(reg32) d[2], out(reg32) d[3],
                    in(reg32) address, options(nostack));
                d
            } else {
                simt::intrinsic::$emu(address)
            }
        }
    };
}
ldmatrix!(
    ldmatrix_x4,
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
    "`ldmatrix.sync.aligned.m8n8.x4.shared.b16` (sm_75).",
    ldmatrix_x4
);
ldmatrix!(
    ldmatrix_x4_trans,
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
    "`ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16` (sm_75).",
    ldmatrix_x4_trans
);

intrinsic! {
    /// `stmatrix.sync.aligned.m8n8.x4.trans.shared.b16` (sm_90, PTX 7.8): stores four 8x8 matrices of 16-bit elements, each transposed.
    ///
    /// Lane `8i + r` gives the address (16-byte aligned) of row `r` of what is stored of matrix `i`; lane `l` has of matrix `i` the
    /// elements of row `l / 4`, columns `2 * (l % 4)` and the next: of what is stored that column, those rows.
    pub fn stmatrix_x4_trans(address: u32, d: [u32; 4]) {
        asm!("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [{4}], {{{0}, {1}, {2}, {3}}};",
            in(reg32) d[0], in(reg32) d[1], in(reg32) d[2], in(reg32) d[3], in(reg32) address, options(nostack));
    } else {
        simt::intrinsic::stmatrix_x4_trans(address, d)
    }
}
