use super::{RopeAppend, TensorMap, params};

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
    /// [`AttentionPrefill`] on the copy engine: persistent blocks that walk a work list.
    ///
    /// The maps lay lines of 64 elements. `q_map`: `[tokens, q_heads, head_dim]`, box `[block_m, 1, 64]`. `k_map` and `v_map`:
    /// `[pages, kv_heads, page_size, head_dim]`, box `[1, 1, box_rows, 64]`. `box_rows` divides the kernel's tile of keys; pages
    /// are multiples of `box_rows`, or each sequence has one page and no `kv_row_starts`.
    ///
    /// Grid: any number of blocks in x. A block takes the next item when it has finished one.
    pub struct AttentionPrefillSm90 {
        pub q_map: TensorMap,
        pub k_map: TensorMap,
        pub v_map: TensorMap,
        /// As there; `seq_ids`, `q`, `k_cache` and `v_cache` are not used.
        pub shared: AttentionPrefill,
        /// u32 `[tiles, 2]`: a sequence and a tile of its queries, counted in `block_m`. See `attention_prefill_sm90::work_list`.
        pub work: u64,
        /// u32 `[2]`, zeros before the launch and after it. Launches that may overlap need counters of their own.
        pub counters: u64,
        pub tiles: u32,
        /// Heads that are worked on at a time, so that their keys stay in the L2; divides `q_heads`.
        pub section_heads: u32,
        pub box_rows: u32,
        pub reserved: u32,
    }
}

params! {
    /// One sequence of a launch of [`AttentionDecode`].
    pub struct DecodeSequence {
        /// The first of its items in the launch: one a chunk, as many as the launch's rule cuts `kv_len` keys into.
        pub first_item: u32,
        /// Its first query row.
        pub query_start: u32,
        /// Its keys, the step's own included; below 2^31.
        pub kv_len: u32,
        /// Its row of the block table times 32, plus its queries, 1 to 16.
        pub row_and_queries: u32,
    }
}

impl DecodeSequence {
    /// Bits of the number of queries in `row_and_queries`.
    pub const QUERY_BITS: u32 = 5;
    /// Queries a sequence may have.
    pub const MAX_QUERIES: u32 = 16;
}

params! {
    /// Attention of the last 1 to 16 tokens of each sequence over its paged keys, cut in chunks by a
    /// rule of [`attention_decode::split`](crate::attention_decode::split), which asks for the sequence's length alone. A sequence's last
    /// block joins its chunks in ascending order; one of a single chunk is written straight to `out`.
    ///
    /// Query `i` of `q` is draft `i`: it stands for key `kv - q + i`. It sees every key before the drafts, itself, and draft `j`
    /// where `j <= i` or, with `tree_masks`, where bit `j` of its mask is set. Of those keys, `window` (if not 0) keeps the last
    /// `window`. A query that sees nothing gets zeros.
    ///
    /// Grid: `(items * row_tiles * kv_heads, 1, 1)`, or more: blocks past the last item leave at once.
    pub struct AttentionDecode {
        /// bf16 `[tokens, q_heads, head_dim]`.
        pub q: u64,
        /// The entry's element `[pages, kv_heads, page_size, head_dim]`, this layer's; see [`KV_BF16`](crate::abi::KV_BF16).
        /// Fewer than 2^32 - 1 rows.
        pub k_cache: u64,
        /// As `k_cache`.
        pub v_cache: u64,
        /// f32 `[pages, kv_heads, page_size]` of quantised formats.
        pub k_scales: u64,
        /// As `k_scales`.
        pub v_scales: u64,
        /// bf16 `[tokens, q_heads, head_dim]`.
        pub out: u64,
        /// f32 `[blocks of the grid, rows a tile, head_dim]`, scratch: the unnormalised output of a chunk.
        pub partial_out: u64,
        /// f32 `[blocks of the grid, rows a tile, 2]`, scratch: a chunk's largest base-2 score (-inf if it sees no key) and its sum.
        pub partial_sums: u64,
        /// u32 `[seqs, kv_heads, row_tiles]`: zeros before the launch, zeros after it.
        pub counters: u64,
        /// [`DecodeSequence`] `[seqs + 1]`; the last holds the number of items as its `first_item`.
        pub sequences: u64,
        /// u32 `[rows, block_table_stride]`: the pages of each sequence.
        pub block_table: u64,
        /// u32 `[tokens]`, optional: the drafts that each query sees. Bits of drafts that aren't there don't matter.
        pub tree_masks: u64,
        pub seqs: u32,
        pub block_table_stride: u32,
        pub page_size: u32,
        pub q_heads: u32,
        pub kv_heads: u32,
        /// Tiles of the longest span's rows: `ceil(max queries * q_heads / kv_heads / rows a tile)`.
        pub row_tiles: u32,
        /// Multiplies the scores; usually `1 / sqrt(head_dim)`.
        pub scale: f32,
        /// If not 0, scores become `softcap * tanh(score / softcap)`.
        pub softcap: f32,
        /// Keys each query sees, itself included; 0 for all.
        pub window: u32,
        /// The fields of the launch's [`Rule`](crate::attention_decode::split::Rule), which holds.
        pub short_tokens: u32,
        /// See `short_tokens`.
        pub short_chunk_tokens: u32,
        /// See `short_tokens`.
        pub middle_tokens: u32,
        /// See `short_tokens`.
        pub chunk_tokens: u32,
        /// See `short_tokens`.
        pub max_chunks: u32,
    }
}

params! {
    /// [`RopeAppend`], then [`AttentionDecode`] of what it leaves, bit for bit, where each sequence has one query, `row_tiles` is 1 and the cache is
    /// bf16. Both describe the same tokens, heads and cache, `rope.q_out` is `attention.q`, and a token's slot is that of its sequence's last key.
    /// Keys and values before that one are read before the launch before has ended: no launch since the last copy, or since the last one that
    /// doesn't start early, may have written them.
    ///
    /// Grid: as of [`AttentionDecode`].
    pub struct AttentionDecodeAppend {
        pub rope: RopeAppend,
        pub attention: AttentionDecode,
    }
}
