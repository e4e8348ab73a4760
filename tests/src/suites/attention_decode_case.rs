//! Cases of decode attention: ragged batches of drafts over paged caches of every format, whose dead parts are poison.

use proptest::{collection::vec, prelude::*, sample::select};
use tilewright_kernels::{
    abi::{KV_BF16, KV_FP8, KV_INT8},
    attention_decode::row_bytes,
};
use tilewright_reference::{
    AttentionProblem, Bound, Floor, Real, attention, attention_tree, compare, round_bf16,
};

use super::{mismatch, sizes};
use crate::{
    harness::{Failure, bf16_bytes},
    random::Random,
    shape::Shape,
};

#[derive(Debug, Clone)]
pub struct Case {
    pub head_dim: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub page_size: usize,
    pub format: u32,
    /// Queries and keys of each sequence.
    pub seqs: Vec<(usize, usize)>,
    /// Whether drafts form a tree.
    pub tree: bool,
    pub window: u32,
    pub softcap: f32,
    /// Whether every score is about -1e30.
    pub deep: bool,
    /// Whether the scales of values lie 40 powers of two apart.
    pub wide_scales: bool,
    /// Added to every page, so that offsets in the cache pass 2^31.
    pub first_page: usize,
    pub seed: u64,
}

/// Random cases: most sequences short, some of several chunks.
pub fn cases() -> BoxedStrategy<Case> {
    let page_size = select(vec![1usize, 8, 16, 16, 32, 64, 128, 7, 100]);
    let format = select(vec![KV_BF16, KV_BF16, KV_INT8, KV_FP8]);
    let shape = (select(vec![64usize, 128]), 1..3usize, 1..10usize, page_size, format);
    let queries = prop_oneof![2 => Just(1usize), 2 => 1..6usize, 1 => 6..17usize];
    let before = prop_oneof![1 => Just(0), 5 => sizes(64, 300), 2 => 500..530usize, 2 => 530..900usize];
    let seqs =
        prop_oneof![9 => vec((queries.clone(), before), 1..4), 1 => vec((queries, 0..20usize), 30..40)];
    let window = prop_oneof![3 => Just(0u32), 1 => 1..20u32, 1 => 60..70u32, 1 => 1..700u32];
    let softcap = prop_oneof![3 => Just(0.0f32), 1 => Just(5.0)];
    let flags = (any::<bool>(), proptest::bool::weighted(0.25));
    (shape, seqs, flags, window, softcap, any::<u64>())
        .prop_map(|((head_dim, kv_heads, group, page_size, format), seqs, flags, window, softcap, seed)| {
            let (tree, wide_scales) = flags;
            let seqs = seqs.into_iter().map(|(queries, before)| (queries, queries + before)).collect();
            let case = Case { head_dim, kv_heads, group, page_size, format, ..Case::plain() };
            Case { seqs, tree, wide_scales, window, softcap, seed, ..case }
        })
        .boxed()
}

/// A case's tensors on the host. Rows of the cache are compact: live pages only.
pub struct Input {
    pub q: Vec<f32>,
    /// What the cache means.
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    /// The cache as it lies in memory.
    pub k_bytes: Vec<u8>,
    pub v_bytes: Vec<u8>,
    pub k_scales: Vec<f32>,
    pub v_scales: Vec<f32>,
    pub q_starts: Vec<u32>,
    pub kv_lens: Vec<u32>,
    /// By query row. Bits that mean nothing are random.
    pub masks: Vec<u32>,
    /// By live page.
    pub block_table: Vec<u32>,
    pub block_table_stride: usize,
}

/// One of key and value.
struct Plane {
    values: Vec<f32>,
    bytes: Vec<u8>,
    scales: Vec<f32>,
}

/// The value of an e4m3 that is no NaN.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let magnitude =
        if exponent == 0 { mantissa * 2f32.powi(-6) } else { (1.0 + mantissa) * 2f32.powi(exponent - 7) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

impl Case {
    /// Equal sequences of a shape.
    pub fn shaped(shape: &mut Shape) -> Case {
        let seqs = shape.size("seqs", 1, 1, "sequences");
        let keys = shape.size("keys", 256, 1, "keys of each sequence, its queries' own among them");
        let queries = shape.size("queries", 1, 1, "queries of each sequence, at most 16");
        if queries > 16 {
            shape.refuse(format!("queries: expected at most 16, found {queries}"));
        }
        let formats = [KV_BF16, KV_INT8, KV_FP8].map(|format| format as usize);
        let head_dim = shape.one_of("head_dim", 128, &[64, 128], "size of a head");
        let kv_heads = shape.size("kv_heads", 2, 1, "key heads");
        let group = shape.size("group", 4, 1, "query heads a key head");
        let page_size = shape.size("page_size", 16, 1, "tokens a page");
        let fits = shape.fits(&[
            ("queries and out", &[2, seqs, queries, group, kv_heads, head_dim]),
            ("keys and values", &[2, seqs, keys.next_multiple_of(page_size), kv_heads, head_dim]),
        ]);
        Case {
            head_dim,
            kv_heads,
            group,
            page_size,
            format: shape.one_of("format", 0, &formats, "cache of bf16 (0), int8 (1) or fp8 (2)") as u32,
            seqs: vec![(queries.min(16), keys); if fits { seqs } else { 0 }],
            tree: shape.flag("tree", false, "whether the queries are drafts of a tree"),
            window: shape.count("window", 0, "keys that a query sees; 0 for all") as u32,
            softcap: shape.number("softcap", 0.0, "limit of the scores; 0 for none"),
            seed: shape.inputs(),
            ..Case::plain()
        }
    }

    /// One query over one key.
    pub fn plain() -> Case {
        Case {
            head_dim: 64,
            kv_heads: 1,
            group: 1,
            page_size: 16,
            format: KV_BF16,
            seqs: vec![(1, 1)],
            tree: false,
            window: 0,
            softcap: 0.0,
            deep: false,
            wide_scales: false,
            first_page: 0,
            seed: 1,
        }
    }

    pub fn q_heads(&self) -> usize {
        self.kv_heads * self.group
    }

    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Elements of one query row.
    pub fn row_elems(&self) -> usize {
        self.q_heads() * self.head_dim
    }

    /// Rows of the cache in a page.
    pub fn page_rows(&self) -> usize {
        self.kv_heads * self.page_size
    }

    pub fn row_bytes(&self) -> usize {
        row_bytes(self.format, self.head_dim as u32) as usize
    }

    pub fn input(&self) -> Input {
        let mut random = Random::new(self.seed);
        let mut q_starts = vec![0u32];
        for &(queries, _) in &self.seqs {
            q_starts.push(q_starts[q_starts.len() - 1] + queries as u32);
        }
        let pages: Vec<usize> = self.seqs.iter().map(|&(_, keys)| keys.div_ceil(self.page_size)).collect();
        let (live_pages, stride) = (pages.iter().sum(), pages.iter().copied().max().unwrap_or(0).max(1));
        let mut order = random.shuffled(live_pages).into_iter();
        let mut block_table = vec![u32::MAX; self.seqs.len() * stride];
        for (row, &count) in block_table.chunks_mut(stride).zip(&pages) {
            row.iter_mut().zip(order.by_ref().take(count)).for_each(|(entry, page)| *entry = page);
        }
        let tokens = q_starts[q_starts.len() - 1] as usize;
        let mut q = random.bf16s(tokens * self.row_elems(), 1.5);
        let rows = live_pages * self.page_rows();
        let k = self.plane(&mut random, rows, self.deep, false);
        let v = self.plane(&mut random, rows, false, self.wide_scales);
        if self.deep {
            q.chunks_mut(self.head_dim).for_each(|head| head[0] = 8e28);
        }
        let masks = self.masks(&mut random);
        let mut input = Input {
            q,
            k: k.values,
            v: v.values,
            k_bytes: k.bytes,
            v_bytes: v.bytes,
            k_scales: k.scales,
            v_scales: v.scales,
            q_starts,
            kv_lens: self.seqs.iter().map(|&(_, keys)| keys as u32).collect(),
            masks,
            block_table,
            block_table_stride: stride,
        };
        self.poison(&mut input);
        input
    }

    /// Random rows of the cache. `deep` ones have the same large negative first element, `wide` ones scales of any size.
    fn plane(&self, random: &mut Random, rows: usize, deep: bool, wide: bool) -> Plane {
        let mut plane = Plane { values: Vec::new(), bytes: Vec::new(), scales: Vec::new() };
        for _ in 0..rows {
            if self.format == KV_BF16 {
                let mut row = random.bf16s(self.head_dim, 1.0);
                if deep {
                    row[0] = -100.0;
                }
                plane.bytes.extend(bf16_bytes(&row));
                plane.values.extend(row);
                continue;
            }
            let zero = !deep && random.below(16) == 0;
            let scale = if zero {
                0.0
            } else if deep {
                0.5
            } else {
                let power = if wide { random.below(41) as i32 - 20 } else { 0 };
                0.01 * (1.0 + random.uniform()) * 2f32.powi(power)
            };
            for element in 0..self.head_dim {
                let (code, value) = self.element(random, deep && element == 0, zero);
                plane.bytes.push(code);
                plane.values.push(value * scale);
            }
            plane.scales.push(scale);
        }
        plane
    }

    /// A code of a quantised format and what it means.
    fn element(&self, random: &mut Random, lowest: bool, zero: bool) -> (u8, f32) {
        if self.format == KV_INT8 {
            let value = if lowest { -127 } else { random.below(255) as i32 - 127 };
            let value = if zero { 0 } else { value as i8 };
            return (value as u8, f32::from(value));
        }
        // Every finite code, subnormals and both zeros too; 0x7f and 0xff are NaN.
        let code = if lowest { 0xfe } else { random.below(127) as u8 | (random.below(2) as u8) << 7 };
        let code = if zero { code & 0x80 } else { code };
        (code, e4m3(code))
    }

    /// The drafts that each query sees: those up to its own, or its ancestors in a random tree. Its own bit may be missing: a
    /// query sees itself all the same.
    fn masks(&self, random: &mut Random) -> Vec<u32> {
        let mut masks = Vec::new();
        for &(queries, _) in &self.seqs {
            let mut seen: Vec<u32> = Vec::new();
            for query in 0..queries {
                let before = match random.below(query + 1) {
                    _ if !self.tree => (1 << query) - 1,
                    0 => 0,
                    parent => seen[parent - 1],
                };
                seen.push(1 << query | before);
                let own = (random.below(2) as u32) << query;
                masks.push(own | before | (random.bits() as u32) << queries);
            }
        }
        masks
    }

    /// NaN in what no query sees: past a sequence's last key, and before the first query's window; of quantised caches in the
    /// scale, and nonsense in the codes. Pages that are all before the window are in the table no more.
    fn poison(&self, input: &mut Input) {
        let (elems, bytes) = (self.head_dim, self.row_bytes());
        for (seq, &(queries, keys)) in self.seqs.iter().enumerate() {
            let hidden =
                if self.window == 0 { 0 } else { (keys + 1).saturating_sub(queries + self.window as usize) };
            let table = &mut input.block_table[seq * input.block_table_stride..];
            let pages: Vec<u32> = table[..keys.div_ceil(self.page_size)].to_vec();
            table[..hidden / self.page_size].fill(u32::MAX);
            for key in (0..hidden).chain(keys..keys.next_multiple_of(self.page_size)) {
                let page = pages[key / self.page_size] as usize;
                for head in 0..self.kv_heads {
                    let row = (page * self.kv_heads + head) * self.page_size + key % self.page_size;
                    for values in [&mut input.k, &mut input.v] {
                        values[row * elems..(row + 1) * elems].fill(f32::NAN);
                    }
                    for codes in [&mut input.k_bytes, &mut input.v_bytes] {
                        codes[row * bytes..(row + 1) * bytes].fill(0xff);
                    }
                    for scales in [&mut input.k_scales, &mut input.v_scales] {
                        scales.get_mut(row).into_iter().for_each(|scale| *scale = f32::NAN);
                    }
                }
            }
        }
    }

    /// Compares all rows with the oracle, for which a quantised cache is what it means.
    pub fn compare(&self, input: &Input, actual: &[f32]) -> Result<(), Failure> {
        let problem = AttentionProblem {
            q: &input.q,
            k_cache: &input.k,
            v_cache: &input.v,
            q_starts: &input.q_starts,
            kv_lens: &input.kv_lens,
            block_table: &input.block_table,
            block_table_stride: input.block_table_stride,
            page_size: self.page_size,
            q_heads: self.q_heads(),
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scale(),
            softcap: self.softcap,
            causal: true,
            window: self.window,
        };
        // Of a quantised cache the plain computation makes bf16, which it stores; the truth is what the cache means.
        let stored = |values: &[f32]| values.iter().copied().map(round_bf16).collect::<Vec<f32>>();
        let (k, v) = (stored(&input.k), stored(&input.v));
        let plain = AttentionProblem { k_cache: &k, v_cache: &v, ..problem };
        let truth = self.oracle::<f64>(&problem, input);
        let plain = self.oracle::<f32>(&plain, input);
        let shape = [input.q.len() / self.row_elems(), self.q_heads(), self.head_dim];
        let mut bound = Bound::from_plain(&shape, &truth, &plain, Floor::BF16);
        if self.format != KV_BF16 {
            // The kernel rounds a weight times its value's scale, where the plain computation may have weights that bf16 holds:
            // half a unit in the last place of every term.
            let magnitudes: Vec<f32> = input.v.iter().map(|v| v.abs()).collect();
            let terms = self.oracle::<f64>(&AttentionProblem { v_cache: &magnitudes, ..problem }, input);
            bound.limits.iter_mut().zip(&terms).for_each(|(limit, terms)| *limit += terms / 512.0);
        }
        compare("attention_decode", actual, &truth, &bound).map_err(mismatch).map(drop)
    }

    fn oracle<R: Real>(&self, problem: &AttentionProblem<'_>, input: &Input) -> Vec<R> {
        if self.tree { attention_tree(problem, &input.masks) } else { attention(problem) }
    }
}
