use std::sync::atomic::{AtomicUsize, Ordering};

use super::{
    Driver, GpuDevice,
    decode::DecodeWork,
    prefill::PrefillWork,
    select::MAX_GRID_Y,
    storage::{WORD, dim, require},
};
use crate::{Batch, Result};

/// A batch's metadata on the device: one allocation, brought over by one copy.
pub struct GpuStep<Dr: Driver> {
    buffer: Dr::Buffer,
    address: u64,
    pub(super) plan: StepPlan,
    limits: Limits,
}

/// What the numbers of a step must not exceed, as its operations found: a step that is replayed doesn't come by their checks.
struct Limits([AtomicUsize; 5]);

/// A number of a step that operations check, in the order of [`StepPlan::ends`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Ids,
    Positions,
    Slots,
    Pages,
    PageSize,
}

impl<Dr: Driver> GpuStep<Dr> {
    /// Notes what an operation checks.
    pub(super) fn note(&self, end: End, limit: usize) {
        self.limits.0[end as usize].fetch_min(limit, Ordering::Relaxed);
    }

    /// Whether a plan keeps within all that operations noted of this step.
    pub(super) fn admits(&self, plan: &StepPlan) -> bool {
        let ends = plan.ends();
        self.limits.0.iter().zip(ends).all(|(limit, end)| end <= limit.load(Ordering::Relaxed))
    }

    /// Gives the step another batch's metadata, of the same shape.
    pub(super) fn rewrite(&mut self, device: &GpuDevice<Dr>, plan: StepPlan, words: &[u32]) -> Result<()> {
        device.upload(&self.buffer, 0, bytemuck::cast_slice(words))?;
        self.plan = plan;
        Ok(())
    }

    /// The device address of one of the plan's sections.
    pub(super) fn at(&self, section: Section) -> u64 {
        self.address + section.0 as u64
    }
}

/// Where a section starts, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Section(usize);

/// The sections of a step's metadata, and what operations check before they launch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StepPlan {
    pub ids: Section,
    pub positions: Section,
    pub slots: Section,
    pub outputs: Section,
    pub q_starts: Section,
    pub kv_lens: Section,
    pub block_table: Section,
    pub block_table_stride: u32,
    pub tokens: usize,
    pub output_rows: usize,
    /// Rows of generated tokens, which come first: of all tokens, and of the outputs.
    pub generated: usize,
    pub generated_outputs: usize,
    /// Spans of generated tokens and drafts; those of prompts are `prefill`'s. Which one a token gets depends on its place in its
    /// sequence alone, so that its bits don't depend on the batch.
    pub decode: DecodeWork,
    pub prefill: PrefillWork,
    /// One more than the largest of each; 0 without any.
    pub ids_end: usize,
    pub positions_end: usize,
    pub slots_end: usize,
    pub pages_end: usize,
    /// The smallest page size with which every sequence's pages hold its keys.
    pub min_page_size: u32,
}

/// Packs sections of u32s, each aligned to 16 bytes.
#[derive(Default)]
pub(super) struct Packer {
    words: Vec<u32>,
}

impl Packer {
    pub(super) fn push(&mut self, values: impl IntoIterator<Item = u32>) -> Section {
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        let section = Section(self.words.len() * WORD);
        self.words.extend(values);
        section
    }
}

fn end(values: &[u32]) -> usize {
    values.iter().max().map_or(0, |&max| max as usize + 1)
}

impl StepPlan {
    /// What operations check, in the order of [`End`].
    fn ends(&self) -> [usize; 5] {
        let Self { ids_end, positions_end, slots_end, pages_end, min_page_size, .. } = *self;
        [ids_end, positions_end, slots_end, pages_end, min_page_size as usize]
    }

    /// All that launches are made from, without what they only check: plans of one shape have the same launches.
    pub(super) fn shape(&self) -> StepPlan {
        StepPlan {
            ids_end: 0,
            positions_end: 0,
            slots_end: 0,
            pages_end: 0,
            min_page_size: 0,
            ..self.clone()
        }
    }

    /// As [`StepPlan::new`], of a batch of generated tokens that is to be like others: block tables are as wide, and grids of decode
    /// attention as large, as those of neighbouring lengths.
    pub(super) fn rounded(batch: &Batch) -> Result<(StepPlan, Vec<u32>)> {
        let pages = batch.spans.iter().map(|span| span.pages.len()).max().unwrap_or(0);
        let (mut plan, words) = StepPlan::with_stride(batch, pages.next_power_of_two())?;
        // Blocks past the last chunk find that there is none. Where no sequence has several, none needs scratch.
        for cut in &mut plan.decode.cuts {
            if cut.items as usize > plan.decode.seqs {
                let step = (cut.items.next_power_of_two() / 8).max(1);
                cut.items = cut.items.next_multiple_of(step);
            }
        }
        Ok((plan, words))
    }

    /// The plan of a batch, and the words that go to the device.
    pub(super) fn new(batch: &Batch) -> Result<(StepPlan, Vec<u32>)> {
        StepPlan::with_stride(batch, batch.spans.iter().map(|span| span.pages.len()).max().unwrap_or(0))
    }

    /// As [`StepPlan::new`]; block tables have `stride` columns, as many as a sequence has pages or more.
    fn with_stride(batch: &Batch, stride: usize) -> Result<(StepPlan, Vec<u32>)> {
        let tokens = batch.ids.len();
        check(batch)?;
        let generated = batch.generated_rows();
        let mut packer = Packer::default();
        let mut plan = StepPlan {
            ids: packer.push(batch.ids.iter().copied()),
            positions: packer.push(batch.positions.iter().copied()),
            slots: packer.push(batch.slots.iter().copied()),
            outputs: packer.push(batch.outputs.iter().copied()),
            q_starts: packer
                .push(batch.spans.iter().map(|s| s.query_start).chain([dim("step", "tokens", tokens)?])),
            kv_lens: packer.push(batch.spans.iter().map(|s| s.kv_len)),
            block_table_stride: dim("step", "pages of a sequence", stride)?,
            tokens,
            output_rows: batch.outputs.len(),
            generated,
            generated_outputs: batch.outputs.partition_point(|&row| (row as usize) < generated),
            ids_end: end(&batch.ids),
            positions_end: end(&batch.positions),
            slots_end: end(&batch.slots),
            pages_end: batch.spans.iter().map(|s| end(&s.pages)).max().unwrap_or(0),
            ..StepPlan::default()
        };
        for span in &batch.spans {
            let pages = dim("step", "pages of a sequence", span.pages.len())?;
            plan.min_page_size = plan.min_page_size.max(span.kv_len.div_ceil(pages.max(1)));
        }
        // A page that isn't there is out of range rather than a valid wrong one.
        plan.block_table = packer.push(batch.spans.iter().flat_map(|span| {
            span.pages.iter().copied().chain(std::iter::repeat_n(u32::MAX, stride - span.pages.len()))
        }));
        let (mut work, records) = DecodeWork::records(&batch.spans)?;
        for (cut, records) in work.cuts.iter_mut().zip(&records) {
            cut.sequences = packer.push(bytemuck::cast_slice(records).iter().copied());
        }
        let tree_masks = DecodeWork::masks(&batch.spans).map(|masks| packer.push(masks));
        plan.decode = DecodeWork { tree_masks, ..work };
        plan.prefill = PrefillWork::new(&mut packer, &batch.spans)?;
        Ok((plan, packer.words))
    }
}

/// That the parts of a batch fit each other.
fn check(batch: &Batch) -> Result<()> {
    let tokens = batch.ids.len();
    require(batch.positions.len() == tokens, "step", "positions", tokens, batch.positions.len())?;
    require(batch.slots.len() == tokens, "step", "slots", tokens, batch.slots.len())?;
    let seqs = batch.spans.len();
    require(seqs <= MAX_GRID_Y as usize, "step", "sequences", format!("at most {MAX_GRID_Y}"), seqs)?;
    require(
        end(&batch.outputs) <= tokens,
        "step",
        "outputs",
        format!("rows below {tokens}"),
        end(&batch.outputs),
    )?;
    require(batch.outputs.is_sorted(), "step", "order of outputs", "ascending", "another")?;
    batch.check_spans()?;
    let mut start = 0u64;
    for span in &batch.spans {
        require(u64::from(span.query_start) == start, "step", "query_start", start, span.query_start)?;
        require(span.kv_len == 0 || !span.pages.is_empty(), "step", "pages of a sequence", "at least 1", 0)?;
        start += u64::from(span.query_len);
    }
    require(start == tokens as u64, "step", "tokens of all sequences", tokens, start)
}

impl<Dr: Driver> GpuDevice<Dr> {
    pub(super) fn make_step(&self, batch: &Batch) -> Result<GpuStep<Dr>> {
        let (plan, words) = StepPlan::new(batch)?;
        self.place_step(plan, &words)
    }

    /// Brings a plan's words over.
    pub(super) fn place_step(&self, plan: StepPlan, words: &[u32]) -> Result<GpuStep<Dr>> {
        let (buffer, address) = self.allocate("step", &[words.len(), WORD], "a step's metadata")?;
        self.upload(&buffer, 0, bytemuck::cast_slice(words))?;
        let limits = Limits(std::array::from_fn(|_| AtomicUsize::new(usize::MAX)));
        Ok(GpuStep { buffer, address, plan, limits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, Outputs};

    fn section(words: &[u32], section: Section, len: usize) -> &[u32] {
        &words[section.0 / WORD..section.0 / WORD + len]
    }

    #[test]
    fn a_ragged_batch_is_packed_in_aligned_sections() {
        let mut batch = Batch::default();
        batch.push_generated(&[9], 9, &[1, 4], 8, Outputs::Last);
        batch.push_generated(&[2], 0, &[0], 8, Outputs::All);
        batch.push(&[5, 6, 7], 0, &[3], 8, Outputs::Last);
        batch.push(&[], 0, &[], 8, Outputs::None);
        let (plan, words) = StepPlan::new(&batch).expect("a valid batch");
        for at in [
            plan.ids,
            plan.positions,
            plan.slots,
            plan.outputs,
            plan.q_starts,
            plan.kv_lens,
            plan.block_table,
        ] {
            assert_eq!(at.0 % 16, 0);
        }
        assert_eq!(section(&words, plan.ids, 5), [9, 2, 5, 6, 7]);
        assert_eq!(section(&words, plan.positions, 5), [9, 0, 0, 1, 2]);
        assert_eq!(section(&words, plan.slots, 5), [33, 0, 24, 25, 26]);
        assert_eq!(section(&words, plan.outputs, 3), [0, 1, 4]);
        assert_eq!(section(&words, plan.q_starts, 5), [0, 1, 2, 5, 5]);
        assert_eq!(section(&words, plan.kv_lens, 4), [10, 1, 3, 0]);
        let none = u32::MAX;
        assert_eq!(section(&words, plan.block_table, 8), [1, 4, 0, none, 3, none, none, none]);
        let [first, second, end] = [[0, 0, 10, 1], [1, 1, 1, 1 << 5 | 1], [2, 0, 0, 0]];
        for cut in plan.decode.cuts {
            assert_eq!(section(&words, cut.sequences, 12), [first, second, end].concat());
            assert_eq!(cut.items, 2);
        }
        assert_eq!(section(&words, plan.prefill.seq_ids, 1), [2]);
        assert_eq!((plan.decode.seqs, plan.decode.tree_masks), (2, None));
        assert_eq!((plan.prefill.seqs, plan.prefill.max_query_len), (1, 3));
        assert_eq!((plan.ids_end, plan.positions_end, plan.slots_end, plan.pages_end), (10, 10, 34, 5));
        assert_eq!((plan.min_page_size, plan.block_table_stride), (5, 2));
        assert_eq!((plan.generated, plan.generated_outputs), (2, 2));
    }

    #[test]
    fn rounded_plans_of_neighbouring_lengths_have_one_shape() {
        let plan = |lens: &[u32]| {
            let mut batch = Batch::default();
            for &len in lens {
                let pages: Vec<u32> = (0..(len + 1).div_ceil(8)).collect();
                batch.push_generated(&[len], len, &pages, 8, Outputs::Last);
            }
            let (plan, words) = StepPlan::rounded(&batch).expect("a valid batch");
            (plan.shape(), words.len())
        };
        let ((a, a_words), (b, b_words)) = (plan(&[40, 60]), plan(&[33, 62]));
        assert_eq!(a, b);
        assert_eq!((a_words, a.block_table_stride, a.decode.cuts[0].items), (b_words, 8, 2));
        assert_ne!(a, plan(&[40, 64]).0, "more pages");
        assert_ne!(a, plan(&[40, 60, 1]).0, "more rows");
        // Of 12 chunks in all the next 1/8 of a power of two is 12; of 8, 8; of 17, 20; of 11, 12.
        let items = |lens| plan(lens).0.decode.cuts.map(|cut| cut.items);
        assert_eq!(items(&[4000, 1030, 7]), [12, 8]);
        assert_eq!(items(&[4000, 4000, 7]), [20, 12]);
    }

    #[test]
    fn an_empty_batch_has_a_plan() {
        let (plan, _) = StepPlan::new(&Batch::default()).expect("nothing is a valid batch");
        assert_eq!((plan.tokens, plan.decode.seqs, plan.prefill.seqs, plan.ids_end), (0, 0, 0, 0));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let mut good = Batch::default();
        good.push(&[1, 2], 0, &[0], 4, Outputs::Last);
        let spoil = |change: fn(&mut Batch)| {
            let mut batch = good.clone();
            change(&mut batch);
            match StepPlan::new(&batch) {
                Err(Error::Shape { what, .. }) => what,
                other => panic!("accepted: {other:?}"),
            }
        };
        assert_eq!(spoil(|b| b.positions.truncate(1)), "positions");
        assert_eq!(spoil(|b| b.slots.push(0)), "slots");
        assert_eq!(spoil(|b| b.outputs.push(2)), "outputs");
        assert_eq!(spoil(|b| b.outputs.push(0)), "order of outputs");
        assert_eq!(spoil(|b| b.spans[0].query_start = 1), "query_start");
        assert_eq!(spoil(|b| b.spans[0].query_len = 1), "tokens of all sequences");
        assert_eq!(spoil(|b| b.spans[0].pages.clear()), "pages of a sequence");
    }
}
