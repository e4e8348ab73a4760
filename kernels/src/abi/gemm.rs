use super::{TensorMap, params};

params! {
    /// `out = a * w^T (+ bias) (+ residual)`, f32 accumulation in ascending order of `k` whatever the tile, so that a row's
    /// result doesn't depend on the rows beside it. Grid: `(ceil(n / BLOCK_N), ceil(m / BLOCK_M), 1)`.
    pub struct Gemm {
        /// bf16 `[m, k]`.
        pub a: u64,
        /// bf16 `[n, k]`.
        pub w: u64,
        /// f32 `[n]`, optional.
        pub bias: u64,
        /// bf16 `[m, n]`, optional; may be `out`.
        pub residual: u64,
        /// bf16 `[m, n]`, or f32 where `out_f32` is 1.
        pub out: u64,
        pub m: u32,
        pub n: u32,
        /// A multiple of 8.
        pub k: u32,
        pub out_f32: u32,
    }
}

params! {
    /// `out = a * w^T (+ bias) (+ residual)` on Hopper's warpgroup products, for many rows: f32 (of bytes: i32) accumulation in
    /// ascending order of `k`, so that a row's result doesn't depend on the rows beside it. Persistent: any grid `(blocks, 1, 1)`.
    pub struct GemmSm90 {
        /// Of `a`, bf16, f16 or i8 `[m, k]`, in boxes of one line by `BLOCK_M` rows.
        pub a_map: TensorMap,
        /// Of `w`, as `a` `[n, k]`, in boxes of one line by `BLOCK_N` rows.
        pub w_map: TensorMap,
        /// Of `out`, bf16 (f16 of f16) `[m, n]`, in boxes of 64 columns by 64 rows; not used where `out_f32` is given.
        pub out_map: TensorMap,
        /// f32 `[n]`, optional.
        pub bias: u64,
        /// As `out`, optional; may be what `out_map` describes.
        pub residual: u64,
        /// f32 `[m, n]`: where the product goes instead, if not 0.
        pub out_f32: u64,
        /// f32 `[m]`, of bytes only: multiplies row by row.
        pub a_scales: u64,
        /// f32 `[n]`, of bytes only: multiplies column by column.
        pub w_scales: u64,
        pub m: u32,
        /// A multiple of 8.
        pub n: u32,
        /// A multiple of 16 bytes.
        pub k: u32,
        /// Rows of tiles that are worked on together, so that what they share stays in the L2.
        pub band: u32,
        /// From a row of `out_f32` and `residual` to the next; a multiple of 8.
        pub out_stride: u32,
        pub reserved: u32,
    }
}

params! {
    /// `out = a * w^T`, then bias, SiLU and residual, on Hopper for few rows (`gemm_few`). Grid: `(splits, tiles, 1)`, tiles of
    /// the variant's `tokens` rows of `a` and its rows of `w`; of a persistent variant as few tiles as run at a time, and no more blocks a tile than splits; of one that takes two splits side by side, which may be all there
    /// are, one block a tile. Of 4-bit weights `a`, and
    /// with it `residual` and `out`, is bf16 or f16, as the entry says.
    pub struct GemmFew {
        /// Of `a`, `[m, k]`, in boxes of one line by the variant's `tokens` rows.
        pub a_map: TensorMap,
        /// Of a dense `w`, `[n, k]`, in boxes of one line by 256 rows.
        pub w_map: TensorMap,
        /// 4-bit `w`, in the pieces of `gemm_few::layout`.
        pub packed: u64,
        /// f32 `[n]`, optional.
        pub bias: u64,
        /// 16 bits `[m, columns of out]`, optional; may be `out`.
        pub residual: u64,
        /// 16 bits `[m, n]`, with `silu` `[m, n / 2]`; f32 where `out_f32` is 1.
        pub out: u64,
        /// f32 `[m]`, of bytes only.
        pub a_scales: u64,
        /// f32 `[n]`, of bytes only.
        pub w_scales: u64,
        /// f32 `[tiles, splits, tokens, rows of a block]`, scratch; of variants whose sums go by mail zeros before the launch, zeros after it. Not used where `splits` is 1.
        pub partials: u64,
        /// u32 `[token tiles * row tiles]`, of the other variants: zeros before the launch, zeros after it. Not used where `splits` is 1.
        pub counters: u64,
        /// 4-bit weights of the launch of this kind that follows: each block brings the first pieces of some of that one's items to the L2. 0 without.
        pub next_packed: u64,
        pub m: u32,
        /// A multiple of 8; of 16 with `silu`.
        pub n: u32,
        /// Stages of `k`: lines of a dense `w`, pieces of 4 bits.
        pub steps: u32,
        /// At least 1, at most `steps`.
        pub splits: u32,
        /// Bytes of a piece of 4-bit `w`.
        pub piece_bytes: u32,
        /// Whether pieces have zero points.
        pub zeros: u32,
        /// Whether scales are f16 rather than bf16.
        pub scales_f16: u32,
        pub out_f32: u32,
        /// If 1, every 16 rows of `w` are 8 of a gate and 8 that go with it, and a column of `out` is `silu(gate) * up`.
        pub silu: u32,
        /// Of the launch that follows: its splits of 16 rows, their splits, pieces along `k`, bytes of each; and how many of an item's
        /// pieces are brought.
        pub next_items: u32,
        pub next_splits: u32,
        pub next_steps: u32,
        pub next_piece_bytes: u32,
        pub next_ahead: u32,
        /// From a row of `out` and `residual` to the next; a multiple of 8.
        pub out_stride: u32,
        pub reserved: [u32; 3],
    }
}

params! {
    /// As [`GemmFew`], of 4-bit weights and few tokens, by blocks that each have all of `k` (`gemm_whole`). Grid: `(blocks, 1, 1)`, a block for `row_groups`
    /// times 16 rows of `w`.
    pub struct GemmWhole {
        /// 16 bits `[m, k]`. With a norm what that makes of `norm_x`, written by the way.
        pub a: u64,
        /// bf16 `[m, k]`, optional and of a chain alone: `a` is `norm_x / sqrt(mean(norm_x^2) + norm_eps) * norm_weight`, row by row, rounded.
        pub norm_x: u64,
        /// f32 `[k]`.
        pub norm_weight: u64,
        /// `w`, in the pieces of `gemm_few::layout`.
        pub packed: u64,
        /// f32 `[n]`, optional.
        pub bias: u64,
        /// 16 bits `[m, columns of out]`, optional; may be `out`.
        pub residual: u64,
        /// 16 bits `[m, n]`, with `silu` `[m, n / 2]`; f32 where `out_f32` is 1.
        pub out: u64,
        /// As in [`GemmFew`].
        pub next_packed: u64,
        /// At most the variant's tokens.
        pub m: u32,
        /// A multiple of 8; of 16 with `silu`.
        pub n: u32,
        /// A multiple of 8.
        pub k: u32,
        /// Pieces along `k`.
        pub steps: u32,
        /// At least 1, at most `steps`: ranges of `k` whose sums are joined in pairs, these in ascending order.
        pub splits: u32,
        /// 16 rows each; so many that `row_groups * splits` is at most the block's warps.
        pub row_groups: u32,
        /// Bytes of a piece.
        pub piece_bytes: u32,
        /// Whether pieces have zero points.
        pub zeros: u32,
        /// Whether scales are f16 rather than bf16.
        pub scales_f16: u32,
        pub out_f32: u32,
        /// As in [`GemmFew`].
        pub silu: u32,
        /// As in [`GemmFew`].
        pub next_items: u32,
        pub next_splits: u32,
        pub next_steps: u32,
        pub next_piece_bytes: u32,
        pub next_ahead: u32,
        pub norm_eps: f32,
        /// From a row of `out` and `residual` to the next; a multiple of 8.
        pub out_stride: u32,
        pub reserved: [u32; 2],
    }
}

params! {
    /// As [`GemmWhole`], of bf16 weights. Grid: that one's.
    pub struct GemmWholeBf16 {
        /// Of `w`, `[n, k]`, in boxes of one line by 16 rows.
        pub w_map: TensorMap,
        /// All else; `steps` are lines along `k`. What concerns norms, pieces, and the launch that follows isn't used.
        pub product: GemmWhole,
        pub reserved: [u32; 12],
    }
}

params! {
    /// Products that follow each other, as one launch. Grid: `(blocks, 1, 1)`: as many as the largest of them needs, all of which run at the same time.
    pub struct GemmChain {
        /// `count` of them, each of rows that the one before made: see `gemm_whole::launch::follows`.
        pub phases: [GemmWhole; 4],
        /// u32: zero before the launch, zero after it.
        pub arrivals: u64,
        /// Of all phases but the last the rows once more, as others wait for them: `gemm_whole::MAIL_BYTES` of zeros before the launch and after it.
        pub mail: u64,
        pub count: u32,
        pub reserved: u32,
    }
}

params! {
    /// 4-bit weights as bf16 or f16, each element rounded once. Grid: `(tiles, 1, 1)`.
    pub struct DequantizeInt4 {
        /// The pieces of `gemm_few::layout`.
        pub packed: u64,
        /// As the entry says, `[n, k]`.
        pub out: u64,
        pub n: u32,
        /// A multiple of 8.
        pub k: u32,
        /// Pieces along `k`.
        pub steps: u32,
        pub piece_bytes: u32,
        /// Groups to 128 of `k`: 1, 2 or 4.
        pub groups: u32,
        /// Whether pieces have zero points.
        pub zeros: u32,
        /// Whether scales are f16 rather than bf16.
        pub scales_f16: u32,
        pub reserved: u32,
    }
}
