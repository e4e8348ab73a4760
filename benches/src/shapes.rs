//! The cells of one model's shape: the attention, products and cache writes that a step of it consists of.

use crate::{
    cells::Cell,
    problem::{Decode, Gemm, GemmWeights, KvFormat, Prefill, Problem, RopeAppend},
};

/// What of a model's shape its kernels see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelShape {
    /// As cells name it.
    pub name: String,
    /// Elements of the residual stream.
    pub hidden: usize,
    /// Elements inside the MLP.
    pub inter: usize,
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
}

/// How much of it a cell asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens of a prompt.
    pub seq_len: usize,
    /// Prompts, and sequences that decode.
    pub batch: usize,
    /// Tokens cached of each sequence that decodes.
    pub context: usize,
    /// Rows of products.
    pub rows: Vec<usize>,
    /// Weights of products: those that the device has.
    pub weights: Vec<GemmWeights>,
}

/// Kinds of cells, as the command line names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Attention of prompts.
    Attention,
    /// Products with weights.
    Gemm,
    /// Writing keys and values.
    Kv,
    /// Attention of new tokens over cached ones.
    Decode,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 4] = [Family::Attention, Family::Gemm, Family::Kv, Family::Decode];

    /// The first part of its cells' names in [`crate::cells::all`].
    pub fn prefix(self) -> &'static str {
        match self {
            Family::Attention => "prefill",
            Family::Gemm => "gemm",
            Family::Kv => "rope_append",
            Family::Decode => "decode",
        }
    }
}

/// The cells of a family that a model's step consists of.
pub fn cells(shape: &ModelShape, sizes: &Sizes, family: Family) -> Vec<Cell> {
    let &ModelShape { q_heads, kv_heads, head_dim, .. } = shape;
    let (page_size, kv) = (16, KvFormat::Bf16);
    let cell =
        |rest: String, problem| Cell::new(format!("{}/{}/{rest}", family.prefix(), shape.name), problem);
    match family {
        Family::Attention => {
            let (seqs, seq_len) = (sizes.batch, sizes.seq_len);
            let problem = Prefill {
                seqs,
                seq_len,
                q_heads,
                kv_heads,
                head_dim,
                causal: true,
                page_size: Some(page_size),
            };
            vec![cell(format!("{seqs}x{seq_len}"), Problem::Prefill(problem))]
        }
        Family::Decode => {
            let (seqs, context) = (sizes.batch, sizes.context);
            let problem = Decode { seqs, context, q_heads, kv_heads, head_dim, page_size, kv };
            vec![cell(format!("{seqs}x{context}"), Problem::Decode(problem))]
        }
        Family::Kv => {
            let tokens = sizes.batch * sizes.seq_len;
            let problem = RopeAppend { tokens, q_heads, kv_heads, head_dim, page_size, kv };
            vec![cell(tokens.to_string(), Problem::RopeAppend(problem))]
        }
        Family::Gemm => products(shape, sizes, &cell),
    }
}

/// A layer's four products as they are fused, in each format.
fn products(shape: &ModelShape, sizes: &Sizes, cell: &impl Fn(String, Problem) -> Cell) -> Vec<Cell> {
    let q_cols = shape.q_heads * shape.head_dim;
    let qkv = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim;
    let mut columns = vec![
        (qkv, shape.hidden),
        (shape.hidden, q_cols),
        (2 * shape.inter, shape.hidden),
        (shape.hidden, shape.inter),
    ];
    columns.dedup();
    let mut cells = Vec::new();
    for &weights in &sizes.weights {
        for &m in &sizes.rows {
            for &(n, k) in &columns {
                let problem = Problem::Gemm(Gemm { weights, m, n, k });
                cells.push(cell(format!("{}/{m}x{n}x{k}", weights.name()), problem));
            }
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_its_own_shapes_in_every_family() {
        let name = "llama-3.1-8b".to_string();
        let shape = ModelShape { name, hidden: 4096, inter: 14_336, q_heads: 32, kv_heads: 8, head_dim: 128 };
        let weights = vec![GemmWeights::Bf16, GemmWeights::Int8, GemmWeights::Int4];
        let sizes = Sizes { seq_len: 512, batch: 4, context: 1000, rows: vec![1, 64], weights };
        let keys =
            |family| cells(&shape, &sizes, family).into_iter().map(|cell| cell.key).collect::<Vec<_>>();
        assert_eq!(keys(Family::Attention), ["prefill/llama-3.1-8b/4x512"]);
        assert_eq!(keys(Family::Decode), ["decode/llama-3.1-8b/4x1000"]);
        assert_eq!(keys(Family::Kv), ["rope_append/llama-3.1-8b/2048"]);
        let products = keys(Family::Gemm);
        assert_eq!(products.len(), 3 * 2 * 4);
        assert_eq!(products[0], "gemm/llama-3.1-8b/bf16/1x6144x4096");
        assert!(products.contains(&"gemm/llama-3.1-8b/int4/64x28672x4096".to_string()));
        let all: Vec<String> = Family::ALL.into_iter().flat_map(keys).collect();
        assert!(all.iter().enumerate().all(|(index, key)| !all[..index].contains(key)));
    }
}
