//! Online softmax on the accumulators of a warpgroup product. A lane holds two rows: registers `4j` and `4j + 1` are columns
//! `8j + 2t` and the next of row `g`, `4j + 2` and `4j + 3` those of row `g + 8`; the four lanes of a quad share them.

use core::f32::consts::LOG2_E;

use crate::{attention_tile::KeyRange, ptx};

/// Exponents past this are more than an f32 can tell one apart from the next; then scores are subtracted before they are scaled.
const FOLDED_LIMIT: f32 = 16_777_216.0;

/// Scores that are capped before the next ones are begun.
const CAPPED_AT_ONCE: usize = 8;

/// Turns products into base-2 exponents of capped scores: `softcap * tanh(scale / softcap * s) * log2(e)`.
#[inline(always)]
pub(super) fn cap<const S: usize>(s: &mut [f32; S], scale: f32, softcap: f32) {
    let mut inner = scale * ptx::rcp(softcap) * (2.0 * LOG2_E);
    let outer = softcap * LOG2_E;
    for group in 0..S / CAPPED_AT_ONCE {
        let first = group * CAPPED_AT_ONCE;
        for i in first..first + CAPPED_AT_ONCE {
            // tanh(x) = 1 - 2 / (1 + e^2x), whose error is that of f32 where `tanh.approx` has 2^-11.
            s[i] = outer * (1.0 - 2.0 * ptx::rcp(1.0 + ptx::ex2(s[i] * inner)));
        }
        // Adds 0 (of a NaN and 0, `max` is 0), but the compiler doesn't know: the next group waits for this one. All at once
        // would take more registers than there are.
        inner += ptx::max(s[first] * 0.0, 0.0);
    }
}

/// Sets the scores of keys outside each row's range to -inf; `first_key` is the tile's first.
#[inline(always)]
pub(super) fn mask<const S: usize>(s: &mut [f32; S], first_key: u32, rows: [KeyRange; 2]) {
    let lane_key = (first_key + ptx::lane() % 4 * 2) as i32;
    for r in 0..2 {
        let (start, end) = (rows[r].start - lane_key, rows[r].end - lane_key);
        for j in 0..S / 4 {
            for i in 0..2 {
                let key = (8 * j + i) as i32;
                if key < start || key >= end {
                    s[4 * j + 2 * r + i] = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// As [`mask`], by two instructions an element rather than three, and more registers.
#[inline(always)]
pub(super) fn mask_by_bits<const S: usize>(s: &mut [f32; S], first_key: u32, rows: [KeyRange; 2]) {
    const { assert!(S <= 64, "a lane's columns of a row are the bits of a word") };
    let lane_key = (first_key + ptx::lane() % 4 * 2) as i32;
    for r in 0..2 {
        let seen = columns_below(rows[r].end - lane_key) & !columns_below(rows[r].start - lane_key);
        for column in 0..S / 2 {
            if seen >> column & 1 == 0 {
                s[column / 2 * 4 + 2 * r + column % 2] = f32::NEG_INFINITY;
            }
        }
    }
}

/// Of a lane's 32 columns of a row, two of each eight keys, those whose keys are below `limit`, counted from the lane's first key.
#[inline(always)]
fn columns_below(limit: i32) -> u32 {
    let keys = if limit > 0 { limit as u32 } else { 0 };
    let columns = keys / 8 * 2 + if keys % 8 < 2 { keys % 8 } else { 2 };
    if columns >= 32 { u32::MAX } else { (1 << columns) - 1 }
}

/// Statistics of a lane's two rows.
pub(super) struct Softmax {
    /// Largest score so far; -inf before any.
    pub max: [f32; 2],
    /// Sum of the exponentials of this lane's keys.
    pub sum: [f32; 2],
}

impl Softmax {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { max: [f32::NEG_INFINITY; 2], sum: [0.0; 2] }
    }

    /// Turns scores into exponentials under the new maximum, brings the sums under it, and returns what the output is to be
    /// multiplied by.
    ///
    /// # Safety
    /// The whole warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) unsafe fn update<const S: usize>(&mut self, s: &mut [f32; S], factor: f32) -> [f32; 2] {
        // Both rows at a time: one warp a scheduler works on this, so its own instructions have to hide each other's latency.
        let before = self.max;
        // SAFETY: the whole warp is here.
        let max = unsafe { quad_max_2([row_max(s, 0, before[0]), row_max(s, 1, before[1])]) };
        self.max = max;
        // A row that has seen nothing stays at -inf; -inf less -inf would be NaN.
        let base = max.map(|max| if max == f32::NEG_INFINITY { 0.0 } else { max });
        let scaled = base.map(|base| base * factor);
        let (rescale, sum);
        if ptx::max(scaled[0].abs(), scaled[1].abs()) < FOLDED_LIMIT {
            // Rounded as `scaled` is: a maximum that stays gives exactly 1, so a tile that a row sees nothing of leaves no trace.
            rescale = [0, 1].map(|r| ptx::ex2(before[r] * factor - scaled[r]));
            sum = exponentials(s, |score, r| ptx::fma(score, factor, -scaled[r]));
        } else {
            rescale = [0, 1].map(|r| ptx::ex2((before[r] - base[r]) * factor));
            sum = exponentials(s, |score, r| (score - base[r]) * factor);
        }
        for r in 0..2 {
            self.sum[r] = ptx::fma(self.sum[r], rescale[r], sum[r]);
        }
        rescale
    }
}

/// Turns scores into exponentials of what `exponent` makes of a score and its row; a lane's sum of each row.
#[inline(always)]
fn exponentials<const S: usize>(s: &mut [f32; S], exponent: impl Fn(f32, usize) -> f32) -> [f32; 2] {
    // Two chains a row.
    let mut sum = [[0.0f32; 2]; 2];
    for j in 0..S / 4 {
        for i in 0..4 {
            let value = ptx::ex2(exponent(s[4 * j + i], i / 2));
            s[4 * j + i] = value;
            sum[i / 2][i % 2] = if j == 0 { value } else { sum[i / 2][i % 2] + value };
        }
    }
    sum.map(|chains| chains[0] + chains[1])
}

/// The largest of a lane's scores of row `r` and `before`, over four chains.
#[inline(always)]
fn row_max<const S: usize>(s: &[f32; S], r: usize, before: f32) -> f32 {
    let mut max = [ptx::max(before, s[2 * r]), s[2 * r + 1], s[4 + 2 * r], s[4 + 2 * r + 1]];
    for j in 1..S / 8 {
        for i in 0..4 {
            max[i] = ptx::max(max[i], s[8 * j + 4 * (i / 2) + 2 * r + i % 2]);
        }
    }
    ptx::max(ptx::max(max[0], max[1]), ptx::max(max[2], max[3]))
}

/// The largest of a quad's values of each of two rows, in each of its lanes.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn quad_max_2(rows: [f32; 2]) -> [f32; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let one = [ptx::shfl_bfly_f32(rows[0], 1), ptx::shfl_bfly_f32(rows[1], 1)];
        let rows = [ptx::max(rows[0], one[0]), ptx::max(rows[1], one[1])];
        let two = [ptx::shfl_bfly_f32(rows[0], 2), ptx::shfl_bfly_f32(rows[1], 2)];
        [ptx::max(rows[0], two[0]), ptx::max(rows[1], two[1])]
    }
}

#[cfg(all(test, not(target_arch = "nvptx64")))]
mod tests {
    use super::*;

    #[test]
    fn masks_are_the_ranges() {
        for start in -3..131 {
            for end in -2..135 {
                let seen = columns_below(end) & !columns_below(start);
                for column in 0..32 {
                    let key = column / 2 * 8 + column % 2;
                    assert_eq!(seen >> column & 1 == 1, key >= start && key < end, "{key} in {start}..{end}");
                }
            }
        }
    }
}
