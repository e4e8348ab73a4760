use tilewright_kernels::abi::DecodeSequence;

use crate::{Error, Result};

/// Drafts of a sequence in a step.
pub const MAX_DRAFTS: u32 = DecodeSequence::MAX_QUERIES;

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

    /// That drafts are 1 to 16 and have a mask each.
    pub(crate) fn check_drafts(&self) -> Result<()> {
        let Some(masks) = &self.drafts else { return Ok(()) };
        let shape =
            |what, expected: String, found: String| Error::Shape { op: "step", what, expected, found };
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

/// What one step works on: ragged spans of tokens, one a sequence, in the order they were pushed.
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
    /// Appends `ids` of a sequence that has `cached` tokens in `pages` of `page_size` tokens. Pages must reach past the last.
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
        self.spans.push(Span { query_start, query_len, kv_len, pages: pages.to_vec(), drafts: None });
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
        span.drafts = Some(masks.to_vec());
        for query in 0..span.query_len {
            if let Some(seen) = span.drafts_seen(query) {
                self.positions[(span.query_start + query) as usize] = cached + seen.count_ones() - 1;
            }
        }
    }

    /// Rows of the step.
    pub fn tokens(&self) -> usize {
        self.ids.len()
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
    fn drafts_that_do_not_fit_are_refused() {
        let what = |query_len, masks: usize| {
            let drafts = Some(vec![0; masks]);
            match (Span { query_start: 0, query_len, kv_len: 20, pages: vec![0; 3], drafts }).check_drafts() {
                Err(Error::Shape { what, .. }) => what,
                other => panic!("accepted: {other:?}"),
            }
        };
        assert_eq!(what(2, 1), "masks of drafts");
        assert_eq!(what(17, 17), "drafts of a sequence");
        assert_eq!(what(0, 0), "drafts of a sequence");
        let drafts = Some(vec![0; 16]);
        assert!(
            Span { query_start: 0, query_len: 16, kv_len: 16, pages: vec![0], drafts }.check_drafts().is_ok()
        );
    }
}
