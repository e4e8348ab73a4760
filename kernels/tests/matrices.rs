//! Smoke checks of the tensor-core kernels under the emulator. The property tests live in the workspace's `tests`.

mod common;

use common::{Bench, Noise, assert_close};
use tilewright_kernels::{
    abi::*,
    attention_decode::{self, split::Rule},
    attention_prefill, gemm_bf16,
};

#[test]
fn gemm_tiles_agree_bit_for_bit_and_with_the_definition() {
    for (m, n, k, out_f32, extras) in [
        (17usize, 33usize, 72usize, 1u32, true),
        (70, 66, 40, 1, false),
        (130, 134, 200, 0, true),
        (1, 1, 8, 0, false),
        (5, 64, 264, 0, false),
    ] {
        let mut noise = Noise::new((m * n) as u64);
        let (a, w) = (noise.bf16s(m * k), noise.bf16s(n * k));
        let (bias, residual) = (noise.f32s(n), noise.bf16s(m * n));
        let mut b = Bench::new();
        let params = Gemm {
            a: b.bf16(&a),
            w: b.bf16(&w),
            bias: if extras { b.words(&bias) } else { 0 },
            residual: if extras { b.bf16(&residual) } else { 0 },
            out: 0,
            m: m as u32,
            n: n as u32,
            k: k as u32,
            out_f32,
        };
        let want: Vec<f32> = (0..m * n)
            .map(|i| {
                let (row, col) = (i / n, i % n);
                let dot: f64 = (0..k).map(|x| f64::from(a[row * k + x]) * f64::from(w[col * k + x])).sum();
                dot as f32 + if extras { bias[col] + residual[i] } else { 0.0 }
            })
            .collect();
        let mut first: Option<Vec<f32>> = None;
        for tile in &gemm_bf16::TILES {
            let grid = [params.n.div_ceil(tile.block_n), params.m.div_ceil(tile.block_m), 1];
            let out = b.empty(m * n * if out_f32 == 1 { 4 } else { 2 });
            let report = b.launch_once(tile.spec, grid, Gemm { out, ..params });
            assert_eq!(report.bank_conflicts, 0, "{}", tile.spec.name);
            let got = if out_f32 == 1 { b.read::<f32>(out, m * n) } else { b.read_bf16(out, m * n) };
            assert_close(tile.spec.name, &got, &want, if out_f32 == 1 { 1e-5 } else { 0.005 });
            let expected = first.get_or_insert_with(|| got.clone());
            assert!(got.iter().zip(&*expected).all(|(g, e)| g.to_bits() == e.to_bits()), "{m} {n} {k}");
        }
    }
}

/// A ragged batch over a paged cache whose unused tokens and pages are NaN.
struct Batch {
    head_dim: usize,
    q_heads: usize,
    kv_heads: usize,
    page_size: usize,
    /// Queries and keys of each sequence.
    lens: Vec<(usize, usize)>,
    causal: bool,
    window: usize,
    softcap: f32,
}

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    q_starts: Vec<u32>,
    kv_lens: Vec<u32>,
    table: Vec<u32>,
    stride: usize,
}

impl Batch {
    fn visible(&self, position: i64, key: i64) -> bool {
        let w = self.window as i64;
        (!self.causal || key <= position)
            && (w == 0 || (key + w > position && (self.causal || key < position + w)))
    }

    /// Whether any query of the sequence sees the key.
    fn live(&self, seq: usize, key: usize) -> bool {
        let (q, kv) = self.lens[seq];
        (0..q).any(|i| self.visible(kv as i64 - q as i64 + i as i64, key as i64))
    }

    fn inputs(&self) -> Inputs {
        let mut noise = Noise::new(self.head_dim as u64 + self.window as u64);
        let stride = self.lens.iter().map(|l| l.1.div_ceil(self.page_size)).max().unwrap_or(0).max(1);
        // A third of the pages belong to nobody; each sequence takes every third page, backwards.
        let pages = self.lens.len() * stride * 3 / 2 + 1;
        let mut table = vec![u32::MAX; self.lens.len() * stride];
        let elems = pages * self.kv_heads * self.page_size * self.head_dim;
        let (mut k, mut v) = (vec![f32::NAN; elems], vec![f32::NAN; elems]);
        let mut next = pages;
        let (mut q_starts, mut kv_lens) = (vec![0u32], vec![]);
        for (seq, &(q, kv)) in self.lens.iter().enumerate() {
            q_starts.push(q_starts[seq] + q as u32);
            kv_lens.push(kv as u32);
            for key in 0..kv {
                if !self.live(seq, key) {
                    continue;
                }
                let entry = &mut table[seq * stride + key / self.page_size];
                if *entry == u32::MAX {
                    next -= 1;
                    *entry = next as u32;
                }
                for head in 0..self.kv_heads {
                    let page = *entry as usize * self.kv_heads + head;
                    let at = (page * self.page_size + key % self.page_size) * self.head_dim;
                    k[at..at + self.head_dim].copy_from_slice(&noise.bf16s(self.head_dim));
                    v[at..at + self.head_dim].copy_from_slice(&noise.bf16s(self.head_dim));
                }
            }
        }
        let tokens = *q_starts.last().unwrap() as usize;
        let q = noise.bf16s(tokens * self.q_heads * self.head_dim).iter().map(|x| x * 2.0).collect();
        Inputs { q, k, v, q_starts, kv_lens, table, stride }
    }

    fn expected(&self, x: &Inputs) -> Vec<f32> {
        let d = self.head_dim;
        let mut out = vec![];
        for (seq, &(q, kv)) in self.lens.iter().enumerate() {
            for i in 0..q {
                for head in 0..self.q_heads {
                    let query = &x.q[((x.q_starts[seq] as usize + i) * self.q_heads + head) * d..][..d];
                    let keys: Vec<usize> = (0..kv)
                        .filter(|&j| self.visible((kv + i) as i64 - q as i64, j as i64))
                        .map(|j| {
                            let page = x.table[seq * x.stride + j / self.page_size] as usize;
                            let kv_head = head / (self.q_heads / self.kv_heads);
                            ((page * self.kv_heads + kv_head) * self.page_size + j % self.page_size) * d
                        })
                        .collect();
                    let scores: Vec<f64> = keys
                        .iter()
                        .map(|&at| {
                            let dot: f64 = (0..d).map(|e| f64::from(query[e]) * f64::from(x.k[at + e])).sum();
                            let s = dot * f64::from(self.scale());
                            let cap = f64::from(self.softcap);
                            if cap == 0.0 { s } else { cap * (s / cap).tanh() }
                        })
                        .collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                    out.extend((0..d).map(|e| {
                        let o: f64 = keys
                            .iter()
                            .zip(&scores)
                            .map(|(&at, s)| (s - max).exp() * f64::from(x.v[at + e]))
                            .sum();
                        if keys.is_empty() { 0.0 } else { (o / sum) as f32 }
                    }));
                }
            }
        }
        out
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn seqs(&self) -> u32 {
        self.lens.len() as u32
    }

    fn pick(&self, hd64: &'static KernelSpec, hd128: &'static KernelSpec) -> &'static KernelSpec {
        if self.head_dim == 64 { hd64 } else { hd128 }
    }

    fn check_prefill(&self) {
        let x = self.inputs();
        let mut b = Bench::new();
        let seq_ids: Vec<u32> = (0..self.seqs()).rev().collect();
        let params = AttentionPrefill {
            q: b.bf16(&x.q),
            k_cache: b.bf16(&x.k),
            v_cache: b.bf16(&x.v),
            out: b.empty(x.q.len() * 2),
            seq_ids: b.words(&seq_ids),
            q_starts: b.words(&x.q_starts),
            kv_lens: b.words(&x.kv_lens),
            block_table: b.words(&x.table),
            lse: 0,
            kv_row_starts: 0,
            block_table_stride: x.stride as u32,
            page_size: self.page_size as u32,
            q_heads: self.q_heads as u32,
            kv_heads: self.kv_heads as u32,
            scale: self.scale(),
            softcap: self.softcap,
            causal: u32::from(self.causal),
            window: self.window as u32,
        };
        let longest = self.lens.iter().map(|l| l.0).max().unwrap() as u32;
        let grid = [longest.div_ceil(attention_prefill::BLOCK_M), params.q_heads, self.seqs()];
        let report =
            b.launch_once(self.pick(&attention_prefill::HD64, &attention_prefill::HD128), grid, params);
        assert_eq!(report.bank_conflicts, 0);
        assert_close("out", &b.read_bf16(params.out, x.q.len()), &self.expected(&x), 0.01);
    }

    fn check_decode(&self) {
        let x = self.inputs();
        let group = (self.q_heads / self.kv_heads) as u32;
        let queries = self.lens.iter().map(|l| l.0).max().unwrap() as u32;
        for variant in attention_decode::VARIANTS.iter().filter(|v| v.format == KV_BF16) {
            if variant.head_dim as usize != self.head_dim {
                continue;
            }
            let mut b = Bench::new();
            let mut records = vec![];
            let mut first_item = 0;
            for (seq, &(queries, kv_len)) in self.lens.iter().enumerate() {
                let kv_len = kv_len as u32;
                let row_and_queries = (seq as u32) << DecodeSequence::QUERY_BITS | queries as u32;
                records.push(DecodeSequence {
                    first_item,
                    query_start: x.q_starts[seq],
                    kv_len,
                    row_and_queries,
                });
                first_item += Rule::SIXTEEN_BITS.chunks(kv_len);
            }
            records.push(DecodeSequence { first_item, ..DecodeSequence::default() });
            let row_tiles = (queries * group).div_ceil(variant.rows);
            let blocks = first_item * row_tiles * self.kv_heads as u32;
            let rows = (blocks * variant.rows) as usize;
            let params = AttentionDecode {
                q: b.bf16(&x.q),
                k_cache: b.bf16(&x.k),
                v_cache: b.bf16(&x.v),
                out: b.empty(x.q.len() * 2),
                partial_out: b.empty(rows * self.head_dim * 4),
                partial_sums: b.empty(rows * 8),
                counters: b.words(&vec![0u32; self.lens.len() * self.kv_heads * row_tiles as usize]),
                sequences: b.words(&records),
                block_table: b.words(&x.table),
                seqs: self.seqs(),
                block_table_stride: x.stride as u32,
                page_size: self.page_size as u32,
                q_heads: self.q_heads as u32,
                kv_heads: self.kv_heads as u32,
                row_tiles,
                scale: self.scale(),
                softcap: self.softcap,
                window: self.window as u32,
                short_tokens: Rule::SIXTEEN_BITS.short_tokens,
                short_chunk_tokens: Rule::SIXTEEN_BITS.short_chunk_tokens,
                middle_tokens: Rule::SIXTEEN_BITS.middle_tokens,
                chunk_tokens: Rule::SIXTEEN_BITS.chunk_tokens,
                max_chunks: Rule::SIXTEEN_BITS.max_chunks,
                ..AttentionDecode::default()
            };
            let report = b.launch_once(&variant.spec, [blocks, 1, 1], params);
            assert_eq!(report.bank_conflicts, 0, "{}", variant.spec.name);
            assert_close("out", &b.read_bf16(params.out, x.q.len()), &self.expected(&x), 0.01);
        }
    }
}

fn ragged(head_dim: usize, causal: bool, window: usize) -> Batch {
    let lens = vec![(1, 130), (70, 70), (5, 3), (65, 150)];
    Batch { head_dim, q_heads: 4, kv_heads: 2, page_size: 16, lens, causal, window, softcap: 0.0 }
}

#[test]
fn prefill_causal() {
    ragged(64, true, 0).check_prefill();
    ragged(128, true, 0).check_prefill();
}

#[test]
fn prefill_sees_all() {
    ragged(64, false, 0).check_prefill();
}

#[test]
fn prefill_window_with_dead_pages() {
    ragged(64, true, 17).check_prefill();
    ragged(128, false, 33).check_prefill();
}

#[test]
fn prefill_softcap_and_odd_pages() {
    let batch = Batch { page_size: 7, softcap: 1.5, q_heads: 3, kv_heads: 1, ..ragged(64, true, 0) };
    batch.check_prefill();
}

fn decoding(head_dim: usize, group: usize, window: usize) -> Batch {
    let lens = vec![(1, 1), (1, 600), (3, 0), (1, 64), (2, 129)];
    let (q_heads, kv_heads) = (2 * group, 2);
    Batch { head_dim, q_heads, kv_heads, page_size: 16, lens, causal: true, window, softcap: 0.0 }
}

#[test]
fn decode() {
    decoding(64, 1, 0).check_decode();
    decoding(128, 3, 0).check_decode();
}

#[test]
fn decode_window_with_dead_pages_and_empty_chunks() {
    decoding(64, 2, 70).check_decode();
}

#[test]
fn decode_group_past_one_tile() {
    decoding(64, 19, 0).check_decode();
}

#[test]
fn decode_softcap() {
    Batch { softcap: 2.0, page_size: 5, ..decoding(64, 2, 0) }.check_decode();
}
