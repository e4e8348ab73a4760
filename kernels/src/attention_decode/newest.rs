//! The sequence's newest token, where attention itself rotates its queries and appends its key and value.
//!
//! Lane `(g, t)` needs chunks `4j + t` of query row `g` for the first product: with each chunk of the lower half the one that rotation pairs
//! with it, so that nothing is exchanged but the squares of a norm. A key and a value are rows 0 and 1 of the same layout. The arithmetic and
//! its order are those of [`rope_append`](crate::rope_append).

use super::{
    item::{Item, group},
    products::Queries,
};
use crate::{
    abi::AttentionDecodeAppend,
    ptx,
    rope_append::head::{Angles, Norm, Raw, cache_row, squares, turn},
    vector::pack8,
};

/// Pairs of chunks that a lane has of a head of 128.
const MOST_PAIRS: usize = 2;

/// A lane's chunks of the lower half of a head of `16 * STEPS`, each with its partner.
pub(super) type Pairs = [Raw; MOST_PAIRS];

/// A sequence's newest token.
#[derive(Clone, Copy)]
pub(super) struct Newest<'p> {
    p: &'p AttentionDecodeAppend,
    token: u32,
    slot: u32,
    angles: [Angles; MOST_PAIRS],
}

impl<'p> Newest<'p> {
    /// Looks up where it stands, which is no launch's work.
    ///
    /// # Safety
    /// The item is one of the launch's.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn look_up<const STEPS: usize>(p: &'p AttentionDecodeAppend, item: &Item) -> Newest<'p> {
        let (token, mut angles) = (item.query_start, [Angles::NONE; MOST_PAIRS]);
        // SAFETY: the sequence's only query is one of the step's tokens, whose position is in the table.
        unsafe {
            let position = ptx::ld_global_nc_b32(p.rope.positions + u64::from(token) * 4);
            let slot = ptx::ld_global_nc_b32(p.rope.slots + u64::from(token) * 4);
            for pair in 0..STEPS / 4 {
                angles[pair] = Angles::load(p.rope.cos_sin, position, 16 * STEPS as u32, chunk(pair));
            }
            Newest { p, token, slot, angles }
        }
    }

    /// The lane's chunks of `head` of queries, keys and values, as projection left them.
    ///
    /// # Safety
    /// There is such a head.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn load<const STEPS: usize>(&self, head: u32) -> Pairs {
        let (rope, head_bytes) = (&self.p.rope, 32 * STEPS as u64);
        let heads = rope.q_heads + 2 * rope.kv_heads;
        let g_head = rope.qkv + (u64::from(self.token) * u64::from(heads) + u64::from(head)) * head_bytes;
        let mut raw = [[[0; 4]; 2]; MOST_PAIRS];
        for pair in 0..STEPS / 4 {
            let g_lower = g_head + u64::from(chunk(pair)) * 16;
            // SAFETY: the caller's promise.
            raw[pair] = unsafe {
                [ptx::ld_global_nc_v4_b32(g_lower), ptx::ld_global_nc_v4_b32(g_lower + head_bytes / 2)]
            };
        }
        raw
    }

    /// A head's chunks normed by the weights at `g_norm`, if any, and, unless they are of a value, rotated.
    ///
    /// # Safety
    /// The whole warp calls it, four lanes a head.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn turn<const STEPS: usize>(&self, raw: &Pairs, g_norm: u64, is_value: bool) -> Pairs {
        let (rope, head_dim) = (&self.p.rope, 16 * STEPS as u32);
        let mut inverse = 1.0;
        if rope.q_norm != 0 || rope.k_norm != 0 {
            let mut sum = squares(&raw[0]);
            if STEPS == 8 {
                sum += squares(&raw[1]);
            }
            // SAFETY: the whole warp is here.
            unsafe {
                sum += ptx::shfl_bfly_f32(sum, 2);
                sum += ptx::shfl_bfly_f32(sum, 1);
            }
            inverse = ptx::rsqrt(sum / head_dim as f32 + rope.eps);
        }
        let mut turned = [[[0; 4]; 2]; MOST_PAIRS];
        for pair in 0..STEPS / 4 {
            let g_weights = if g_norm == 0 { 0 } else { g_norm + u64::from(chunk(pair)) * 32 };
            // SAFETY: weights of a head.
            let part = unsafe {
                turn(&raw[pair], Norm { g_weights, inverse }, head_dim, &self.angles[pair], is_value)
            };
            turned[pair] = part.map(pack8);
        }
        turned
    }

    /// Leaves a head's chunks at `g_head`.
    ///
    /// # Safety
    /// There is room for a head.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn store<const STEPS: usize>(g_head: u64, turned: &Pairs) {
        for pair in 0..STEPS / 4 {
            let g_lower = g_head + u64::from(chunk(pair)) * 16;
            // SAFETY: the caller's promise.
            unsafe {
                ptx::st_global_v4_b32(g_lower, turned[pair][0]);
                ptx::st_global_v4_b32(g_lower + 16 * STEPS as u64, turned[pair][1]);
            }
        }
    }

    /// Appends the token's key and value of the item's key head, for the warp to read.
    ///
    /// # Safety
    /// The whole warp calls it, after the wait for the launch before, and no other for that key head.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn append<const STEPS: usize>(&self, item: &Item) {
        let (rope, row) = (&self.p.rope, ptx::lane() / 4);
        // Rows past the value's do as it does, and store nothing.
        let is_value = row != 0;
        let first = if is_value { rope.q_heads + rope.kv_heads } else { rope.q_heads };
        let (cache, g_norm) = if is_value { (rope.v_cache, 0) } else { (rope.k_cache, rope.k_norm) };
        // SAFETY: the warp is whole; a key or value of the token, and its slot in the cache.
        unsafe {
            let raw = self.load::<STEPS>(first + item.kv_head);
            let turned = self.turn::<STEPS>(&raw, g_norm, is_value);
            if row < 2 {
                let at = cache_row(self.slot, rope.page_size, rope.kv_heads, item.kv_head);
                Self::store::<STEPS>(cache + at * 32 * STEPS as u64, &turned);
            }
            ptx::bar_warp_sync();
        }
    }

    /// The lane's chunks of query rows, `count` of which are there, as projection left them.
    ///
    /// # Safety
    /// The item is the token's sequence's; after the wait for the launch before.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn load_queries<const STEPS: usize, const ROWS8: usize>(
        &self,
        item: &Item,
        count: u32,
    ) -> [Pairs; ROWS8] {
        let mut raw = [[[[0; 4]; 2]; MOST_PAIRS]; ROWS8];
        for n in 0..ROWS8 {
            // SAFETY: a query head of the token.
            raw[n] = unsafe { self.load::<STEPS>(self.query_head(item, query_row(n).min(count - 1))) };
        }
        raw
    }

    /// The operands that `raw` makes. `kept`: left where [`rope_append`](crate::rope_append) leaves them, too.
    ///
    /// # Safety
    /// The whole warp calls it, with what [`Self::load_queries`] answers of the same rows.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn queries<const STEPS: usize, const ROWS8: usize>(
        &self,
        item: &Item,
        count: u32,
        raw: &[Pairs; ROWS8],
        kept: bool,
    ) -> Queries<STEPS, ROWS8> {
        let rope = &self.p.rope;
        let mut pairs = [[[0; 2]; STEPS]; ROWS8];
        for n in 0..ROWS8 {
            // SAFETY: the warp is whole.
            let turned = unsafe { self.turn::<STEPS>(&raw[n], rope.q_norm, false) };
            if query_row(n) >= count {
                continue;
            }
            for pair in 0..STEPS / 4 {
                for half in 0..2 {
                    let (piece, step) = (turned[pair][half], 2 * pair + half * STEPS / 2);
                    pairs[n][step] = [piece[0], piece[1]];
                    pairs[n][step + 1] = [piece[2], piece[3]];
                }
            }
            if kept {
                let head = self.query_head(item, query_row(n));
                let at = u64::from(self.token) * u64::from(rope.q_heads) + u64::from(head);
                // SAFETY: one of the token's heads.
                unsafe { Self::store::<STEPS>(rope.q_out + at * 32 * STEPS as u64, &turned) };
            }
        }
        Queries { pairs, units: [[1.0; 2]; ROWS8], starts: [[0.0; 2]; ROWS8] }
    }

    /// The query head of a row of the item.
    #[inline(always)]
    fn query_head(&self, item: &Item, row: u32) -> u32 {
        item.kv_head * group(&self.p.attention) + row
    }
}

/// The lane's query row of the `n`th eight.
#[inline(always)]
fn query_row(n: usize) -> u32 {
    n as u32 * 8 + ptx::lane() / 4
}

/// The lane's chunk of the lower half of a head that is `pair` of its own.
#[inline(always)]
fn chunk(pair: usize) -> u32 {
    pair as u32 * 4 + ptx::lane() % 4
}
