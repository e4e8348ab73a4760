//! The two products of attention's tiles, over rows of a task.
use super::isa::{Isa, LANES};
use super::linear::accumulate;

/// Keys a tile.
pub(super) const TILE_KEYS: usize = 64;
/// Panels of sixteen keys a tile.
pub(super) const TILE_PANELS: usize = TILE_KEYS / LANES;

/// One panel of keys and its values.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub(super) keys: *const f32,
    pub(super) values: *const f32,
}

/// A tile's keys, whose values follow each other `run` at a time: long runs spare the loop its beginnings.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) keys: usize,
    pub(super) run: usize,
}

/// `s = q * k^T` of `ROWS` rows, and how many those are. `q` is `[ROWS, head_dim]`, `s` `[ROWS, TILE_KEYS]`.
#[inline(always)]
pub(super) fn score_rows<I: Isa, const ROWS: usize>(
    isa: I,
    panels: &[Panel],
    head_dim: usize,
    q: &[f32],
    s: &mut [f32],
) -> usize {
    debug_assert!(q.len() >= ROWS * head_dim && s.len() >= ROWS * TILE_KEYS);
    for (index, panel) in panels.iter().enumerate() {
        let zero = [[isa.zero(); 1]; ROWS];
        // SAFETY: `ROWS` rows of queries and scores are there; a panel has `head_dim` vectors.
        unsafe {
            let sums = accumulate(isa, zero, q.as_ptr(), head_dim, panel.keys, LANES, 0, head_dim);
            for (r, [sum]) in sums.into_iter().enumerate() {
                isa.store(s.as_mut_ptr().add(r * TILE_KEYS + index * LANES), sum);
            }
        }
    }
    ROWS
}

/// `o += p * v` of `ROWS` rows, and how many those are. `p` is `[ROWS, TILE_KEYS]`, `o` `[ROWS, v_dim]`.
#[inline(always)]
pub(super) fn output_rows<I: Isa, const ROWS: usize>(
    isa: I,
    panels: &[Panel],
    Run { keys, run }: Run,
    v_dim: usize,
    p: &[f32],
    o: &mut [f32],
) -> usize {
    debug_assert!(p.len() >= ROWS * TILE_KEYS && o.len() >= ROWS * v_dim);
    for col in (0..v_dim).step_by(LANES) {
        // SAFETY: `ROWS` rows of weights and outputs are there; each run has values for its keys, `v_dim` apart.
        unsafe {
            let mut sums = [[isa.zero(); 1]; ROWS];
            for (r, [sum]) in sums.iter_mut().enumerate() {
                *sum = isa.load(o.as_ptr().add(r * v_dim + col));
            }
            for first in (0..keys).step_by(run) {
                let (weights, k) = (p.as_ptr().add(first), run.min(keys - first));
                let values = panels[first / LANES].values.add(col);
                sums = accumulate(isa, sums, weights, TILE_KEYS, values, v_dim, 0, k);
            }
            for (r, [sum]) in sums.into_iter().enumerate() {
                isa.store(o.as_mut_ptr().add(r * v_dim + col), sum);
            }
        }
    }
    ROWS
}
