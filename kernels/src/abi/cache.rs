//! How keys and values lie in a paged cache. Each of key and value is `[pages, kv_heads, page_size, head_dim]` of the format's
//! element; quantised formats have an f32 scale for each token and head, `[pages, kv_heads, page_size]`, of each of key and value.
//!
//! A largest magnitude below 2^-110 counts as 2^-110 in a scale, unless it is 0.

/// bf16 elements, no scales.
pub const KV_BF16: u32 = 0;
/// i8 elements from -127 to 127; a value is its element times its scale, the scale the largest magnitude over 127. A vector of
/// zeros has scale 0.
pub const KV_INT8: u32 = 1;
/// fp8 e4m3 elements (finite, largest 448); a value is its element times its scale, the scale the largest magnitude over 448. A
/// vector of zeros has scale 0.
pub const KV_FP8: u32 = 2;
