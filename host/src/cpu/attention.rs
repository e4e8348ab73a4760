//! Tiled attention with an online softmax, bit for bit the same for a query whichever queries are computed beside it.
//!
//! A task takes some queries of one sequence and all query heads of one key head through the keys, 64 at a time. Tiles are cut
//! at multiples of 64 from the sequence's first key and each key has its lane for good, so a query meets the same sums in the
//! same order in a prefill of any chunking and in decoding. Keys that another query of the task sees and this one doesn't have
//! weight exactly 0 and leave its maximum, sum and output as they were.
use std::cell::RefCell;

use super::attention_tile::{
    Panel, Run, Running, TILE_KEYS, TILE_PANELS, output_rows, query_at, score_rows, weigh,
};
use super::cache::{CpuCache, Layout, Stored};
use super::codes::Tile;
use super::isa::{Isa, Kernel, LANES, Level};
use super::layers::round_row;
use super::linear::TILE_ROWS;
use super::parallel::{self, Shared};
use super::seen::Seen;
use super::tensor::CpuTensor;
use crate::{AttentionSpec, Span};

/// Rows (queries times query heads of a key head) a task: tile, queries, scores and outputs fit a second-level cache.
const TASK_ROWS: usize = 96;
/// Rows from which on the next tile is fetched under the work on this one.
const AHEAD_ROWS: usize = 8 * TILE_ROWS;

/// Operands of [`attention`]; checked.
#[derive(Clone, Copy)]
pub(super) struct Args<'a> {
    pub(super) q: &'a CpuTensor,
    pub(super) cache: &'a CpuCache,
    pub(super) layer: usize,
    pub(super) spec: &'a AttentionSpec,
    pub(super) round: bool,
}

/// A task: queries `first..end` of a span against key head `kv_head`, for its query heads `heads`.
struct Task<'a> {
    span: &'a Span,
    kv_head: usize,
    heads: std::ops::Range<usize>,
    first: usize,
    end: usize,
}

/// Writes the attention of all spans to `out`.
pub(super) fn attention(level: Level, args: Args<'_>, spans: &[Span], out: &mut CpuTensor) {
    let kv_heads = args.cache.layout.spec.kv_heads;
    let group = args.spec.q_heads / kv_heads;
    let block = (TASK_ROWS / group).max(1);
    let mut tasks = Vec::new();
    let mut keys = 0;
    for span in spans {
        // The last queries see the most keys: longest tasks first.
        for end in (1..=span.query_len as usize).rev().step_by(block) {
            keys += span.kv_len as usize;
            for kv_head in 0..kv_heads {
                tasks.push(Task { span, kv_head, heads: 0..group, first: end.saturating_sub(block), end });
            }
        }
    }
    let (stride, out) = (out.stride(), out.shared());
    // A single query over few keys takes less time than waking a thread.
    let at_once = if keys < 64 && tasks.len() <= kv_heads { tasks.len() } else { 1 };
    parallel::run(tasks.len().div_ceil(at_once.max(1)), |index| {
        for task in tasks.iter().skip(index * at_once).take(at_once) {
            level.run(Attend { args, task, out, stride });
        }
    });
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

struct Attend<'a> {
    args: Args<'a>,
    task: &'a Task<'a>,
    out: Shared<f32>,
    stride: usize,
}

/// A task's working memory.
struct Work<'a> {
    /// As [`query_at`] has them, times the scores' scale.
    q: &'a mut [f32],
    /// `[rows, TILE_KEYS]`: scores, then weights.
    s: &'a mut [f32],
    /// `[rows, head_dim padded]`: unnormalised outputs.
    o: &'a mut [f32],
    /// `[rows]`: the largest score so far.
    max: &'a mut [f32],
    /// `[rows, 16]`: the weights' sums by lane.
    sum: &'a mut [f32],
    /// `[TILE_PANELS, head_dim, 16]`: gathered keys.
    k_tile: &'a mut [f32],
    /// `[TILE_KEYS, head_dim padded]`: gathered values.
    v_tile: &'a mut [f32],
}

impl<'a> Work<'a> {
    #[inline(always)]
    fn carve(scratch: &'a mut Vec<f32>, rows: usize, head_dim: usize, v_dim: usize) -> Self {
        let sizes = [
            rows.next_multiple_of(TILE_ROWS) * head_dim,
            rows * TILE_KEYS,
            rows * v_dim,
            rows,
            rows * LANES,
            TILE_KEYS * head_dim,
            TILE_KEYS * v_dim,
        ];
        let total = sizes.iter().sum();
        if scratch.len() < total {
            scratch.resize(total, 0.0);
        }
        let mut rest = &mut scratch[..];
        let [q, s, o, max, sum, k_tile, v_tile] = sizes.map(|size| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(size);
            rest = after;
            part
        });
        Work { q, s, o, max, sum, k_tile, v_tile }
    }

    /// The panels of gathered keys and values.
    #[inline(always)]
    fn gathered(&self, head_dim: usize, v_dim: usize) -> [Panel; TILE_PANELS] {
        std::array::from_fn(|index| Panel {
            keys: self.k_tile[index * LANES * head_dim..].as_ptr(),
            values: self.v_tile[index * LANES * v_dim..].as_ptr(),
        })
    }
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let layout = self.args.cache.layout;
        let (head_dim, v_dim) = (layout.spec.head_dim, layout.value_stride());
        let rows = (self.task.end - self.task.first) * self.task.heads.len();
        let mut scratch = SCRATCH.take();
        let mut work = Work::carve(&mut scratch, rows, head_dim, v_dim);
        self.load_queries(&mut work, rows, head_dim);
        work.max.fill(f32::NEG_INFINITY);
        work.sum.fill(0.0);
        work.o.fill(0.0);
        let seen =
            || (self.task.first..self.task.end).map(|query| Seen::of(self.task.span, self.args.spec, query));
        let start = seen().map(|seen| seen.from).min().unwrap_or(0);
        let end = seen().map(|seen| seen.to).max().unwrap_or(0);
        let mut tile = start / TILE_KEYS * TILE_KEYS;
        while tile < end {
            let keys = TILE_KEYS.min(end - tile);
            let (panels, run) = self.panels(layout, tile, keys, &mut work);
            let count = keys.div_ceil(LANES);
            // In a page, the next tile follows this one. A decode's few rows are no time to fetch it in.
            let ahead = run == TILE_KEYS && rows >= AHEAD_ROWS && tile + TILE_KEYS < end;
            let next = ahead.then_some(Panel {
                keys: panels[0].keys.wrapping_add(TILE_KEYS * head_dim),
                values: panels[0].values.wrapping_add(TILE_KEYS * v_dim),
            });
            self.scores(isa, &panels[..count], next, head_dim, rows, &mut work);
            self.weights(isa, tile, count, rows, v_dim, &mut work);
            self.outputs(isa, &panels[..count], Run { keys, run, next }, v_dim, rows, &mut work);
            tile += TILE_KEYS;
        }
        self.store(isa, rows, head_dim, v_dim, &work);
        SCRATCH.set(scratch);
    }
}

impl Attend<'_> {
    /// The index in tensors of `[tokens, q_heads, head_dim]` of a row of the task.
    #[inline(always)]
    fn head_at(&self, row: usize, stride: usize, head_dim: usize) -> usize {
        let (heads, task) = (self.task.heads.len(), self.task);
        let token = task.span.query_start as usize + task.first + row / heads;
        let group = self.args.spec.q_heads / self.args.cache.layout.spec.kv_heads;
        token * stride + (task.kv_head * group + task.heads.start + row % heads) * head_dim
    }

    #[inline(always)]
    fn load_queries(&self, work: &mut Work<'_>, rows: usize, head_dim: usize) {
        let (q, scale) = (self.args.q, self.args.spec.scale);
        for row in 0..rows {
            let q = &q.elems()[self.head_at(row, q.stride(), head_dim)..][..head_dim];
            let out = work.q[query_at(row, head_dim)..].iter_mut().step_by(TILE_ROWS);
            // Scaled here, once, and not with every score.
            out.zip(q).for_each(|(out, q)| *out = q * scale);
        }
    }

    /// Where the tile's panels are: in the cache where a page holds them whole, else gathered. And how many keys' values follow each
    /// other there: all of the tile's, or a panel's.
    #[inline(always)]
    fn panels(
        &self,
        layout: Layout,
        tile: usize,
        keys: usize,
        work: &mut Work<'_>,
    ) -> ([Panel; TILE_PANELS], usize) {
        let (head_dim, v_dim) = (layout.spec.head_dim, layout.value_stride());
        let (page_size, head) = (layout.spec.page_size, self.task.kv_head);
        let pages = &self.task.span.pages;
        let (cached_k, cached_v) = match &self.args.cache.layers[self.args.layer] {
            Stored::F32 { keys, values } => (keys, values),
            Stored::Codes { keys: k, values } => {
                let codes = Tile { layout, keys: k, values, head, pages, tile: tile..tile + keys };
                codes.widen(work.k_tile, work.v_tile);
                return (work.gathered(head_dim, v_dim), TILE_KEYS);
            }
        };
        let mut panels = [None; TILE_PANELS];
        for (index, panel) in panels.iter_mut().enumerate().take(keys.div_ceil(LANES)) {
            let key = tile + index * LANES;
            let end = (key + LANES).min(tile + keys);
            let (page, offset) = (key / page_size, key % page_size);
            if offset.is_multiple_of(LANES) && (end - 1) / page_size == page {
                let page = pages[page] as usize;
                *panel = Some(Panel {
                    keys: cached_k[layout.key_panel(page, head, offset)..].as_ptr(),
                    values: cached_v[layout.value(page, head, offset)..].as_ptr(),
                });
                continue;
            }
            for key in key..end {
                let (page, offset) = (pages[key / page_size] as usize, key % page_size);
                let k_at = layout.key_panel(page, head, offset) + offset % LANES;
                let k_out = &mut work.k_tile[index * LANES * head_dim + key % LANES..];
                for i in 0..head_dim {
                    k_out[i * LANES] = cached_k[k_at + i * LANES];
                }
                let v_out = &mut work.v_tile[(key - tile) * v_dim..][..v_dim];
                v_out.copy_from_slice(&cached_v[layout.value(page, head, offset)..][..v_dim]);
            }
        }
        let gathered = work.gathered(head_dim, v_dim);
        let one_page = tile / page_size == (tile + keys - 1) / page_size;
        let together = panels[0].is_some() && one_page || panels.iter().all(Option::is_none);
        let panels = std::array::from_fn(|index| panels[index].unwrap_or(gathered[index]));
        (panels, if together { TILE_KEYS } else { LANES })
    }

    /// `s = q * k^T` for the panels.
    #[inline(always)]
    fn scores<I: Isa>(
        &self,
        isa: I,
        panels: &[Panel],
        next: Option<Panel>,
        head_dim: usize,
        rows: usize,
        work: &mut Work<'_>,
    ) {
        let mut row = 0;
        while row < rows {
            if let Some(Panel { keys, .. }) = next {
                let bytes = TILE_KEYS * head_dim * size_of::<f32>();
                isa.prefetch_part(keys.cast(), bytes, row / TILE_ROWS, rows.div_ceil(TILE_ROWS));
            }
            let q = &work.q[query_at(row, head_dim)..];
            let s = &mut work.s[row * TILE_KEYS..];
            row += match rows - row {
                1 => score_rows::<I, 1>(isa, panels, head_dim, q, s),
                2 => score_rows::<I, 2>(isa, panels, head_dim, q, s),
                3 => score_rows::<I, 3>(isa, panels, head_dim, q, s),
                4 => score_rows::<I, 4>(isa, panels, head_dim, q, s),
                5 => score_rows::<I, 5>(isa, panels, head_dim, q, s),
                _ => score_rows::<I, TILE_ROWS>(isa, panels, head_dim, q, s),
            };
        }
    }

    /// Turns scores into weights and rescales what was summed so far.
    #[inline(always)]
    fn weights<I: Isa>(
        &self,
        isa: I,
        tile: usize,
        panels: usize,
        rows: usize,
        v_dim: usize,
        work: &mut Work<'_>,
    ) {
        let (heads, round) = (self.task.heads.len(), self.args.round);
        for first in (0..rows).step_by(heads) {
            let seen = Seen::of(self.task.span, self.args.spec, self.task.first + first / heads);
            let whole = self.args.spec.softcap.is_none() && seen.all(tile..tile + panels * LANES);
            for row in first..first + heads {
                let s = &mut work.s.as_chunks_mut::<TILE_KEYS>().0[row];
                if !whole {
                    for (panel, group) in
                        s[..panels * LANES].as_chunks_mut::<LANES>().0.iter_mut().enumerate()
                    {
                        let masked = self.masked(isa, isa.vector(group), tile + panel * LANES, &seen);
                        *group = isa.to_array(masked);
                    }
                }
                let running = Running {
                    max: &mut work.max[row],
                    sum: &mut work.sum.as_chunks_mut::<LANES>().0[row],
                    o: &mut work.o[row * v_dim..][..v_dim],
                };
                match panels {
                    1 => weigh::<I, 1>(isa, round, s, running),
                    2 => weigh::<I, 2>(isa, round, s, running),
                    3 => weigh::<I, 3>(isa, round, s, running),
                    _ => weigh::<I, TILE_PANELS>(isa, round, s, running),
                }
            }
        }
    }

    /// Scores capped, -inf where key `first + lane` isn't seen.
    #[inline(always)]
    fn masked<I: Isa>(&self, isa: I, mut v: I::V, first: usize, seen: &Seen) -> I::V {
        const INDEX: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
        if let Some(cap) = self.args.spec.softcap {
            v = isa.mul(isa.splat(cap), isa.tanh(isa.div(v, isa.splat(cap))));
        }
        let Seen { from, to, .. } = *seen;
        if from > first || to < first + LANES {
            let lane = isa.vector(&INDEX);
            let hidden = isa.splat(f32::NEG_INFINITY);
            // At most 16, so exact as floats.
            let from = isa.splat(from.saturating_sub(first).min(LANES) as f32);
            let to = isa.splat(to.saturating_sub(first).min(LANES) as f32);
            v = isa.select_lt(lane, from, hidden, isa.select_lt(lane, to, v, hidden));
        }
        if first + LANES > seen.drafts_start {
            let mut lanes = isa.to_array(v);
            seen.hide_drafts(first, &mut lanes);
            v = isa.vector(&lanes);
        }
        v
    }

    /// `o += weights * v`.
    #[inline(always)]
    fn outputs<I: Isa>(
        &self,
        isa: I,
        panels: &[Panel],
        run: Run,
        v_dim: usize,
        rows: usize,
        work: &mut Work<'_>,
    ) {
        let mut row = 0;
        while row < rows {
            if let Some(Panel { values, .. }) = run.next {
                let bytes = TILE_KEYS * v_dim * size_of::<f32>();
                isa.prefetch_part(values.cast(), bytes, row / TILE_ROWS, rows.div_ceil(TILE_ROWS));
            }
            let p = &work.s[row * TILE_KEYS..];
            let o = &mut work.o[row * v_dim..];
            row += match rows - row {
                1 => output_rows::<I, 1>(isa, panels, run, v_dim, p, o),
                2 => output_rows::<I, 2>(isa, panels, run, v_dim, p, o),
                3 => output_rows::<I, 3>(isa, panels, run, v_dim, p, o),
                4 => output_rows::<I, 4>(isa, panels, run, v_dim, p, o),
                5 => output_rows::<I, 5>(isa, panels, run, v_dim, p, o),
                _ => output_rows::<I, TILE_ROWS>(isa, panels, run, v_dim, p, o),
            };
        }
    }

    #[inline(always)]
    fn store<I: Isa>(&self, isa: I, rows: usize, head_dim: usize, v_dim: usize, work: &Work<'_>) {
        for row in 0..rows {
            // SAFETY: each query head of each token is one task's.
            let out = unsafe { self.out.slice(self.head_at(row, self.stride, head_dim), head_dim) };
            let sum = isa.reduce_sum(isa.vector(&work.sum.as_chunks::<LANES>().0[row]));
            let o = &work.o[row * v_dim..][..head_dim];
            for (out, o) in out.iter_mut().zip(o) {
                *out = if sum == 0.0 { 0.0 } else { o / sum };
            }
            round_row(out, self.args.round);
        }
    }
}
