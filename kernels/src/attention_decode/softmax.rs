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

/// Multiplies the exponentials by their values' scales, in the rows' units.
#[inline(always)]
pub(super) fn scale_values<const KEYS16: usize, const ROWS8: usize>(
    p: &mut Scores<KEYS16, ROWS8>,
    scales: &[[Scales; 2]; KEYS16],
    units: &ValueUnits<ROWS8>,
) {
    for n in 0..ROWS8 {
        for e in 0..2 {
            let factor = units.factor(n, e);
            for m in 0..KEYS16 {
                for i in [e, 2 + e] {
                    // Of a key that the row doesn't see it may be anything, infinity and NaN included; its weight is 0.
                    p[m][n][i] *= (scales[m][i / 2].v * factor).min(ValueUnits::<ROWS8>::ABOVE);
                }
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

/// The powers of two by which a lane's rows have their output, for 8-bit values: weights times their values' scales are to be f16.
///
/// The largest scale of the keys that the row has seen so far is brought to 2^14, so that a weight of 1 stays below f16's largest number, and
/// weights down to 2^-28 of it keep all their bits. Keys that others alone see have no part in it.
#[derive(Clone, Copy)]
pub(super) struct ValueUnits<const ROWS8: usize> {
    /// The exponent fields of the largest scales.
    fields: [[u32; 2]; ROWS8],
}

impl<const ROWS8: usize> ValueUnits<ROWS8> {
    /// The field that becomes 2^14.
    const TOP: u32 = 14 + 127;
    /// What no scale of a key that the row sees reaches in its unit.
    const ABOVE: f32 = 32768.0;

    #[inline(always)]
    pub fn new() -> Self {
        ValueUnits { fields: [[Self::TOP - 126; 2]; ROWS8] }
    }

    /// Takes in the scales of the values whose scores, masked, are `s`. What the rows' outputs have to be multiplied by then.
    ///
    /// # Safety
    /// Every lane of the warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn take<const KEYS16: usize>(
        &mut self,
        s: &Scores<KEYS16, ROWS8>,
        scales: &[[Scales; 2]; KEYS16],
    ) -> [[f32; 2]; ROWS8] {
        let mut rescale = [[1.0; 2]; ROWS8];
        // Bits without the sign ascend with the magnitude.
        let mut largest = [[0; 2]; ROWS8];
        let mut raised = false;
        for n in 0..ROWS8 {
            for e in 0..2 {
                for m in 0..KEYS16 {
                    for i in [e, 2 + e] {
                        let bits = scales[m][i / 2].v.to_bits() & 0x7fff_ffff;
                        let seen = s[m][n][i] != f32::NEG_INFINITY;
                        largest[n][e] = if seen { bits.max(largest[n][e]) } else { largest[n][e] };
                    }
                }
                raised |= largest[n][e] >> 23 > self.fields[n][e];
            }
        }
        // Seldom after the first tiles.
        // SAFETY: the warp is whole.
        unsafe {
            if ptx::ballot(raised) != 0 {
                for n in 0..ROWS8 {
                    for e in 0..2 {
                        let (before, field) =
                            (self.fields[n][e], (max_over_keys(largest[n][e]) >> 23).min(254));
                        self.fields[n][e] = before.max(field);
                        rescale[n][e] = power((before + 127).saturating_sub(self.fields[n][e]));
                    }
                }
            }
        }
        rescale
    }

    /// What brings a value's scale into the row's unit.
    #[inline(always)]
    fn factor(&self, n: usize, e: usize) -> f32 {
        power(127 + Self::TOP - self.fields[n][e])
    }

    /// What the rows' outputs have to be multiplied by in the end, beside the elements' own unit.
    #[inline(always)]
    pub fn units(&self) -> [[f32; 2]; ROWS8] {
        self.fields.map(|row| row.map(|field| power(field + 127 - Self::TOP)))
    }
}

/// The largest over the lanes that share `lane % 4`.
///
/// # Safety
/// Every lane of the warp calls it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn max_over_keys(value: u32) -> u32 {
    // SAFETY: the warp is whole.
    unsafe {
        let value = value.max(ptx::shfl_bfly(value, 4));
        let value = value.max(ptx::shfl_bfly(value, 8));
        value.max(ptx::shfl_bfly(value, 16))
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

    /// Turns scores into exponentials under the new maxima, and brings sums and outputs under them; rows of outputs are multiplied by
    /// `rescale_out` as well.
    ///
    /// # Safety
    /// Every lane of the warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn update<const KEYS16: usize>(
        &mut self,
        s: &mut Scores<KEYS16, ROWS8>,
        rescale_out: &[[f32; 2]; ROWS8],
    ) {
        let mut rescale = [[1.0f32; 2]; ROWS8];
        let mut moved = false;
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
                moved |= max != self.max[n][e] || rescale_out[n][e] != 1.0;
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
                        self.out[d][n][i] *= rescale[n][i & 1] * rescale_out[n][i & 1];
                    }
                }
            }
        }
    }

    /// Multiplies the rows of the output.
    #[inline(always)]
    pub fn scale_out(&mut self, factors: &[[f32; 2]; ROWS8]) {
        for d in 0..STEPS {
            for n in 0..ROWS8 {
                for i in 0..4 {
                    self.out[d][n][i] *= factors[n][i & 1];
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
