//! Device code of [`super::INT8`] and [`super::FP8`].

use super::{PART_ROWS, THREADS};
use crate::{
    abi::{KV_FP8, KV_INT8, KvWiden, WidenPage},
    entry::kernel,
    ptx,
};

/// Codes that a thread widens at a time.
const CODES: u32 = 16;
/// An e4m3's exponent is an f32's with 120 less: its bits in an f32's place are 2^120 too small, subnormals too.
const E4M3_UNIT: f32 = f32::from_bits((127 + 120) << 23);

/// The value of a code.
#[inline(always)]
fn value<const FORMAT: u32>(code: u32) -> f32 {
    if FORMAT == KV_INT8 {
        return code as u8 as i8 as f32;
    }
    f32::from_bits((code & 0x80) << 24 | (code & 0x7f) << 20) * E4M3_UNIT
}

/// Two words of four codes each, times their vector's scale.
#[inline(always)]
fn widen8<const FORMAT: u32>(words: [u32; 2], scale: f32) -> [u32; 4] {
    let element = |i: u32| value::<FORMAT>(words[i as usize / 4] >> (i % 4 * 8) & 0xff) * scale;
    let pair = |i: u32| ptx::pack_bf16(element(i), element(i + 1));
    [pair(0), pair(2), pair(4), pair(6)]
}

/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn widen<const FORMAT: u32>(p: &KvWiden) {
    const { assert!(size_of::<WidenPage>() == 16) };
    let (parts, chunks) = (p.parts.max(1), (p.head_dim / CODES).max(1));
    let (listed, part) = (ptx::ctaid_x() / parts, ptx::ctaid_x() % parts);
    // SAFETY: the launch has `parts` blocks for each listed page.
    let [page, index, kv_len, _] = unsafe { ptx::ld_global_nc_v4_b32(p.pages + u64::from(listed) * 16) };
    let page_size = u64::from(p.page_size);
    let held = u64::from(kv_len).saturating_sub(u64::from(index) * page_size).min(page_size);
    let first = u64::from(part * PART_ROWS);
    let rows = held.saturating_sub(first).min(u64::from(PART_ROWS)) as u32;
    let head = u64::from(page) * u64::from(p.kv_heads) + u64::from(ptx::ctaid_y());
    let first_row = head * page_size + first;
    let (codes, scales, out) = match ptx::ctaid_z() {
        0 => (p.k_codes, p.k_scales, p.k_out),
        _ => (p.v_codes, p.v_scales, p.v_out),
    };
    let mut at = ptx::here(ptx::tid_x());
    while at < rows * chunks {
        let row = first_row + u64::from(at / chunks);
        let element = row * u64::from(p.head_dim) + u64::from(at % chunks * CODES);
        // SAFETY: the page is in the cache and the row, which holds a key, in the page; `out` has as many.
        unsafe {
            let scale = f32::from_bits(ptx::ld_global_nc_b32(scales + row * 4));
            let [a, b, c, d] = ptx::ld_global_nc_v4_b32(codes + element);
            ptx::st_global_v4_b32(out + element * 2, widen8::<FORMAT>([a, b], scale));
            ptx::st_global_v4_b32(out + element * 2 + 16, widen8::<FORMAT>([c, d], scale));
        }
        at += THREADS;
    }
}

kernel! {
    /// See [`KvWiden`].
    pub fn kv_widen_int8(p: KvWiden) {
        widen::<KV_INT8>(&p);
    }
}

kernel! {
    /// See [`KvWiden`].
    pub fn kv_widen_fp8(p: KvWiden) {
        widen::<KV_FP8>(&p);
    }
}

#[cfg(all(test, not(target_arch = "nvptx64")))]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_value() {
        for code in 0..=0xffu32 {
            assert_eq!(value::<KV_INT8>(code), f32::from(code as u8 as i8));
            let (exponent, mantissa) = ((code >> 3 & 15) as i32, (code & 7) as f32);
            let magnitude = match exponent {
                0 => mantissa * 2f32.powi(-9),
                _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
            };
            let expected = if code < 0x80 { magnitude } else { -magnitude };
            // The two codes of NaN are never written: a cache's elements are finite.
            assert_eq!(value::<KV_FP8>(code).to_bits(), expected.to_bits(), "{code:#04x}");
        }
    }
}
