//! Decode attention: the work list of a step, the scratch that launches share, and the launch.

use tilewright_kernels::{
    abi::{self, DecodeSequence},
    attention_decode::{self, split::Rule},
};

use super::{
    Driver, GpuDevice, GpuStep,
    scratch::{self, Scratch},
    step::Section,
    storage::{WORD, require, shape},
};
use crate::{Result, RowClass, Span};

/// Sequences that the decode kernel serves, and how much work they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DecodeWork {
    /// As the rule of each cache cuts them, by [`Rule::index`].
    pub cuts: [Cut; Rule::ALL.len()],
    /// u32 `[tokens]`, if any span has masks: the drafts that each query sees.
    pub tree_masks: Option<Section>,
    pub seqs: usize,
    /// The longest span of queries; 0 without sequences.
    pub max_queries: u32,
}

/// The work of a step's sequences as one rule cuts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// [`DecodeSequence`] `[seqs + 1]`.
    pub sequences: Section,
    /// Chunks of all.
    pub items: u32,
    /// Whether a sequence has long chunks, [`Rule::has_long_chunks`].
    pub long_chunks: bool,
}

impl DecodeWork {
    /// Whether the decode kernel serves a span: it does for generated tokens and drafts, of which there are 1 to 16. That depends on
    /// the place of the tokens in their sequence alone, so that bits depend neither on the batch nor on how a prompt was cut.
    pub fn serves(span: &Span) -> bool {
        span.class == RowClass::Generated && span.query_len > 0
    }

    /// The records of `spans` by rule, and the work they are; sections are the caller's to fill in.
    pub fn records(spans: &[Span]) -> Result<(DecodeWork, [Vec<DecodeSequence>; Rule::ALL.len()])> {
        let mut work = DecodeWork::default();
        let mut records = Rule::ALL.map(|_| Vec::new());
        for (row, span) in (0u32..).zip(spans).filter(|(_, span)| Self::serves(span)) {
            require(span.kv_len < 1 << 31, "step", "keys of a sequence", "below 2^31", span.kv_len)?;
            require(row < 1 << 27, "step", "sequences", "at most 2^27", row)?;
            for ((rule, cut), records) in Rule::ALL.iter().zip(&mut work.cuts).zip(&mut records) {
                records.push(DecodeSequence {
                    first_item: cut.items,
                    query_start: span.query_start,
                    kv_len: span.kv_len,
                    row_and_queries: row << DecodeSequence::QUERY_BITS | span.query_len,
                });
                // At most 64 a sequence, of which a batch has at most 65535.
                cut.items += rule.chunks(span.kv_len);
                cut.long_chunks |= rule.has_long_chunks(span.kv_len);
            }
            work.seqs += 1;
            work.max_queries = work.max_queries.max(span.query_len);
        }
        for (cut, records) in work.cuts.iter().zip(&mut records) {
            records.push(DecodeSequence { first_item: cut.items, ..DecodeSequence::default() });
        }
        Ok((work, records))
    }

    /// The masks of all query rows, or nothing if no span has any: rows of other spans have zeros.
    pub fn masks(spans: &[Span]) -> Option<Vec<u32>> {
        spans.iter().any(|span| span.drafts.is_some()).then(|| {
            let masks = |span: &Span| match &span.drafts {
                Some(masks) => masks.clone(),
                None => vec![0; span.query_len as usize],
            };
            spans.iter().flat_map(masks).collect()
        })
    }
}

/// What launches of decode attention use one after the other: partial outputs, and counters that every launch leaves zero.
pub(super) struct DecodeScratch<Dr: Driver> {
    partial_out: Scratch<Dr>,
    partial_sums: Scratch<Dr>,
    counters: Scratch<Dr>,
}

impl<Dr: Driver> Default for DecodeScratch<Dr> {
    fn default() -> Self {
        let [partial_out, partial_sums, counters] =
            std::array::from_fn(|_| Scratch::new("attention", "the chunks of decode attention"));
        Self { partial_out, partial_sums, counters }
    }
}

/// A layer's keys and values as the decode kernel reads them.
pub(super) struct Planes {
    /// [`abi::KV_BF16`] or another.
    pub format: u32,
    pub head_dim: usize,
    /// Addresses of the scales of keys and values; 0 for bf16.
    pub scales: [u64; 2],
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// The sequences that [`DecodeWork`] lists: `shared`, checked by the caller, says the rest.
    pub(super) fn attention_decode(
        &self,
        shared: abi::AttentionPrefill,
        planes: Planes,
        step: &GpuStep<Dr>,
    ) -> Result<()> {
        let work = &step.plan.decode;
        if work.seqs == 0 {
            return Ok(());
        }
        let op = "attention";
        require(shared.causal == 1 || work.tree_masks.is_none(), op, "causal", "true for drafts", false)?;
        let (q_heads, kv_heads) = (shared.q_heads, shared.kv_heads);
        let rows = work.max_queries * (q_heads / kv_heads);
        let Some(variant) = attention_decode::select(planes.format, planes.head_dim as u32, rows) else {
            return Err(shape(op, "head_dim", "64 or 128", planes.head_dim));
        };
        let row_tiles = rows.div_ceil(variant.rows);
        let (rule, cut) = (Rule::of(planes.format), work.cuts[Rule::index(planes.format)]);
        let blocks = u64::from(cut.items) * u64::from(row_tiles) * u64::from(kv_heads);
        let blocks: u32 = i32::try_from(blocks)
            .map_err(|_| shape(op, "blocks of decode attention", "below 2^31", blocks))?
            .cast_unsigned();
        // A block's slot is used where its sequence has several chunks.
        let slots = if cut.items as usize == work.seqs { 0 } else { blocks as usize * variant.rows as usize };
        let mut held = scratch::lock(&self.decode_scratch);
        let partial_out = held.partial_out.at_least(self, slots * planes.head_dim * WORD, false)?;
        let partial_sums = held.partial_sums.at_least(self, slots * 2 * WORD, false)?;
        let counters = work.seqs * kv_heads as usize * row_tiles as usize;
        let counters = held.counters.at_least(self, counters * WORD, true)?;
        let params = abi::AttentionDecode {
            q: shared.q,
            k_cache: shared.k_cache,
            v_cache: shared.v_cache,
            k_scales: planes.scales[0],
            v_scales: planes.scales[1],
            out: shared.out,
            partial_out,
            partial_sums,
            counters,
            sequences: step.at(cut.sequences),
            block_table: shared.block_table,
            tree_masks: work.tree_masks.map_or(0, |section| step.at(section)),
            seqs: work.seqs as u32,
            block_table_stride: shared.block_table_stride,
            page_size: shared.page_size,
            q_heads,
            kv_heads,
            row_tiles,
            scale: shared.scale,
            softcap: shared.softcap,
            window: shared.window,
            short_tokens: rule.short_tokens,
            short_chunk_tokens: rule.short_chunk_tokens,
            middle_tokens: rule.middle_tokens,
            chunk_tokens: rule.chunk_tokens,
            max_chunks: rule.max_chunks,
        };
        // SAFETY: as for prefill; the records are those of the step, scratch is `[blocks, rows(, head_dim)]` where a sequence has
        // several chunks and isn't touched otherwise, and counters are zero: fresh ones are, and launches leave them so. Launches
        // that share scratch follow each other on one stream; the lock is held until this one is in it.
        unsafe { self.launch(variant.spec_for(cut.long_chunks), [blocks, 1, 1], params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use RowClass::{Generated, Prompt};

    fn span(class: RowClass, rows: [u32; 2], kv_len: u32, drafts: Option<Vec<u32>>) -> Span {
        let [query_start, query_len] = rows;
        Span { query_start, query_len, kv_len, pages: vec![0; 64], class, drafts }
    }

    #[test]
    fn generated_tokens_are_listed() {
        let spans = [
            span(Prompt, [0, 5], 5, None),
            span(Generated, [5, 1], 600, None),
            span(Generated, [6, 2], 40, Some(vec![1, 3])),
            span(Prompt, [8, 2], 40, None),
            span(Generated, [10, 1], 1100, None),
            span(Prompt, [11, 1], 513, None),
            span(Generated, [12, 0], 0, None),
        ];
        let (work, [records, wide]) = DecodeWork::records(&spans).expect("a valid batch");
        assert_eq!((work.seqs, work.max_queries), (3, 2));
        assert_eq!(work.cuts.map(|cut| cut.items), [2 + 1 + 3, 2 + 1 + 2]);
        assert_eq!(wide[3].first_item, 5);
        let record = |r: &DecodeSequence| (r.first_item, r.query_start, r.kv_len, r.row_and_queries);
        assert_eq!(record(&records[0]), (0, 5, 600, 1 << 5 | 1));
        assert_eq!(record(&records[1]), (2, 6, 40, 2 << 5 | 2));
        assert_eq!(record(&records[2]), (3, 10, 1100, 4 << 5 | 1));
        assert_eq!(record(&records[3]), (6, 0, 0, 0));
        let masks = DecodeWork::masks(&spans).expect("some drafts");
        assert_eq!(masks, [0, 0, 0, 0, 0, 0, 1, 3, 0, 0, 0, 0]);
        assert_eq!(DecodeWork::masks(&spans[..2]), None);
    }
}
