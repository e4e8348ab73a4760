//! What is timed, as numbers, and what it costs: the one place where operations and bytes are counted.

use serde::{Deserialize, Serialize};

/// Bytes of a bf16.
const BF16: u64 = 2;
/// Bytes of an f32 or u32.
const WORD: u64 = 4;

/// The least work that a problem asks for, whatever computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Floating-point operations, a multiply-add being two; pairs that a causal mask hides don't count.
    pub flops: u64,
    /// Bytes of device memory: every input read once, every output written once.
    pub bytes: u64,
}

/// Elements of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvFormat {
    /// bf16, no scales.
    Bf16,
    /// i8, an f32 scale a token and head.
    Int8,
    /// fp8 e4m3, an f32 scale a token and head.
    Fp8,
}

impl KvFormat {
    /// All of them.
    pub const ALL: [KvFormat; 3] = [KvFormat::Bf16, KvFormat::Int8, KvFormat::Fp8];

    /// As cells name it.
    pub fn name(self) -> &'static str {
        match self {
            KvFormat::Bf16 => "bf16",
            KvFormat::Int8 => "int8",
            KvFormat::Fp8 => "fp8",
        }
    }

    /// Bytes of one token's vector of one head, its scale included.
    pub fn vector_bytes(self, head_dim: usize) -> u64 {
        match self {
            KvFormat::Bf16 => head_dim as u64 * BF16,
            KvFormat::Int8 | KvFormat::Fp8 => head_dim as u64 + WORD,
        }
    }
}

/// Attention of whole prompts of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prefill {
    pub seqs: usize,
    pub seq_len: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub causal: bool,
    /// Tokens a page, in random order; one page a sequence if absent.
    pub page_size: Option<usize>,
}

/// Attention of one token a sequence over contexts of one length, pages in random order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Decode {
    pub seqs: usize,
    pub context: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_size: usize,
    pub kv: KvFormat,
}

/// Rotation of a fused projection and its way into a paged cache; one sequence, pages in random order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RopeAppend {
    pub tokens: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_size: usize,
    pub kv: KvFormat,
}

/// What the weights of a product are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum GemmWeights {
    /// bf16; activations too.
    #[default]
    Bf16,
    /// i8 with an f32 scale a row; activations likewise.
    Int8,
    /// 4 bits in groups of 128 with a 16-bit scale each, symmetric; activations bf16.
    Int4,
    /// The same; activations and results f16.
    Int4F16,
}

impl GemmWeights {
    /// As cells name it.
    pub fn name(self) -> &'static str {
        match self {
            GemmWeights::Bf16 => "bf16",
            GemmWeights::Int8 => "int8",
            GemmWeights::Int4 => "int4",
            GemmWeights::Int4F16 => "int4_f16",
        }
    }

    /// As charts name them.
    pub fn in_words(self) -> &'static str {
        match self {
            GemmWeights::Bf16 => "bf16 weights",
            GemmWeights::Int8 => "int8 weights",
            GemmWeights::Int4 => "4-bit weights",
            GemmWeights::Int4F16 => "4-bit weights, f16 activations",
        }
    }

    /// Whether they are 4 bits.
    pub fn is_int4(self) -> bool {
        matches!(self, GemmWeights::Int4 | GemmWeights::Int4F16)
    }
}

/// `[m, k] x [n, k]^T`, out in bf16 unless activations are f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gemm {
    /// What the weights, and with them the activations, are.
    #[serde(default)]
    pub weights: GemmWeights,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// Rows that are worked on one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rows {
    pub rows: usize,
    /// Of the output of `silu_mul`, of the logits of `argmax` and `sample`, of `x` elsewhere.
    pub cols: usize,
}

/// One timing's problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Problem {
    Prefill(Prefill),
    Decode(Decode),
    RopeAppend(RopeAppend),
    Gemm(Gemm),
    /// With a residual, which is read and written.
    RmsNorm(Rows),
    SiluMul(Rows),
    GatherRows(Rows),
    Argmax(Rows),
    Sample(Rows),
}

impl Problem {
    /// Operations and bytes.
    pub fn cost(&self) -> Cost {
        match *self {
            Problem::Prefill(p) => p.cost(),
            Problem::Decode(p) => p.cost(),
            Problem::RopeAppend(p) => p.cost(),
            Problem::Gemm(p) => p.cost(),
            Problem::RmsNorm(p) => {
                Cost { flops: 4 * p.elems(), bytes: 4 * BF16 * p.elems() + WORD * p.cols as u64 }
            }
            Problem::SiluMul(p) => Cost { flops: 5 * p.elems(), bytes: 3 * BF16 * p.elems() },
            Problem::GatherRows(p) => Cost { flops: 0, bytes: 2 * BF16 * p.elems() + WORD * p.rows as u64 },
            Problem::Argmax(p) => Cost { flops: 0, bytes: WORD * (p.elems() + p.rows as u64) },
            Problem::Sample(p) => {
                let per_row = size_of::<tilewright_kernels::abi::SampleRow>() as u64 + WORD;
                Cost { flops: 0, bytes: WORD * p.elems() + per_row * p.rows as u64 }
            }
        }
    }

    /// Whether the time is better told as TFLOP/s than as TB/s.
    pub fn is_compute(&self) -> bool {
        match self {
            Problem::Prefill(_) => true,
            Problem::Gemm(p) => p.m >= 256,
            _ => false,
        }
    }

    /// A problem of the same options that an oracle can judge in full: a few tiles and a bit, odd lengths, several sequences.
    pub fn small(&self) -> Problem {
        let heads = |q: usize, kv: usize| {
            let kv_heads = kv.min(2);
            (kv_heads * (q / kv.max(1)).max(1), kv_heads)
        };
        match *self {
            Problem::Prefill(p) => {
                let (q_heads, kv_heads) = heads(p.q_heads, p.kv_heads);
                Problem::Prefill(Prefill { seqs: 2, seq_len: 203, q_heads, kv_heads, ..p })
            }
            Problem::Decode(p) => {
                let (q_heads, kv_heads) = heads(p.q_heads, p.kv_heads);
                Problem::Decode(Decode { seqs: 2, context: 611, q_heads, kv_heads, ..p })
            }
            Problem::RopeAppend(p) => {
                let (q_heads, kv_heads) = heads(p.q_heads, p.kv_heads);
                Problem::RopeAppend(RopeAppend { tokens: 37, q_heads, kv_heads, ..p })
            }
            Problem::Gemm(p) => {
                let k = if p.weights == GemmWeights::Bf16 { 136 } else { 320 };
                Problem::Gemm(Gemm { m: p.m.min(75), n: 200, k, ..p })
            }
            Problem::RmsNorm(_) => Problem::RmsNorm(Rows { rows: 3, cols: 2056 }),
            Problem::SiluMul(_) => Problem::SiluMul(Rows { rows: 3, cols: 2056 }),
            Problem::GatherRows(_) => Problem::GatherRows(Rows { rows: 5, cols: 264 }),
            Problem::Argmax(_) => Problem::Argmax(Rows { rows: 3, cols: 1537 }),
            Problem::Sample(_) => Problem::Sample(Rows { rows: 3, cols: 1537 }),
        }
    }
}

impl Prefill {
    /// Tokens a page.
    pub fn page_tokens(&self) -> usize {
        self.page_size.unwrap_or(self.seq_len)
    }

    fn cost(&self) -> Cost {
        let Prefill { seqs, seq_len, q_heads, kv_heads, head_dim, causal, .. } = *self;
        // Half of the square, as everybody counts it: the diagonal makes it (S + 1) / 2S.
        let pairs = (seqs * q_heads * seq_len * seq_len) as u64 / if causal { 2 } else { 1 };
        let rows = (seqs * seq_len * head_dim) as u64;
        Cost { flops: 4 * pairs * head_dim as u64, bytes: 2 * BF16 * rows * (q_heads + kv_heads) as u64 }
    }
}

impl Decode {
    fn cost(&self) -> Cost {
        let Decode { seqs, context, q_heads, kv_heads, head_dim, kv, .. } = *self;
        let vectors = 2 * (seqs * context * kv_heads) as u64;
        let rows = (seqs * q_heads * head_dim) as u64;
        Cost {
            flops: 4 * context as u64 * rows,
            bytes: vectors * kv.vector_bytes(head_dim) + 2 * BF16 * rows,
        }
    }
}

impl RopeAppend {
    fn cost(&self) -> Cost {
        let RopeAppend { tokens, q_heads, kv_heads, head_dim, kv, .. } = *self;
        let rotated = (tokens * (q_heads + kv_heads) * head_dim) as u64;
        let read = (tokens * (q_heads + 2 * kv_heads) * head_dim) as u64 * BF16;
        let tables = tokens as u64 * (head_dim as u64 * WORD + 2 * WORD);
        let queries = (tokens * q_heads * head_dim) as u64 * BF16;
        let cached = 2 * (tokens * kv_heads) as u64 * kv.vector_bytes(head_dim);
        Cost { flops: 3 * rotated, bytes: read + tables + queries + cached }
    }
}

impl Gemm {
    /// Bytes of the weights, scales included.
    pub fn weight_bytes(&self) -> u64 {
        let (n, k) = (self.n as u64, self.k as u64);
        match self.weights {
            GemmWeights::Bf16 => BF16 * n * k,
            GemmWeights::Int8 => n * k + WORD * n,
            GemmWeights::Int4 | GemmWeights::Int4F16 => n * k / 2 + n * k.div_ceil(128) * 2,
        }
    }

    fn cost(&self) -> Cost {
        let (m, n, k) = (self.m as u64, self.n as u64, self.k as u64);
        let activations = if self.weights == GemmWeights::Int8 { m * k + WORD * m } else { BF16 * m * k };
        Cost { flops: 2 * m * n * k, bytes: self.weight_bytes() + activations + BF16 * m * n }
    }
}

impl Rows {
    fn elems(&self) -> u64 {
        (self.rows * self.cols) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_counts_what_the_literature_counts() {
        let full = Prefill {
            seqs: 4,
            seq_len: 4096,
            q_heads: 16,
            kv_heads: 16,
            head_dim: 128,
            causal: false,
            page_size: None,
        };
        // 4 * S^2 * d * heads * batch.
        assert_eq!(full.cost().flops, 4 * 4096 * 4096 * 128 * 16 * 4);
        assert_eq!(Prefill { causal: true, ..full }.cost().flops, full.cost().flops / 2);
        // Queries, keys, values and output of 64 MiB each, however they are paged.
        assert_eq!(full.cost().bytes, 4 * (64 << 20));
        assert_eq!(Prefill { page_size: Some(16), ..full }.cost(), full.cost());
    }

    #[test]
    fn decode_counts_keys_values_and_scales() {
        let decode = Decode {
            seqs: 16,
            context: 8192,
            q_heads: 32,
            kv_heads: 8,
            head_dim: 128,
            page_size: 16,
            kv: KvFormat::Bf16,
        };
        let rows = 2 * 16 * 32 * 128 * 2;
        let vectors = 2 * 16 * 8192 * 8;
        assert_eq!(decode.cost().bytes, vectors * 256 + rows);
        assert_eq!(decode.cost().flops, 4 * 16 * 32 * 8192 * 128);
        for kv in [KvFormat::Int8, KvFormat::Fp8] {
            assert_eq!(Decode { kv, ..decode }.cost().bytes, vectors * (128 + 4) + rows);
        }
    }

    #[test]
    fn the_rest_by_hand() {
        assert_eq!(
            Problem::Gemm(Gemm { weights: GemmWeights::Bf16, m: 2, n: 3, k: 8 }).cost(),
            Cost { flops: 96, bytes: 2 * (16 + 24 + 6) }
        );
        let rope = RopeAppend {
            tokens: 10,
            q_heads: 4,
            kv_heads: 2,
            head_dim: 64,
            page_size: 16,
            kv: KvFormat::Bf16,
        };
        // In and out 8 heads of 128 bytes each; a row of the table, a position and a slot.
        assert_eq!(rope.cost().bytes, 10 * (2 * 8 * 128 + 64 * 4 + 8));
        assert_eq!(Problem::SiluMul(Rows { rows: 2, cols: 8 }).cost().bytes, 2 * 8 * 6);
        assert_eq!(Problem::Argmax(Rows { rows: 2, cols: 100 }).cost().bytes, 2 * 404);
    }
}
