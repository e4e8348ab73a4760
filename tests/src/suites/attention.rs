//! What the attention suites share: ragged batches over a paged cache whose dead parts are poison.

use proptest::{collection::vec, prelude::*, sample::select};

use super::sizes;
use crate::{random::Random, shape::Shape};

#[derive(Debug, Clone)]
pub struct Case {
    pub head_dim: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub page_size: usize,
    /// Queries and keys of each sequence.
    pub seqs: Vec<(usize, usize)>,
    pub causal: bool,
    pub window: u32,
    pub softcap: f32,
    /// Added to every page, so that offsets in the cache pass 2^31.
    pub first_page: usize,
    pub seed: u64,
}

/// Sequences of `queries` queries over up to `most_keys` keys.
pub fn cases(queries: BoxedStrategy<usize>, most_keys: usize) -> BoxedStrategy<Case> {
    let shape = (select(vec![64usize, 128]), 1..3usize, 1..9usize, select(vec![1usize, 8, 16, 64, 100]));
    let before = prop_oneof![1 => Just(0), 4 => sizes(64, most_keys)];
    let seqs = vec((queries, before), 1..4);
    let window = prop_oneof![2 => Just(0u32), 1 => 1..5u32, 1 => 60..70u32, 1 => 1..200u32];
    let softcap = prop_oneof![3 => Just(0.0f32), 1 => Just(5.0)];
    (shape, seqs, any::<bool>(), window, softcap, any::<u64>())
        .prop_map(|((head_dim, kv_heads, group, page_size), seqs, causal, window, softcap, seed)| {
            let seqs = seqs.into_iter().map(|(queries, before)| (queries, queries + before)).collect();
            Case { head_dim, kv_heads, group, page_size, seqs, causal, window, softcap, first_page: 0, seed }
        })
        .boxed()
}

/// A case's tensors on the host. Rows of the cache are compact: live pages only.
pub struct Input {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub q_starts: Vec<u32>,
    pub kv_lens: Vec<u32>,
    /// By live page.
    pub block_table: Vec<u32>,
    pub block_table_stride: usize,
}

impl Case {
    /// Equal sequences of a shape.
    pub fn shaped(shape: &mut Shape, head_dims: &[usize]) -> Case {
        let seqs = shape.size("seqs", 1, 1, "sequences");
        let keys = shape.size("keys", 256, 1, "keys of each sequence, its queries' own among them");
        let queries = shape.size("queries", 64, 1, "queries of each sequence");
        let head_dim = shape.one_of("head_dim", 128, head_dims, "size of a head");
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
            seqs: vec![(queries, keys); if fits { seqs } else { 0 }],
            causal: shape.flag("causal", true, "whether a query sees no later key"),
            window: shape.count("window", 0, "keys that a query sees; 0 for all") as u32,
            softcap: shape.number("softcap", 0.0, "limit of the scores; 0 for none"),
            first_page: 0,
            seed: shape.inputs(),
        }
    }

    pub fn q_heads(&self) -> usize {
        self.kv_heads * self.group
    }

    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// bf16 of one query row.
    pub fn row_elems(&self) -> usize {
        self.q_heads() * self.head_dim
    }

    fn page_elems(&self) -> usize {
        self.kv_heads * self.page_size * self.head_dim
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
        let mut input = Input {
            q: random.bf16s(tokens * self.row_elems(), 1.5),
            k: random.bf16s(live_pages * self.page_elems(), 1.0),
            v: random.bf16s(live_pages * self.page_elems(), 1.0),
            q_starts,
            kv_lens: self.seqs.iter().map(|&(_, keys)| keys as u32).collect(),
            block_table,
            block_table_stride: stride,
        };
        self.poison_tails(&mut input);
        input
    }

    /// NaN in what a sequence's last page holds past its last key.
    fn poison_tails(&self, input: &mut Input) {
        for (seq, &(_, keys)) in self.seqs.iter().enumerate() {
            for key in keys..keys.next_multiple_of(self.page_size) {
                let page = input.block_table[seq * input.block_table_stride + key / self.page_size] as usize;
                for head in 0..self.kv_heads {
                    let row = (page * self.kv_heads + head) * self.page_size + key % self.page_size;
                    let elements = row * self.head_dim..(row + 1) * self.head_dim;
                    input.k[elements.clone()].fill(f32::NAN);
                    input.v[elements].fill(f32::NAN);
                }
            }
        }
    }
}
