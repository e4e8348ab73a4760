//! Prefill attention: the work lists of a step, and which kernel serves it.

use tilewright_kernels::{
    abi::{self, TensorMap, WidenPage},
    attention_prefill::{self, Element},
    attention_prefill_sm90::{
        TILE_HD64, TILE_HD128, Tile,
        launch::{self, MapShape, Span as Tiled},
    },
    kv_widen,
};

use super::{
    Driver, GpuCache, GpuDevice, GpuStep,
    decode::DecodeWork,
    step::{Packer, Section},
    storage::{LayerPlanes, dim, shape},
};
use crate::{Result, Span};

/// Pages of a sequence that a page size must serve: more than one.
const MANY_PAGES: u32 = 2;

/// Sequences that a prefill kernel serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PrefillWork {
    /// u32 `[seqs]`: their indices.
    pub seq_ids: Section,
    pub seqs: usize,
    /// The longest span of queries.
    pub max_query_len: u32,
    /// [`WidenPage`] `[pages]`: the sequences' pages, each once.
    pages: Section,
    page_count: u32,
    spans: Vec<Tiled>,
    /// Work lists in tiles of 192 queries and of 128, each with its length.
    work: [(Section, u32); 2],
    /// Two zeros, which each launch leaves as they were.
    counters: Section,
    kv_tokens: u64,
}

impl PrefillWork {
    /// Packs what the kernels read.
    pub fn new(packer: &mut Packer, spans: &[Span]) -> Result<PrefillWork> {
        let served =
            || (0u32..).zip(spans).filter(|(_, span)| span.query_len > 0 && !DecodeWork::serves(span));
        let tiled: Vec<Tiled> =
            served().map(|(seq, span)| Tiled { seq, q_len: span.query_len, kv_len: span.kv_len }).collect();
        let mut list = |tile| -> Result<(Section, u32)> {
            let work = launch::work_list(tile, &tiled);
            let tiles = dim("step", "tiles of queries", work.len())?;
            Ok((packer.push(work.into_flattened()), tiles))
        };
        let work = [list(TILE_HD64)?, list(TILE_HD128)?];
        let pages = widen_list(served().map(|(_, span)| span));
        Ok(PrefillWork {
            page_count: dim("step", "pages", pages.len())?,
            pages: packer.push(bytemuck::cast_slice(&pages).iter().copied()),
            seq_ids: packer.push(served().map(|(seq, _)| seq)),
            seqs: tiled.len(),
            max_query_len: tiled.iter().map(|span| span.q_len).max().unwrap_or(0),
            work,
            counters: packer.push([0, 0]),
            kv_tokens: tiled.iter().map(|span| u64::from(span.kv_len)).sum(),
            spans: tiled,
        })
    }
}

/// The pages of some sequences, each once: sequences that begin alike share some.
fn widen_list<'s>(spans: impl Iterator<Item = &'s Span>) -> Vec<WidenPage> {
    let mut list = Vec::new();
    let mut sequences = 0;
    for span in spans {
        let pages = (0..).zip(&span.pages);
        list.extend(pages.map(|(index, &page)| WidenPage { page, index, kv_len: span.kv_len, reserved: 0 }));
        sequences += 1;
    }
    if sequences > 1 {
        // Of the same page at the same place the sequence with the most keys counts.
        list.sort_unstable_by_key(|entry| (entry.page, entry.index, std::cmp::Reverse(entry.kv_len)));
        list.dedup_by(|next, kept| {
            if next.page == kept.page && next.index != kept.index {
                // Of one at several places nothing is known but that it is there.
                (kept.index, kept.kv_len) = (0, u32::MAX);
            }
            next.page == kept.page
        });
    }
    list
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// Brings what prompts' attention reads of a quantised layer to where it reads it: its kernels multiply bf16. Nothing for bf16.
    pub(super) fn widen_for_prefill(
        &self,
        cache: &GpuCache<Dr>,
        planes: &LayerPlanes,
        step: &GpuStep<Dr>,
    ) -> Result<()> {
        let (op, work, held) = ("attention", &step.plan.prefill, cache.spec);
        let Some(spec) = kv_widen::spec(cache.format()).filter(|_| work.seqs > 0) else { return Ok(()) };
        let ([k_codes, v_codes], [k_scales, v_scales], [k_out, v_out]) =
            (planes.elements, planes.scales, planes.wide);
        let (page_size, kv_heads) =
            (dim(op, "page_size", held.page_size)?, dim(op, "kv_heads", held.kv_heads)?);
        let params = abi::KvWiden {
            k_codes,
            v_codes,
            k_scales,
            v_scales,
            k_out,
            v_out,
            pages: step.at(work.pages),
            page_size,
            kv_heads,
            head_dim: dim(op, "head_dim", held.head_dim)?,
            parts: kv_widen::parts(page_size),
        };
        let Some(grid) = kv_widen::grid(work.page_count, page_size, kv_heads) else {
            return Err(shape(op, "pages of prompts", "as many as a grid has blocks", work.page_count));
        };
        // SAFETY: the list has the step's pages, which the caller found within the cache, each once; elements, scales and what is
        // widened are of that cache's layer and have rows for all of its pages; a cache's head is a multiple of 16.
        unsafe { self.launch(spec, grid, params) }
    }

    /// The sequences that [`PrefillWork`] lists: `shared`, checked by the caller, says the rest; the cache has `pages` pages.
    ///
    /// Which kernel serves depends on device, head and page size, not on the batch: their bits differ.
    pub(super) fn attention_prefill(
        &self,
        shared: abi::AttentionPrefill,
        head_dim: u32,
        pages: usize,
        step: &GpuStep<Dr>,
    ) -> Result<()> {
        let work = &step.plan.prefill;
        if work.seqs == 0 {
            return Ok(());
        }
        let chosen = launch::choose(Element::Bf16, head_dim, shared.causal != 0, &work.spans)
            .filter(|_| self.is_hopper())
            .and_then(|chosen| Some((chosen, launch::box_rows(chosen.0, shared.page_size, MANY_PAGES)?)));
        if let Some(((tile, kernel), box_rows)) = chosen {
            let params = self.hopper(shared, tile, box_rows, pages, step)?;
            // SAFETY: as below; the maps are of the step's queries and the layer's pages, the list of the step's sequences.
            return unsafe { self.launch(kernel, [self.driver.info().multiprocessors, 1, 1], params) };
        }
        let kernel = if head_dim == 64 { &attention_prefill::HD64 } else { &attention_prefill::HD128 };
        let blocks = work.max_query_len.div_ceil(attention_prefill::BLOCK_M);
        // SAFETY: `q` and `out` have the step's rows of `q_heads` heads, the layer is there, the step's pages are in it and hold
        // its keys; a cache's head is 64 or 128 by construction.
        unsafe { self.launch(kernel, [blocks, shared.q_heads, work.seqs as u32], shared) }
    }

    fn hopper(
        &self,
        shared: abi::AttentionPrefill,
        tile: Tile,
        box_rows: u32,
        pages: usize,
        step: &GpuStep<Dr>,
    ) -> Result<abi::AttentionPrefillSm90> {
        let work = &step.plan.prefill;
        let (list, tiles) = work.work[usize::from(tile.block_m() == TILE_HD128.block_m())];
        let kv = launch::kv_map(tile, pages as u64, shared.kv_heads, shared.page_size, box_rows);
        let q = launch::q_map(tile, step.plan.tokens as u64, shared.q_heads);
        Ok(abi::AttentionPrefillSm90 {
            q_map: self.map(&q, shared.q)?,
            k_map: self.map(&kv, shared.k_cache)?,
            v_map: self.map(&kv, shared.v_cache)?,
            shared,
            work: step.at(list),
            counters: step.at(work.counters),
            tiles,
            section_heads: launch::section_heads(tile, shared.q_heads, shared.kv_heads, work.kv_tokens),
            box_rows,
            reserved: 0,
        })
    }

    fn map<const RANK: usize, const STRIDES: usize>(
        &self,
        shape: &MapShape<RANK, STRIDES>,
        base: u64,
    ) -> Result<TensorMap> {
        self.driver.tensor_map(&shape.at(base))
    }
}
