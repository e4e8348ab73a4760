//! Attention's tiles, over rows of a task: two products, and the softmax between them.
use super::accumulate::accumulate;
use super::isa::{Isa, LANES};
use super::linear::TILE_ROWS;
use super::tensor::round_to_bf16;

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
    /// The next tile's first panel, if it is to be fetched.
    pub(super) next: Option<Panel>,
}

/// Where element 0 of a row of queries is, those of a register tile side by side: `[rows / TILE_ROWS, head_dim, TILE_ROWS]`. Then one
/// address serves the six of a tile.
pub(super) fn query_at(row: usize, head_dim: usize) -> usize {
    row / TILE_ROWS * TILE_ROWS * head_dim + row % TILE_ROWS
}

/// `s = q * k^T` of `ROWS` rows, and how many those are. `q` is `[head_dim, TILE_ROWS]`, `s` `[ROWS, TILE_KEYS]`.
#[inline(always)]
pub(super) fn score_rows<I: Isa, const ROWS: usize>(
    isa: I,
    panels: &[Panel],
    head_dim: usize,
    q: &[f32],
    s: &mut [f32],
) -> usize {
    debug_assert!(q.len() >= TILE_ROWS * head_dim && s.len() >= ROWS * TILE_KEYS);
    for (index, panel) in panels.iter().enumerate() {
        let zero = [[isa.zero(); 1]; ROWS];
        // SAFETY: `ROWS` rows of queries and scores are there; a panel has `head_dim` vectors.
        unsafe {
            let rows: [_; ROWS] = std::array::from_fn(|r| q.as_ptr().add(r));
            let sums =
                accumulate::<I, f32, ROWS, 1, TILE_ROWS>(isa, zero, rows, panel.keys, LANES, 0, head_dim);
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
    Run { keys, run, .. }: Run,
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
                let rows: [_; ROWS] = std::array::from_fn(|r| p.as_ptr().add(r * TILE_KEYS + first));
                let (values, k) = (panels[first / LANES].values.add(col), run.min(keys - first));
                sums = accumulate::<I, f32, ROWS, 1, 1>(isa, sums, rows, values, v_dim, 0, k);
            }
            for (r, [sum]) in sums.into_iter().enumerate() {
                isa.store(o.as_mut_ptr().add(r * v_dim + col), sum);
            }
        }
    }
    ROWS
}

/// What is kept of a row between tiles.
pub(super) struct Running<'a> {
    /// The largest score.
    pub(super) max: &'a mut f32,
    /// The weights' sums by lane.
    pub(super) sum: &'a mut [f32; LANES],
    /// The output, `[v_dim]`, to be divided by the sum.
    pub(super) o: &'a mut [f32],
}

/// Turns a row's scores `s`, those of its first `PANELS` panels, into weights `e^(s - max)`, `max` being the largest so far, and rescales
/// what is summed if that grew.
#[inline(always)]
pub(super) fn weigh<I: Isa, const PANELS: usize>(
    isa: I,
    round: bool,
    s: &mut [f32; TILE_KEYS],
    running: Running<'_>,
) {
    // All in registers, for it is read twice.
    let groups = s.as_chunks_mut::<LANES>().0;
    let mut scores = [isa.zero(); PANELS];
    for (score, group) in scores.iter_mut().zip(&*groups) {
        *score = isa.vector(group);
    }
    let mut max = scores[0];
    for &score in &scores[1..] {
        max = isa.max(max, score);
    }
    let old = *running.max;
    let new = isa.reduce_max(max).max(old);
    // A row that has seen nothing yet keeps weights of exp(-inf) = 0, not NaN.
    let base = isa.splat(if new == f32::NEG_INFINITY { 0.0 } else { new });
    let mut sum = isa.zero();
    for (group, score) in groups.iter_mut().zip(scores) {
        let weight = isa.exp_of_loss(isa.sub(score, base));
        sum = isa.add(sum, weight);
        *group = isa.to_array(weight);
    }
    if round {
        s[..PANELS * LANES].iter_mut().for_each(|x| *x = round_to_bf16(*x));
    }
    let mut total = isa.vector(running.sum);
    if new != old {
        let factor = isa.exp_of_loss(isa.sub(isa.splat(old), base));
        total = isa.mul(total, factor);
        for group in running.o.as_chunks_mut::<LANES>().0 {
            *group = isa.to_array(isa.mul(isa.vector(group), factor));
        }
        *running.max = new;
    }
    *running.sum = isa.to_array(isa.add(total, sum));
}
