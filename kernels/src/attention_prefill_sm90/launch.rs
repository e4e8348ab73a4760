//! What the launcher decides: which tiles, in what order, by which boxes.

use super::{
    HD64, HD64_F16, HD64_SHORT, HD64_SHORT_F16, HD96, HD96_F16, HD128, HD128_F16, HD192, HD192_F16, HD256,
    HD256_F16, LINE, TILE_HD64, TILE_HD64_SHORT, TILE_HD96, TILE_HD128, TILE_HD192, TILE_HD256, Tile,
};
use crate::{
    abi::{KernelSpec, TensorMapSpec},
    attention_prefill::Element,
};

/// Bytes of keys and values that a section of heads may bring into the L2 at a time: half of an H100's.
const SECTION_BYTES: u64 = 24 << 20;

/// How much more of the rows three warpgroups may have as padding than two, in hundredths, without a causal mask and with one: they hide
/// each other's latencies better, but a causal mask wastes more of a larger tile. Sequences of 512 and 1024 queries have 12 more; H200,
/// causal, 2026-11-25: 214 and 285 TFLOP/s by three, 234 and 302 by two.
const MORE_PADDING: [u64; 2] = [13, 5];

/// Queries and keys of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which sequence of the launch's arrays.
    pub seq: u32,
    /// Its queries.
    pub q_len: u32,
    /// Its keys.
    pub kv_len: u32,
}

/// The kernel for a head dim, a mask and the queries of a step, or none for another head dim. The bits don't depend on the choice: a row's
/// keys are walked in the same tiles whatever rows stand beside it.
pub fn choose(
    element: Element,
    head_dim: u32,
    causal: bool,
    spans: &[Span],
) -> Option<(Tile, &'static KernelSpec)> {
    let rows = |tile: Tile| -> u64 {
        spans.iter().map(|span| u64::from(span.q_len.div_ceil(tile.block_m()) * tile.block_m())).sum()
    };
    let of = |tile, bf16, f16| Some((tile, if element == Element::Bf16 { bf16 } else { f16 }));
    match head_dim {
        64 if rows(TILE_HD64) * 100 <= rows(TILE_HD64_SHORT) * (100 + MORE_PADDING[usize::from(causal)]) => {
            of(TILE_HD64, &HD64, &HD64_F16)
        }
        64 => of(TILE_HD64_SHORT, &HD64_SHORT, &HD64_SHORT_F16),
        96 => of(TILE_HD96, &HD96, &HD96_F16),
        128 => of(TILE_HD128, &HD128, &HD128_F16),
        192 => of(TILE_HD192, &HD192, &HD192_F16),
        256 => of(TILE_HD256, &HD256, &HD256_F16),
        _ => None,
    }
}

/// Every tile of every span's queries, `[seq, tile]`. Sequences are taken in groups whose keys and values of one head stay in the
/// L2; in a group, the tile with the most keys under a causal mask comes first.
///
/// ```
/// use tilewright_kernels::attention_prefill_sm90::{TILE_HD128, launch::{Span, work_list}};
///
/// let spans = [Span { seq: 0, q_len: 200, kv_len: 200 }, Span { seq: 1, q_len: 1, kv_len: 900 }];
/// assert_eq!(work_list(TILE_HD128, &spans), [[1, 0], [0, 1], [0, 0]]);
/// ```
pub fn work_list(tile: Tile, spans: &[Span]) -> Vec<[u32; 2]> {
    let block_m = tile.block_m();
    let mut work: Vec<(usize, u32, [u32; 2])> = Vec::new();
    let (mut group, mut group_bytes) = (0, 0);
    for span in spans {
        let bytes = head_bytes(tile, u64::from(span.kv_len));
        if group_bytes > 0 && group_bytes + bytes > SECTION_BYTES {
            (group, group_bytes) = (group + 1, 0);
        }
        group_bytes += bytes;
        for block in 0..span.q_len.div_ceil(block_m) {
            let after = span.q_len - ((block + 1) * block_m).min(span.q_len);
            work.push((group, span.kv_len.saturating_sub(after), [span.seq, block]));
        }
    }
    work.sort_by_key(|&(group, keys, at)| (group, std::cmp::Reverse(keys), at));
    work.into_iter().map(|(_, _, at)| at).collect()
}

/// Bytes of keys and values of one head.
fn head_bytes(tile: Tile, tokens: u64) -> u64 {
    tokens * u64::from(tile.head_dim) * 4
}

/// Rows of a box of keys: as many as divide both a page and a tile. None if pages of this size can't be cut into boxes: then the
/// baseline kernel serves.
pub fn box_rows(tile: Tile, page_size: u32, pages_per_seq: u32) -> Option<u32> {
    if pages_per_seq <= 1 {
        return Some(tile.block_n);
    }
    let (mut rows, mut rest) = (tile.block_n, page_size.max(1));
    while rest != 0 {
        (rows, rest) = (rest, rows % rest);
    }
    // A lane brings one box, and boxes are whole atoms of eight lines.
    let boxes = tile.block_n / rows * tile.halves();
    (rows.is_multiple_of(8) && boxes <= 32).then_some(rows)
}

/// Query heads that are worked on at a time: whole groups, dividing `q_heads`, whose keys and values of all sequences (`kv_tokens`)
/// stay in the L2.
pub fn section_heads(tile: Tile, q_heads: u32, kv_heads: u32, kv_tokens: u64) -> u32 {
    let fit = (SECTION_BYTES / head_bytes(tile, kv_tokens).max(1)).max(1);
    let heads = (1..=kv_heads).rev().find(|&heads| kv_heads.is_multiple_of(heads) && u64::from(heads) <= fit);
    heads.unwrap_or(1) * (q_heads / kv_heads.max(1))
}

/// Dimensions, strides and box of a map.
#[derive(Debug, Clone, Copy)]
pub struct MapShape<const RANK: usize, const STRIDES: usize> {
    dims: [u64; RANK],
    strides_bytes: [u64; STRIDES],
    box_dims: [u32; RANK],
}

impl<const RANK: usize, const STRIDES: usize> MapShape<RANK, STRIDES> {
    /// The map of a tensor that starts at `base`.
    pub fn at(&self, base: u64) -> TensorMapSpec<'_> {
        TensorMapSpec {
            base,
            element_bytes: 2,
            dims: &self.dims,
            strides_bytes: &self.strides_bytes,
            box_dims: &self.box_dims,
        }
    }
}

/// Of queries, `[tokens, q_heads, head_dim]`.
pub fn q_map(tile: Tile, tokens: u64, q_heads: u32) -> MapShape<3, 2> {
    let head_bytes = u64::from(tile.head_dim) * 2;
    MapShape {
        dims: [u64::from(tile.head_dim), u64::from(q_heads), tokens],
        strides_bytes: [head_bytes, u64::from(q_heads) * head_bytes],
        box_dims: [LINE, 1, tile.block_m()],
    }
}

/// Of keys or values, `[pages, kv_heads, page_size, head_dim]`.
pub fn kv_map(tile: Tile, pages: u64, kv_heads: u32, page_size: u32, box_rows: u32) -> MapShape<4, 3> {
    let row_bytes = u64::from(tile.head_dim) * 2;
    let head_bytes = row_bytes * u64::from(page_size);
    MapShape {
        dims: [u64::from(tile.head_dim), u64::from(page_size), u64::from(kv_heads), pages],
        strides_bytes: [row_bytes, head_bytes, head_bytes * u64::from(kv_heads)],
        box_dims: [LINE, box_rows, 1, 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_is_in_one_tile_longest_first() {
        let spans = [(0, 0), (1, 5), (128, 128), (129, 129), (300, 1000), (40, 7)];
        let spans: Vec<Span> =
            (0..).zip(spans).map(|(seq, (q_len, kv_len))| Span { seq, q_len, kv_len }).collect();
        let work = work_list(TILE_HD128, &spans);
        for span in &spans {
            let mut blocks: Vec<u32> = work.iter().filter(|w| w[0] == span.seq).map(|w| w[1]).collect();
            blocks.sort_unstable();
            assert_eq!(blocks, (0..span.q_len.div_ceil(128)).collect::<Vec<_>>());
        }
        assert_eq!(work[0], [4, 2]);
    }

    #[test]
    fn short_sequences_get_the_tiles_that_waste_less() {
        let name = |q_len, causal| {
            let spans = [Span { seq: 0, q_len, kv_len: q_len }];
            choose(Element::Bf16, 64, causal, &spans).map(|(_, spec)| spec.name)
        };
        assert_eq!(name(512, false), Some("attention_prefill_sm90_hd64"));
        assert_eq!(name(512, true), Some("attention_prefill_sm90_hd64_short"));
        assert_eq!(name(128, false), Some("attention_prefill_sm90_hd64_short"));
        assert_eq!(name(1, true), Some("attention_prefill_sm90_hd64_short"));
        assert_eq!(name(16384, true), Some("attention_prefill_sm90_hd64"));
        assert!(choose(Element::F16, 80, false, &[]).is_none());
    }

    #[test]
    fn boxes_are_pages_or_tiles() {
        for (page_size, pages, rows) in [
            (16, 9, Some(16)),
            (8, 9, Some(8)),
            (128, 9, Some(128)),
            (256, 2, Some(128)),
            (100, 1, Some(128)),
            (100, 2, None),
            (4, 2, None),
            (1, 2, None),
            (192, 2, Some(64)),
        ] {
            assert_eq!(box_rows(TILE_HD128, page_size, pages), rows, "pages of {page_size}");
        }
        // 20 boxes of 16 rows, then 40 of 8.
        let wide = [(80, 9), (16, 9), (8, 9), (128, 2), (100, 1)].map(|(p, n)| box_rows(TILE_HD256, p, n));
        assert_eq!(wide, [Some(80), Some(16), None, Some(16), Some(80)]);
    }

    #[test]
    fn sections_are_groups_that_divide_the_heads() {
        assert_eq!(section_heads(TILE_HD128, 16, 16, 16384), 2);
        assert_eq!(section_heads(TILE_HD128, 16, 16, 512), 16);
        assert_eq!(section_heads(TILE_HD128, 32, 8, 131_072), 4);
        assert_eq!(section_heads(TILE_HD64, 7, 7, 1 << 30), 1);
    }

    #[test]
    fn barriers_and_tiles_fit_a_multiprocessor() {
        for tile in [TILE_HD64, TILE_HD64_SHORT, TILE_HD96, TILE_HD128, TILE_HD192, TILE_HD256] {
            assert!(tile.shared_bytes() <= 227 << 10, "{tile:?}");
            assert!(tile.s_k() % 1024 == 0 && tile.s_v() % 1024 == 0 && tile.s_items() % 16 == 0);
            assert!(tile.threads() <= 1024);
        }
    }
}
