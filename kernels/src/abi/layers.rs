use super::params;

params! {
    /// `out[i, :] = table[ids[i], :]`: embedding lookup, and the selection of rows whose logits are wanted.
    pub struct GatherRows {
        /// bf16 `[table_rows, cols]`.
        pub table: u64,
        /// u32 `[rows]`; each must be below `table_rows` (the launcher checks).
        pub ids: u64,
        /// bf16 `[rows, cols]`.
        pub out: u64,
        pub rows: u32,
        /// A multiple of 8.
        pub cols: u32,
    }
}

params! {
    /// `out[o, i, j] = x[i, orders[o, j]]`: activations in the orders of the columns that they multiply, some of them more than once. Grid:
    /// `(rows, orders, 1)`.
    pub struct GatherColumns {
        /// bf16 `[rows, cols]`.
        pub x: u64,
        /// u16 `[orders, out_cols]`; each must be below `cols`.
        pub orders: u64,
        /// bf16 `[orders, rows, out_cols]`.
        pub out: u64,
        pub rows: u32,
        /// A multiple of 8, at most [`MOST_COLS`](crate::gather_columns::MOST_COLS).
        pub cols: u32,
        /// A multiple of 8.
        pub out_cols: u32,
        pub reserved: u32,
    }
}

params! {
    /// `h = x + residual; out = h / sqrt(mean(h^2) + eps) * weight`, row by row, in f32.
    pub struct RmsNorm {
        /// bf16 `[rows, cols]`.
        pub x: u64,
        /// bf16 `[rows, cols]`, optional: read, and overwritten with `h`.
        pub residual: u64,
        /// f32 `[cols]`.
        pub weight: u64,
        /// bf16 `[rows, cols]`; may be `x`.
        pub out: u64,
        pub rows: u32,
        /// A multiple of 8.
        pub cols: u32,
        pub eps: f32,
        pub reserved: u32,
    }
}

params! {
    /// `codes = round(y * 127 / max|y|)`, ties to even, row by row, with `scales = max|y| / 127`, of `y = x * factors`. A row of zeros has
    /// the scale 0, one with a NaN or an infinity such a scale.
    pub struct QuantizeRows {
        /// bf16 `[rows, cols]`.
        pub x: u64,
        /// f32 `[cols]`, optional.
        pub factors: u64,
        /// i8 `[rows, cols]`.
        pub codes: u64,
        /// f32 `[rows]`.
        pub scales: u64,
        pub rows: u32,
        /// A multiple of 8.
        pub cols: u32,
    }
}

params! {
    /// [`RmsNorm`] without a residual, then [`QuantizeRows`] of its output.
    pub struct RmsNormInt8 {
        /// bf16 `[rows, cols]`.
        pub x: u64,
        /// f32 `[cols]`.
        pub weight: u64,
        /// f32 `[cols]`, optional.
        pub factors: u64,
        /// i8 `[rows, cols]`.
        pub codes: u64,
        /// f32 `[rows]`.
        pub scales: u64,
        pub rows: u32,
        /// A multiple of 8.
        pub cols: u32,
        pub eps: f32,
        pub reserved: u32,
    }
}

params! {
    /// `h = x + residual; out = (h - mean(h)) / sqrt(mean((h - mean(h))^2) + eps) * weight + bias`, row by row, in f32.
    pub struct LayerNorm {
        /// bf16 `[rows, cols]`.
        pub x: u64,
        /// bf16 `[rows, cols]`, optional: read, and overwritten with `h`.
        pub residual: u64,
        /// f32 `[cols]`.
        pub weight: u64,
        /// f32 `[cols]`, optional.
        pub bias: u64,
        /// bf16 `[rows, cols]`; may be `x`.
        pub out: u64,
        pub rows: u32,
        /// A multiple of 8.
        pub cols: u32,
        pub eps: f32,
        pub reserved: u32,
    }
}

params! {
    /// Splits a fused projection into query, key and value, normalises query and key heads where asked, rotates them (the
    /// half-split convention: element `i` pairs with `i + head_dim / 2`) and appends key and value to the cache. Grid: [`rope_append::grid`](crate::rope_append::grid).
    pub struct RopeAppend {
        /// bf16 `[tokens, (q_heads + 2 * kv_heads) * head_dim]`: queries, then keys, then values.
        pub qkv: u64,
        /// f32 `[head_dim]`, optional: RMS norm of each query head before rotation.
        pub q_norm: u64,
        /// f32 `[head_dim]`, optional: RMS norm of each key head before rotation.
        pub k_norm: u64,
        /// f32 `[max_position, head_dim]`: `head_dim / 2` cosines, then `head_dim / 2` sines.
        pub cos_sin: u64,
        /// u32 `[tokens]`.
        pub positions: u64,
        /// u32 `[tokens]`: where the token's key and value go, `page * page_size + offset in page`.
        pub slots: u64,
        /// bf16 `[tokens, q_heads, head_dim]`.
        pub q_out: u64,
        /// `[pages, kv_heads, page_size, head_dim]` of the entry's format (see [`KV_BF16`](super::KV_BF16) and its neighbours),
        /// this layer's. Keys are quantised from f32, after norm and rotation.
        pub k_cache: u64,
        /// As `k_cache`. A bf16 cache gets values bit for bit, but for the payload of a NaN.
        pub v_cache: u64,
        /// f32 `[pages, kv_heads, page_size]`, of quantised formats; a vector with a NaN or an infinity has such a scale.
        pub k_scales: u64,
        /// As `k_scales`.
        pub v_scales: u64,
        pub tokens: u32,
        pub q_heads: u32,
        pub kv_heads: u32,
        /// A multiple of 16, at most 256.
        pub head_dim: u32,
        pub page_size: u32,
        /// Of the query and key norms.
        pub eps: f32,
    }
}

params! {
    /// `out[i, j] = silu(gate[i, j]) * up[i, j]`.
    pub struct SiluMul {
        /// bf16 `[rows, 2 * inter]`: all of a row's gates, then what they gate; or, if `paired`, eights of both in turn.
        pub gate_up: u64,
        /// bf16 `[rows, inter]`.
        pub out: u64,
        pub rows: u32,
        /// A multiple of 8.
        pub inter: u32,
        pub paired: u32,
        pub reserved: u32,
    }
}

/// [`Gelu::kind`]: exact, by the error function.
pub const GELU_ERF: u32 = 0;
/// [`Gelu::kind`]: approximated by the hyperbolic tangent.
pub const GELU_TANH: u32 = 1;

params! {
    /// `out[i, j] = x[i, j] * P(N < x[i, j])` for a normal `N`, in f32, or its approximation.
    pub struct Gelu {
        /// bf16 `[rows, cols]`.
        pub x: u64,
        /// bf16 `[rows, cols]`.
        pub out: u64,
        pub rows: u32,
        /// A multiple of 8.
        pub cols: u32,
        /// [`GELU_ERF`] or [`GELU_TANH`].
        pub kind: u32,
        pub reserved: u32,
    }
}

params! {
    /// `out[i, :] = table[ids[i], :] + places[positions[i], :]`, in f32: embedding lookup with learned positions.
    pub struct EmbedSum {
        /// bf16 `[table_rows, cols]`.
        pub table: u64,
        /// bf16 `[place_rows, cols]`.
        pub places: u64,
        /// u32 `[rows]`; each must be below `table_rows` (the launcher checks).
        pub ids: u64,
        /// u32 `[rows]`; each must be below `place_rows` (the launcher checks).
        pub positions: u64,
        /// bf16 `[rows, cols]`.
        pub out: u64,
        pub rows: u32,
        /// A multiple of 8.
        pub cols: u32,
    }
}

params! {
    /// Scores become attention's weights, in place, each rounded once: with `seen = (first + i) % cols + 1`, `x[i, j]` becomes
    /// `exp(scale * x[i, j]) / sum(exp(scale * x[i, 0..seen]))` where `j < seen`, and 0 elsewhere. So every `cols` rows are the
    /// queries of one head, each of which sees the keys up to its own place. What a row doesn't see doesn't matter. Grid: `(rows, 1, 1)`.
    pub struct CausalSoftmax {
        /// bf16 `[rows, cols]`.
        pub x: u64,
        pub rows: u32,
        /// A multiple of 8.
        pub cols: u32,
        /// Above 0.
        pub scale: f32,
        /// Rows of the heads before these, where they are some of more.
        pub first: u32,
    }
}
