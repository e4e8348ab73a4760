//! Where the keys of prefill attention stand, what they are made of, and what is poison.

use tilewright_host::gpu::Driver;
use tilewright_reference::{AttentionProblem, Bound, PlainF16, attention, attention_lse, compare, round_f16};

use super::{
    attention::{Case as Base, Input},
    half::Half,
    mismatch,
};
use crate::{
    agreement::Scalar,
    harness::{Arena, Failure, Handle, POISON, same_bits},
    random::Random,
    shape::Shape,
};

/// An element of a query whose product with its negative in a key is out of all proportion: -1e30, as far as f16 goes. No power
/// of two, for which scaling the product would be exact.
fn deep(half: Half) -> f32 {
    1.5 * if half == Half::Bf16 { 2f32.powi(50) } else { 2f32.powi(15) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Each sequence begins with its first page.
    Paged,
    /// Sequences begin somewhere in their pages, the pages before that dead.
    Shifted,
    /// One page for all, sequences on end but for a few dead rows between.
    Contiguous,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub base: Base,
    pub half: Half,
    pub layout: Layout,
    /// Whether about half of the keys score -1e30 with every query.
    pub deep: bool,
}

impl Case {
    /// Equal sequences of a shape.
    pub fn shaped(shape: &mut Shape, head_dims: &[usize]) -> Case {
        let base = Base::shaped(shape, head_dims);
        let half =
            if shape.flag("f16", false, "half precision rather than bf16") { Half::F16 } else { Half::Bf16 };
        Case { base, half, layout: Layout::Paged, deep: false }
    }

    /// What a buffer is made of.
    pub fn scalar(&self, buffer: &str) -> Scalar {
        match (buffer, self.half) {
            ("lse", _) => Scalar::F32,
            ("counters", _) => Scalar::U32,
            (_, half) => half.scalar(),
        }
    }

    /// The values, as the oracle has them. NaN in every row that no query sees.
    pub fn input(&self) -> Input {
        let (mut input, mut random) = (self.base.input(), Random::new(!self.base.seed));
        if self.half == Half::F16 {
            [&mut input.q, &mut input.k, &mut input.v]
                .into_iter()
                .flatten()
                .for_each(|value| *value = round_f16(*value));
        }
        if self.deep {
            for query in input.q.chunks_mut(self.base.head_dim) {
                query[0] = deep(self.half);
            }
            // Their scores must be equal to the last bit, for they may be all that a query sees.
            for key in input.k.chunks_mut(self.base.head_dim).filter(|key| !key[0].is_nan()) {
                key[0] = 0.0;
                if random.below(2) == 0 {
                    key.fill(0.0);
                    key[0] = -deep(self.half);
                }
            }
        }
        self.poison_unseen(&mut input);
        input
    }

    fn poison_unseen(&self, input: &mut Input) {
        for (seq, &(queries, keys)) in self.base.seqs.iter().enumerate() {
            let seen: Vec<bool> = {
                let p = self.problem(input);
                let positions = (keys as i64 - queries as i64)..keys as i64;
                (0..keys).map(|key| positions.clone().any(|position| p.sees(position, key as i64))).collect()
            };
            for key in (0..keys).filter(|&key| !seen[key]) {
                for head in 0..self.base.kv_heads {
                    let at = self.paged_row(input, seq, key, head) * self.base.head_dim;
                    input.k[at..at + self.base.head_dim].fill(f32::NAN);
                    input.v[at..at + self.base.head_dim].fill(f32::NAN);
                }
            }
        }
    }

    fn problem<'a>(&self, input: &'a Input) -> AttentionProblem<'a> {
        let base = &self.base;
        AttentionProblem {
            q: &input.q,
            k_cache: &input.k,
            v_cache: &input.v,
            q_starts: &input.q_starts,
            kv_lens: &input.kv_lens,
            block_table: &input.block_table,
            block_table_stride: input.block_table_stride,
            page_size: base.page_size,
            q_heads: base.q_heads(),
            kv_heads: base.kv_heads,
            head_dim: base.head_dim,
            scale: base.scale(),
            softcap: base.softcap,
            causal: base.causal,
            window: base.window,
        }
    }

    /// The row of the oracle's cache that holds a key.
    fn paged_row(&self, input: &Input, seq: usize, key: usize, head: usize) -> usize {
        let page_size = self.base.page_size;
        let page = input.block_table[seq * input.block_table_stride + key / page_size] as usize;
        (page * self.base.kv_heads + head) * page_size + key % page_size
    }

    /// Compares outputs and log-sum-exps of all sequences with the oracle.
    pub fn compare(&self, name: &str, input: &Input, out: &[u8], lse: &[f32]) -> Result<(), Failure> {
        let (problem, shape) =
            (self.problem(input), [self.tokens(input), self.base.q_heads(), self.base.head_dim]);
        let truth = attention::<f64>(&problem);
        let plain = match self.half {
            Half::Bf16 => attention::<f32>(&problem),
            Half::F16 => attention::<PlainF16>(&problem).into_iter().map(|value| value.0).collect(),
        };
        let bound = Bound::from_plain(&shape, &truth, &plain, self.half.floor());
        compare(name, &self.half.decode(out), &truth, &bound).map_err(mismatch)?;
        // Nothing is rounded to 16 bits on the way: f32 sums of a few hundred products of a few units.
        let truth = attention_lse(&problem);
        let limit = |value: &f64| if value.is_finite() { 1e-5 + value.abs() / (1 << 20) as f64 } else { 0.0 };
        let bound = Bound { shape: shape[..2].to_vec(), limits: truth.iter().map(limit).collect() };
        compare(&format!("{name} lse"), lse, &truth, &bound).map_err(mismatch).map(drop)
    }

    fn tokens(&self, input: &Input) -> usize {
        input.q.len() / self.base.row_elems()
    }

    /// The keys and values as the device is given them.
    pub fn placed(&self, input: &Input) -> Placed {
        let mut random = Random::new(self.base.seed ^ 0x5eed);
        let lens = || self.base.seqs.iter().map(|&(_, keys)| keys);
        let mut starts = Vec::new();
        let (mut page_size, mut stride) = (self.base.page_size, 1);
        match self.layout {
            Layout::Paged => starts.resize(self.base.seqs.len(), 0),
            Layout::Shifted => starts.extend(lens().map(|_| random.below(2 * page_size + 1))),
            Layout::Contiguous => {
                let mut end = random.below(3);
                for keys in lens() {
                    starts.push(end);
                    end += keys + random.below(3);
                }
                page_size = end.max(1);
            }
        }
        let mut table = vec![u32::MAX; self.base.seqs.len()];
        let mut pages = 1;
        if self.layout == Layout::Contiguous {
            table.fill(0);
        } else {
            let ends = || starts.iter().zip(lens()).map(|(start, keys)| start + keys);
            stride = ends().map(|end| end.div_ceil(page_size)).max().unwrap_or(0).max(1);
            table = vec![u32::MAX; self.base.seqs.len() * stride];
            pages = starts
                .iter()
                .zip(ends())
                .map(|(start, end)| end.div_ceil(page_size) - start / page_size)
                .sum();
            let mut order = random.shuffled(pages).into_iter();
            for (row, (start, end)) in table.chunks_mut(stride).zip(starts.iter().zip(ends())) {
                let live = start / page_size..end.div_ceil(page_size);
                row[live].iter_mut().zip(order.by_ref()).for_each(|(entry, page)| *entry = page);
            }
        }
        let mut placed = Placed {
            k: vec![f32::NAN; pages * self.base.kv_heads * page_size * self.base.head_dim],
            v: Vec::new(),
            table,
            stride,
            page_size,
            pages,
            starts: starts.iter().map(|&start| start as u32).collect(),
        };
        placed.v = placed.k.clone();
        self.fill(input, &mut placed);
        placed
    }

    fn fill(&self, input: &Input, placed: &mut Placed) {
        let d = self.base.head_dim;
        for (seq, &(_, keys)) in self.base.seqs.iter().enumerate() {
            for (key, head) in (0..keys).flat_map(|key| (0..self.base.kv_heads).map(move |head| (key, head)))
            {
                let place = placed.starts[seq] as usize + key;
                let page = placed.table[seq * placed.stride + place / placed.page_size] as usize;
                let to =
                    ((page * self.base.kv_heads + head) * placed.page_size + place % placed.page_size) * d;
                let from = self.paged_row(input, seq, key, head) * d;
                placed.k[to..to + d].copy_from_slice(&input.k[from..from + d]);
                placed.v[to..to + d].copy_from_slice(&input.v[from..from + d]);
            }
        }
    }
}

/// A cache of live pages, NaN where no key stands.
pub struct Placed {
    k: Vec<f32>,
    v: Vec<f32>,
    /// By live page, `u32::MAX` where there is none.
    table: Vec<u32>,
    pub stride: usize,
    pub page_size: usize,
    pages: usize,
    starts: Vec<u32>,
}

impl Placed {
    /// Pages of the cache on the device, the dead ones round the live ones included.
    pub fn device_pages(&self, case: &Case) -> usize {
        case.base.first_page + 1 + self.pages + 1
    }
}

/// Fails unless `own` is `all` in the rows of `seq` and poison elsewhere.
pub fn only(
    what: &str,
    case: &Case,
    input: &Input,
    seq: usize,
    all: &[u8],
    own: &[u8],
) -> Result<(), Failure> {
    let row = all.len() / input.q_starts[case.base.seqs.len()].max(1) as usize;
    let rows = input.q_starts[seq] as usize * row..input.q_starts[seq + 1] as usize * row;
    let mut expected = vec![POISON; all.len()];
    expected[rows.clone()].copy_from_slice(&all[rows]);
    same_bits(what, &expected, own)
}

/// The device's side.
pub struct Uploaded {
    pub q: Handle,
    pub k_cache: Handle,
    pub v_cache: Handle,
    pub out: Handle,
    pub lse: Handle,
    pub seq_ids: Handle,
    pub q_starts: Handle,
    pub kv_lens: Handle,
    pub block_table: Handle,
    /// None where every sequence begins with its first page.
    pub kv_row_starts: Option<Handle>,
}

/// Uploads for a launch that serves `seq_ids`; the queries of other sequences are NaN, and so are `out` and `lse`.
pub fn upload<D: Driver>(
    arena: &mut Arena<'_, D>,
    case: &Case,
    input: &Input,
    placed: &Placed,
    seq_ids: &[u32],
) -> Result<Uploaded, Failure> {
    let row = case.base.row_elems();
    let mut q = vec![f32::NAN; input.q.len()];
    for &seq in seq_ids {
        let rows = input.q_starts[seq as usize] as usize..input.q_starts[seq as usize + 1] as usize;
        let elements = rows.start * row..rows.end * row;
        q[elements.clone()].copy_from_slice(&input.q[elements]);
    }
    // A dead page before and after the live ones, which nobody writes.
    let first = case.base.first_page + 1;
    let page_bytes = case.base.kv_heads * placed.page_size * case.base.head_dim * 2;
    let mut cache = |name, values: &[f32]| -> Result<Handle, Failure> {
        let handle = arena.alloc(name, (first + placed.pages + 1) * page_bytes)?;
        arena.write(handle, first * page_bytes, &case.half.encode(values))?;
        Ok(handle)
    };
    let (k_cache, v_cache) = (cache("k_cache", &placed.k)?, cache("v_cache", &placed.v)?);
    let live = |&page: &u32| if page == u32::MAX { page } else { page + first as u32 };
    let table: Vec<u32> = placed.table.iter().map(live).collect();
    let starts = case.layout != Layout::Paged;
    Ok(Uploaded {
        q: arena.input("q", &case.half.encode(&q))?,
        k_cache,
        v_cache,
        out: arena.poisoned("out", input.q.len() * 2)?,
        lse: arena.poisoned("lse", case.tokens(input) * case.base.q_heads() * 4)?,
        seq_ids: arena.input_u32("seq_ids", seq_ids)?,
        q_starts: arena.input_u32("q_starts", &input.q_starts)?,
        kv_lens: arena.input_u32("kv_lens", &input.kv_lens)?,
        block_table: arena.input_u32("block_table", &table)?,
        kv_row_starts: starts.then(|| arena.input_u32("kv_row_starts", &placed.starts)).transpose()?,
    })
}
