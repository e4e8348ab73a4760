//! How keys and values lie in a paged cache. Each of key and value is `[pages, kv_heads, page_size, head_dim]` of the format's
//! element; quantised formats have an f32 scale for each token and head, `[pages, kv_heads, page_size]`, of each of key and value.
//!
//! A largest magnitude below 2^-110 counts as 2^-110 in a scale, unless it is 0.

use super::params;

/// bf16 elements, no scales.
pub const KV_BF16: u32 = 0;
/// i8 elements from -127 to 127; a value is its element times its scale, the scale the largest magnitude over 127. A vector of
/// zeros has scale 0.
pub const KV_INT8: u32 = 1;
/// fp8 e4m3 elements (finite, largest 448); a value is its element times its scale, the scale the largest magnitude over 448. A
/// vector of zeros has scale 0.
pub const KV_FP8: u32 = 2;

params! {
    /// One page of a launch of [`KvWiden`].
    pub struct WidenPage {
        pub page: u32,
        /// Which of its sequence's pages it is: its first row holds key `index * page_size`.
        pub index: u32,
        /// Keys of that sequence: rows of the page from there on are neither read nor written. `u32::MAX` for all of its rows.
        pub kv_len: u32,
        pub reserved: u32,
    }
}

params! {
    /// Listed pages of one layer of a quantised cache as bf16, where they stand in a cache of bf16: an element is its code times its
    /// vector's scale, one f32 product, rounded to nearest even.
    ///
    /// No page is listed twice. Codes are those that a cache holds, none of them a NaN; a scale that is NaN makes its vector NaN.
    ///
    /// Grid: [`kv_widen::grid`](crate::kv_widen::grid).
    pub struct KvWiden {
        /// The entry's element `[pages, kv_heads, page_size, head_dim]`.
        pub k_codes: u64,
        /// As `k_codes`.
        pub v_codes: u64,
        /// f32 `[pages, kv_heads, page_size]`.
        pub k_scales: u64,
        /// As `k_scales`.
        pub v_scales: u64,
        /// bf16 `[pages, kv_heads, page_size, head_dim]`.
        pub k_out: u64,
        /// As `k_out`.
        pub v_out: u64,
        /// [`WidenPage`] `[listed pages]`.
        pub pages: u64,
        pub page_size: u32,
        pub kv_heads: u32,
        /// A multiple of 16.
        pub head_dim: u32,
        /// [`kv_widen::parts`](crate::kv_widen::parts) of the page size.
        pub parts: u32,
    }
}
