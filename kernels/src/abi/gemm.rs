use super::params;

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
