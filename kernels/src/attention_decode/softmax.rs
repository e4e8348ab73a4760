//! Scaling, masks and the online softmax of a warp, on transposed fragments (see [`super::products`]).

use core::f32::consts::LOG2_E;

use super::{convert::power, item::RowMask, products::Scores, ring::Scales};
use crate::ptx;

/// How products become base-2 exponents.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub scale: f32,
    pub softcap: f32,
}

impl Scale {
    /// What a score is multiplied by before [`Scale::cap`].
    #[inline(always)]
    pub fn factor(&self) -> f32 {
        if self.softcap == 0.0 { self.scale * LOG2_E } else { self.scale / self.softcap * (2.0 * LOG2_E) }
    }

    /// Of a score times [`Scale::factor`].
    #[inline(always)]
    fn cap(&self, score: f32) -> f32 {
        // tanh(x) = 1 - 2 / (1 + e^2x), whose error is that of f32 where `tanh.approx` has 2^-11.
        self.softcap * LOG2_E * (1.0 - 2.0 * ptx::rcp(1.0 + ptx::ex2(score)))
    }

    /// Of a whole tile, by the factors of a lane's rows.
    #[inline(always)]
    pub fn apply_all<const KEYS16: usize, const ROWS8: usize>(
        &self,
        s: &mut Scores<KEYS16, ROWS8>,
        factors: &[[f32; 2]; ROWS8],
    ) {
        for m in 0..KEYS16 {
            for n in 0..ROWS8 {
                for i in 0..4 {
                    s[m][n][i] *= factors[n][i & 1];
                }
            }
        }
        if self.softcap != 0.0 {
            for m in 0..KEYS16 {
                for n in 0..ROWS8 {
                    for i in 0..4 {
                        s[m][n][i] = self.cap(s[m][n][i]);
                    }
                }
            }
        }
    }
}

/// The scales of a lane's own keys, `g` and `g + 8` of each 16, from the lanes that hold them.
///
/// # Safety
/// Every lane of the warp calls it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn own_scales<const KEYS16: usize>(scales: Scales) -> [[Scales; 2]; KEYS16] {
    let mut own = [[Scales::NONE; 2]; KEYS16];
    for m in 0..KEYS16 {
        for i in 0..2 {
            let key = m as u32 * 16 + i as u32 * 8 + ptx::lane() / 4;
            // SAFETY: the warp is whole.
            unsafe {
                own[m][i] = Scales {
                    k: f32::from_bits(ptx::shfl_idx(scales.k.to_bits(), key)),
                    v: f32::from_bits(ptx::shfl_idx(scales.v.to_bits(), key)),
                };
            }
        }
    }
    own
}

/// Multiplies the scores by their keys' scales.
#[inline(always)]
pub(super) fn scale_keys<const KEYS16: usize, const ROWS8: usize>(
    s: &mut Scores<KEYS16, ROWS8>,
    scales: &[[Scales; 2]; KEYS16],
) {
    for m in 0..KEYS16 {
        for n in 0..ROWS8 {
            for i in 0..4 {
                s[m][n][i] *= scales[m][i / 2].k;
            }
        }
    }
}

/// Multiplies the exponentials by their values' scales.
#[inline(always)]
pub(super) fn scale_values<const KEYS16: usize, const ROWS8: usize>(
    p: &mut Scores<KEYS16, ROWS8>,
    scales: &[[Scales; 2]; KEYS16],
) {
    for m in 0..KEYS16 {
        for n in 0..ROWS8 {
            for i in 0..4 {
                p[m][n][i] *= scales[m][i / 2].v;
            }
        }
    }
}

/// Sets the scores of keys that a row doesn't see to -inf. `first_key` is the tile's first, the
/// drafts start at key `drafts_start`.
#[inline(always)]
pub(super) fn mask<const KEYS16: usize, const ROWS8: usize>(
    s: &mut Scores<KEYS16, ROWS8>,
    first_key: u32,
    drafts_start: i32,
    rows: &[[RowMask; 2]; ROWS8],
) {
    for m in 0..KEYS16 {
        for i in 0..4 {
            let key = first_key + m as u32 * 16 + i as u32 / 2 * 8 + ptx::lane() / 4;
            for n in 0..ROWS8 {
                if !rows[n][i & 1].sees(key, drafts_start) {
                    s[m][n][i] = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// The power of two by which a warp has its output, for 8-bit values: weights times their values' scales are to be f16.
///
/// The largest scale so far is brought to 2^14, so that a weight of 1 stays below f16's largest number, and weights down to 2^-28 of
/// it keep all their bits.
#[derive(Clone, Copy)]
pub(super) struct ValueUnit {
    /// The exponent field of the largest scale so far.
    field: u32,
}

impl ValueUnit {
    /// The field that becomes 2^14.
    const TOP: u32 = 14 + 127;

    #[inline(always)]
    pub fn new() -> ValueUnit {
        ValueUnit { field: Self::TOP - 126 }
    }

    /// Brings the scale of the lane's value within the unit, which that of any lane may raise. What the output has to be multiplied
    /// by then.
    ///
    /// # Safety
    /// Every lane of the warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn take(&mut self, scale: &mut f32) -> f32 {
        // SAFETY: the warp is whole. Bits without the sign ascend with the magnitude.
        let field = unsafe { ptx::redux_max(scale.to_bits() & 0x7fff_ffff) } >> 23;
        let mut rescale = 1.0;
        if field > self.field {
            let field = field.min(254);
            rescale = power((self.field + 127).saturating_sub(field));
            self.field = field;
        }
        *scale *= power(127 + Self::TOP - self.field);
        rescale
    }

    /// What an output has to be multiplied by in the end, beside the elements' own unit.
    #[inline(always)]
    pub fn unit(&self) -> f32 {
        power(self.field + 127 - Self::TOP)
    }
}

/// `combine` over the lanes that share `lane % 4`: all the keys of a row.
///
/// # Safety
/// Every lane of the warp calls it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn over_keys(value: f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    // SAFETY: the warp is whole.
    unsafe {
        let value = combine(value, ptx::shfl_bfly_f32(value, 4));
        let value = combine(value, ptx::shfl_bfly_f32(value, 8));
        combine(value, ptx::shfl_bfly_f32(value, 16))
    }
}

/// A warp's online softmax and its output. Rows `2t` and `2t + 1` of each 8 are a lane's.
pub(super) struct Softmax<const STEPS: usize, const ROWS8: usize> {
    /// Largest score so far, of the row; -inf before any.
    pub max: [[f32; 2]; ROWS8],
    /// Sum of the exponentials of this lane's keys.
    sum: [[f32; 2]; ROWS8],
    /// Unnormalised output: by 16 dims, by 8 rows.
    pub out: [[[f32; 4]; ROWS8]; STEPS],
}

impl<const STEPS: usize, const ROWS8: usize> Softmax<STEPS, ROWS8> {
    #[inline(always)]
    pub fn new() -> Self {
        Self { max: [[f32::NEG_INFINITY; 2]; ROWS8], sum: [[0.0; 2]; ROWS8], out: [[[0.0; 4]; ROWS8]; STEPS] }
    }

    /// Turns scores into exponentials under the new maxima, and brings sums and outputs under them; outputs are multiplied by
    /// `rescale_out` as well.
    ///
    /// # Safety
    /// Every lane of the warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn update<const KEYS16: usize>(&mut self, s: &mut Scores<KEYS16, ROWS8>, rescale_out: f32) {
        let mut rescale = [[1.0f32; 2]; ROWS8];
        let mut moved = rescale_out != 1.0;
        for n in 0..ROWS8 {
            for e in 0..2 {
                let mut max = self.max[n][e];
                for m in 0..KEYS16 {
                    max = ptx::max(max, ptx::max(s[m][n][e], s[m][n][2 + e]));
                }
                // SAFETY: the warp is whole.
                let max = unsafe { over_keys(max, ptx::max) };
                // A row that has seen nothing stays at -inf; -inf less -inf would be NaN.
                let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
                rescale[n][e] = ptx::ex2(self.max[n][e] - base);
                moved |= max != self.max[n][e];
                self.max[n][e] = max;
                let mut sum = 0.0;
                for m in 0..KEYS16 {
                    for i in [e, 2 + e] {
                        s[m][n][i] = ptx::ex2(s[m][n][i] - base);
                        sum += s[m][n][i];
                    }
                }
                self.sum[n][e] = ptx::fma(self.sum[n][e], rescale[n][e], sum);
            }
        }
        // Maxima seldom move after the first tiles, and a factor of 1 changes no bit.
        // SAFETY: the warp is whole.
        if unsafe { ptx::ballot(moved) } != 0 {
            for d in 0..STEPS {
                for n in 0..ROWS8 {
                    for i in 0..4 {
                        self.out[d][n][i] *= rescale[n][i & 1] * rescale_out;
                    }
                }
            }
        }
    }

    /// Multiplies the output.
    #[inline(always)]
    pub fn scale_out(&mut self, factor: f32) {
        for d in 0..STEPS {
            for n in 0..ROWS8 {
                for i in 0..4 {
                    self.out[d][n][i] *= factor;
                }
            }
        }
    }

    /// A row's sum over all of the warp's keys, in each lane of the row.
    ///
    /// # Safety
    /// Every lane of the warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn total(&self, n: usize, e: usize) -> f32 {
        // SAFETY: the warp is whole.
        unsafe { over_keys(self.sum[n][e], |a, b| a + b) }
    }
}
