use super::params;

params! {
    /// Softmax attention of ragged query spans over a paged cache. A contiguous cache is one page a sequence.
    ///
    /// Query `i` of a sequence with `q` queries and `kv` keys stands at position `p = kv - q + i`. It sees key `j < kv` where
    /// `causal` is 0 or `j <= p`, and where `window` is 0 or `j + window > p` (and, if not causal, `j < p + window`). A query
    /// that sees nothing gets zeros.
    pub struct AttentionPrefill {
        /// bf16 `[tokens, q_heads, head_dim]`.
        pub q: u64,
        /// bf16 `[pages, kv_heads, page_size, head_dim]`, this layer's.
        pub k_cache: u64,
        /// As `k_cache`.
        pub v_cache: u64,
        /// bf16 `[tokens, q_heads, head_dim]`.
        pub out: u64,
        /// u32 `[seqs_of_launch]`: which sequences this launch serves; `blockIdx.z` indexes it.
        pub seq_ids: u64,
        /// u32 `[seqs + 1]`: the first query row of each sequence.
        pub q_starts: u64,
        /// u32 `[seqs]`: keys of each sequence, the step's own included.
        pub kv_lens: u64,
        /// u32 `[seqs, block_table_stride]`: the pages of each sequence.
        pub block_table: u64,
        /// f32 `[tokens, q_heads]`, optional: the natural logarithm of the sum of the exponentials of a row's scores, scaled and
        /// capped, over the keys it sees; -inf for a row that sees nothing.
        pub lse: u64,
        /// u32 `[seqs]`, optional: where a sequence's first key stands in its block table's rows, 0 if absent. Key `j` is row
        /// `r = kv_row_starts[seq] + j`, in page `block_table[seq, r / page_size]` at `r % page_size`. With one page of all
        /// the batch's rows this is the layout of cumulative lengths, keys of all sequences on end.
        pub kv_row_starts: u64,
        pub block_table_stride: u32,
        pub page_size: u32,
        pub q_heads: u32,
        pub kv_heads: u32,
        /// Multiplies the scores; usually `1 / sqrt(head_dim)`.
        pub scale: f32,
        /// If not 0, scores become `softcap * tanh(score / softcap)`.
        pub softcap: f32,
        pub causal: u32,
        /// Keys each query sees, itself included; 0 for all.
        pub window: u32,
    }
}

params! {
    /// One query token a sequence over its paged keys, split in chunks of `split_tokens` keys counted from the sequence's first
    /// key, so that a sequence is always cut in the same places. Each chunk leaves an unnormalised sum and its log-sum-exp for
    /// [`AttentionCombine`]; a sequence of one chunk is written straight to `out`.
    ///
    /// Grid: `(max_splits, kv_heads, seqs_of_launch)`.
    pub struct AttentionDecode {
        /// bf16 `[tokens, q_heads, head_dim]`; the row of sequence `s` is `q_starts[s]`.
        pub q: u64,
        /// bf16 `[pages, kv_heads, page_size, head_dim]`, this layer's.
        pub k_cache: u64,
        /// As `k_cache`.
        pub v_cache: u64,
        /// bf16 `[tokens, q_heads, head_dim]`.
        pub out: u64,
        /// f32 `[seqs_of_launch, q_heads, max_splits, head_dim]`: normalised within the chunk.
        pub partial_out: u64,
        /// f32 `[seqs_of_launch, q_heads, max_splits]`: base-2 log-sum-exp of the scaled scores, -inf for an empty chunk.
        pub partial_lse: u64,
        /// As in [`AttentionPrefill`].
        pub seq_ids: u64,
        /// As in [`AttentionPrefill`].
        pub q_starts: u64,
        /// As in [`AttentionPrefill`].
        pub kv_lens: u64,
        /// As in [`AttentionPrefill`].
        pub block_table: u64,
        pub block_table_stride: u32,
        pub page_size: u32,
        pub q_heads: u32,
        pub kv_heads: u32,
        pub scale: f32,
        pub softcap: f32,
        /// As in [`AttentionPrefill`].
        pub window: u32,
        /// Keys a chunk; a multiple of 64.
        pub split_tokens: u32,
        pub max_splits: u32,
        pub reserved: u32,
    }
}

params! {
    /// Joins the chunks that [`AttentionDecode`] left, in ascending order of chunk. Grid: `(q_heads, seqs_of_launch, 1)`.
    pub struct AttentionCombine {
        /// As in [`AttentionDecode`].
        pub partial_out: u64,
        /// As in [`AttentionDecode`].
        pub partial_lse: u64,
        /// bf16 `[tokens, q_heads, head_dim]`.
        pub out: u64,
        /// As in [`AttentionPrefill`].
        pub seq_ids: u64,
        /// As in [`AttentionPrefill`].
        pub q_starts: u64,
        /// As in [`AttentionPrefill`].
        pub kv_lens: u64,
        pub q_heads: u32,
        pub head_dim: u32,
        pub split_tokens: u32,
        pub max_splits: u32,
    }
}
