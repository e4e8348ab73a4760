use tilewright_kernels::abi::DecodeSequence;

use crate::{Error, Result};

/// Drafts of a sequence in a step.
pub const MAX_DRAFTS: u32 = DecodeSequence::MAX_QUERIES;

/// How a row came to be, which says the kernels that compute it.
///
/// A GPU has two families of kernels for attention and matrix products, one for many rows of a prompt and one for few new tokens,
/// and their sums differ in the last bits. So that bits never depend on scheduling, a token's class is a property of its place in
/// its sequence, not of the step it happens to be computed in: a prompt's token is a [`RowClass::Prompt`] row even where a step
/// takes it alone, and a generated token a [`RowClass::Generated`] row even where it's computed anew with others. A device whose
/// kernels are one family (the CPU) may ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowClass {
    /// A token that was generated, or a draft of one.
    Generated,
    /// A token of a prompt.
    Prompt,
}

/// One sequence's part of a [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The first of its rows in the batch.
    pub query_start: u32,
    /// Its tokens in this step.
    pub query_len: u32,
    /// Its keys once this step's are appended.
    pub kv_len: u32,
    /// Its pages, enough for `kv_len` tokens.
    pub pages: Vec<u32>,
    /// The class of all its tokens.
    pub class: RowClass,
    /// If its tokens are drafts to verify: for each, a mask of the drafts it sees (bit `j`: the span's token `j`). Every draft sees
    /// itself and all keys before the drafts.
    pub drafts: Option<Vec<u32>>,
}

impl Span {
    /// Which of the drafts query `query` sees, itself among them: bit `j` for the span's token `j`. None if its tokens are no drafts.
    pub fn drafts_seen(&self, query: u32) -> Option<u32> {
        let mask = *self.drafts.as_ref()?.get(query as usize)?;
        let all = 1u32.checked_shl(self.query_len).map_or(u32::MAX, |end| end - 1);
        Some((mask | 1u32.checked_shl(query).unwrap_or(0)) & all)
    }

    /// That drafts are 1 to 16 and have a mask each, and that generated tokens are drafts where they're several.
    pub(crate) fn check_drafts(&self) -> Result<()> {
        let shape =
            |what, expected: String, found: String| Error::Shape { op: "step", what, expected, found };
        let Some(masks) = &self.drafts else {
            if self.class == RowClass::Prompt || self.query_len <= 1 {
                return Ok(());
            }
            return Err(shape("generated tokens without masks", "1".into(), self.query_len.to_string()));
        };
        if self.class == RowClass::Prompt {
            return Err(shape("class of drafts", "generated".into(), "prompt".into()));
        }
        if masks.len() != self.query_len as usize {
            return Err(shape("masks of drafts", self.query_len.to_string(), masks.len().to_string()));
        }
        if !(1..=MAX_DRAFTS).contains(&self.query_len) {
            let expected = format!("1 to {MAX_DRAFTS}");
            return Err(shape("drafts of a sequence", expected, self.query_len.to_string()));
        }
        Ok(())
    }
}

/// Which tokens of a sequence want logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outputs {
    /// The last one.
    Last,
    /// Every one.
    All,
    /// None: a chunk of a prompt that isn't its end.
    None,
}

/// What one step works on: ragged spans of tokens in the order they were pushed, those of generated tokens before those of
/// prompts, so that each class is one block of rows. A sequence may have several spans: keys of all are in the cache before
/// any is attended to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// Positions in their sequences, `[tokens]`.
    pub positions: Vec<u32>,
    /// Cache slots, `page * page_size + offset`, `[tokens]`.
    pub slots: Vec<u32>,
    /// The sequences.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted, ascending.
    pub outputs: Vec<u32>,
}

impl Batch {
    /// Appends `ids` of a prompt, `cached` of whose tokens are in `pages` of `page_size` tokens. Pages must reach past the last.
    ///
    /// # Panics
    /// If `pages` are too few: the caller reserves them first.
    pub fn push(&mut self, ids: &[u32], cached: u32, pages: &[u32], page_size: u32, outputs: Outputs) {
        let query_start = self.ids.len() as u32;
        let query_len = ids.len() as u32;
        let kv_len = cached + query_len;
        assert!(
            u64::from(kv_len) <= pages.len() as u64 * u64::from(page_size),
            "pages reserved before a step"
        );
        self.ids.extend_from_slice(ids);
        for position in cached..kv_len {
            self.positions.push(position);
            self.slots.push(pages[(position / page_size) as usize] * page_size + position % page_size);
        }
        match outputs {
            Outputs::Last if query_len > 0 => self.outputs.push(query_start + query_len - 1),
            Outputs::All => self.outputs.extend(query_start..query_start + query_len),
            Outputs::Last | Outputs::None => {}
        }
        self.spans.push(Span {
            query_start,
            query_len,
            kv_len,
            pages: pages.to_vec(),
            class: RowClass::Prompt,
            drafts: None,
        });
    }

    /// Appends 1 to 16 tokens that a sequence generated, each of which sees those before it. Must precede every prompt.
    ///
    /// # Panics
    /// As [`Batch::push`].
    pub fn push_generated(
        &mut self,
        ids: &[u32],
        cached: u32,
        pages: &[u32],
        page_size: u32,
        outputs: Outputs,
    ) {
        self.push(ids, cached, pages, page_size, outputs);
        let Some(span) = self.spans.last_mut() else { return };
        span.class = RowClass::Generated;
        if ids.len() > 1 {
            span.drafts = Some((0..span.query_len).map(|query| u32::MAX >> (31 - query.min(31))).collect());
        }
    }

    /// Appends drafts of a sequence to verify, all of whose logits are wanted: a tree, each after its parent. `masks` has for each
    /// the drafts it sees (see [`Span::drafts`]); of a chain, bits up to its own. A draft's position counts those, and its slot
    /// is the next.
    ///
    /// # Panics
    /// As [`Batch::push`].
    pub fn push_drafts(&mut self, ids: &[u32], cached: u32, pages: &[u32], page_size: u32, masks: &[u32]) {
        self.push(ids, cached, pages, page_size, Outputs::All);
        let Some(span) = self.spans.last_mut() else { return };
        span.class = RowClass::Generated;
        span.drafts = Some(masks.to_vec());
        for query in 0..span.query_len {
            if let Some(seen) = span.drafts_seen(query) {
                self.positions[(span.query_start + query) as usize] = cached + seen.count_ones() - 1;
            }
        }
    }

    /// The step of the wanted rows alone, over the same keys: enough for attention where nothing reads the other rows' results. None
    /// where a span's wanted rows aren't its last, in their order, or are some of its drafts.
    pub fn wanted_alone(&self) -> Option<Batch> {
        let mut alone = Batch::default();
        let mut wanted = self.outputs.iter().copied().peekable();
        for span in &self.spans {
            let (begin, end) = (alone.ids.len() as u32, span.query_start + span.query_len);
            let first = wanted.peek().copied().unwrap_or(end).min(end);
            while let Some(row) = wanted.next_if(|&row| row < end) {
                if row != first + alone.ids.len() as u32 - begin {
                    return None;
                }
                alone.ids.push(*self.ids.get(row as usize)?);
                alone.positions.push(*self.positions.get(row as usize)?);
                alone.slots.push(*self.slots.get(row as usize)?);
            }
            let query_len = alone.ids.len() as u32 - begin;
            if query_len == 0 {
                continue;
            }
            let some_drafts = span.drafts.is_some() && query_len < span.query_len;
            if first < span.query_start || first + query_len != end || some_drafts {
                return None;
            }
            alone.spans.push(Span { query_start: begin, query_len, ..span.clone() });
        }
        alone.outputs = (0..alone.ids.len() as u32).collect();
        wanted.peek().is_none().then_some(alone)
    }

    /// Rows of the step.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Rows of generated tokens; the rows behind them are prompts'.
    pub fn generated_rows(&self) -> usize {
        let generated = self.spans.iter().filter(|span| span.class == RowClass::Generated);
        generated.map(|span| span.query_len as usize).sum()
    }

    /// That generated tokens come first, and what each span must be.
    pub(crate) fn check_spans(&self) -> Result<()> {
        for span in &self.spans {
            span.check_drafts()?;
        }
        match self.spans.is_sorted_by_key(|span| span.class) {
            true => Ok(()),
            false => Err(Error::Shape {
                op: "step",
                what: "order of spans",
                expected: "generated tokens before prompts".into(),
                found: "one behind a prompt".into(),
            }),
        }
    }
}

/// That copies of pages, each a source and a destination, are within a cache of `pages` and disturb nothing: no page is written
/// twice or both read and written.
pub(crate) fn check_copies(copies: &[(u32, u32)], pages: usize) -> Result<()> {
    let refuse = |what, expected: String, page: u32| {
        Err(Error::Shape { op: "copy_pages", what, expected, found: page.to_string() })
    };
    let mut written = std::collections::HashSet::new();
    for &(from, to) in copies {
        if let Some(page) = [from, to].into_iter().find(|&page| page as usize >= pages) {
            return refuse("pages", format!("below {pages}"), page);
        }
        if !written.insert(to) {
            return refuse("destinations", "each once".into(), to);
        }
    }
    match copies.iter().find(|(from, _)| written.contains(from)) {
        Some(&(from, _)) => refuse("sources", "pages that aren't destinations".into(), from),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_stand_at_their_depth_and_see_themselves() {
        let mut batch = Batch::default();
        batch.push(&[1], 4, &[0, 1], 8, Outputs::Last);
        // Two children of the first, and a grandchild; nonsense in bits of drafts that aren't there.
        batch.push_drafts(&[5, 6, 7, 8], 9, &[2, 3], 8, &[0, 1, 0xff01, 0b1001]);
        assert_eq!(batch.positions, [4, 9, 10, 10, 10]);
        assert_eq!(batch.slots, [4, 25, 26, 27, 28]);
        assert_eq!(batch.outputs, [0, 1, 2, 3, 4]);
        let seen: Vec<_> = (0..5).map(|query| batch.spans[1].drafts_seen(query)).collect();
        assert_eq!(seen, [Some(1), Some(0b11), Some(0b101), Some(0b1001), None]);
        assert_eq!(batch.spans[0].drafts_seen(0), None);
    }

    #[test]
    fn wanted_rows_alone_keep_their_keys() {
        let mut batch = Batch::default();
        batch.push_drafts(&[9, 8], 3, &[0], 8, &[0b1, 0b11]);
        batch.push(&[1, 2, 3], 2, &[1], 8, Outputs::Last);
        batch.push(&[4, 5], 0, &[2], 8, Outputs::None);
        batch.push(&[6], 7, &[3], 8, Outputs::All);
        let alone = batch.wanted_alone().unwrap();
        assert_eq!((&alone.ids[..], &alone.positions[..]), (&[9, 8, 3, 6][..], &[3, 4, 4, 7][..]));
        assert_eq!((&alone.slots[..], &alone.outputs[..]), (&[3, 4, 12, 31][..], &[0, 1, 2, 3][..]));
        let spans: Vec<_> = alone.spans.iter().map(|s| (s.query_start, s.query_len, s.kv_len)).collect();
        assert_eq!(spans, [(0, 2, 5), (2, 1, 5), (3, 1, 8)]);
        assert_eq!(alone.spans[0].drafts, batch.spans[0].drafts);
        for outputs in [vec![0], vec![1], vec![2], vec![2, 4], vec![4, 3], vec![7, 4], vec![4, 4], vec![8]] {
            let other = Batch { outputs: outputs.clone(), ..batch.clone() };
            assert_eq!(other.wanted_alone(), None, "{outputs:?}");
        }
        assert_eq!(Batch { outputs: vec![], ..batch }.wanted_alone(), Some(Batch::default()));
    }

    #[test]
    fn drafts_that_do_not_fit_are_refused() {
        let what = |query_len, masks: usize| {
            let drafts = Some(vec![0; masks]);
            let class = RowClass::Generated;
            let span = Span { query_start: 0, query_len, kv_len: 20, pages: vec![0; 3], class, drafts };
            match span.check_drafts() {
                Err(Error::Shape { what, .. }) => what,
                other => panic!("accepted: {other:?}"),
            }
        };
        assert_eq!(what(2, 1), "masks of drafts");
        assert_eq!(what(17, 17), "drafts of a sequence");
        assert_eq!(what(0, 0), "drafts of a sequence");
        let mut batch = Batch::default();
        batch.push_generated(&[0; 16], 0, &[0], 16, Outputs::Last);
        assert!(batch.check_spans().is_ok());
        batch.spans[0].drafts = None;
        assert!(batch.check_spans().is_err());
        batch.spans[0].class = RowClass::Prompt;
        assert!(batch.check_spans().is_ok());
    }

    #[test]
    fn generated_tokens_are_a_chain_and_come_first() {
        let mut batch = Batch::default();
        batch.push_generated(&[3], 7, &[2], 8, Outputs::Last);
        batch.push_generated(&[4, 5, 6], 2, &[0], 8, Outputs::Last);
        batch.push(&[1, 2], 0, &[1], 8, Outputs::Last);
        assert_eq!(batch.positions, [7, 2, 3, 4, 0, 1]);
        assert_eq!(batch.outputs, [0, 3, 5]);
        assert_eq!((batch.generated_rows(), batch.tokens()), (4, 6));
        let seen: Vec<_> = (0..3).map(|query| batch.spans[1].drafts_seen(query)).collect();
        assert_eq!(seen, [Some(1), Some(3), Some(7)]);
        assert!(batch.check_spans().is_ok());
        batch.push_generated(&[3], 0, &[3], 8, Outputs::Last);
        assert!(batch.check_spans().is_err());
    }

    #[test]
    fn copies_that_would_disturb_each_other_are_refused() {
        assert!(check_copies(&[(0, 1), (0, 2)], 3).is_ok());
        for copies in [&[(0, 3)][..], &[(3, 0)], &[(0, 1), (2, 1)], &[(0, 1), (1, 2)], &[(1, 1)]] {
            assert!(check_copies(copies, 3).is_err(), "{copies:?}");
        }
    }
}
