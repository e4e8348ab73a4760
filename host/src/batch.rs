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

    /// Rows of the step.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}
