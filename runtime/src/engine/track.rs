use tilewright_host::RowClass;

use super::memory::BlockTable;

/// A sequence's number, in the order they came.
pub(crate) type Id = u64;

/// Marks a generated token among the words by which pages are known.
const GENERATED_BIT: u32 = 1 << 31;
/// Vocabularies from here on would run into the mark.
pub(crate) const MAX_VOCAB: usize = GENERATED_BIT as usize;

/// What the scheduler knows of a sequence.
#[derive(Debug, Default)]
pub(crate) struct Track {
    pub id: Id,
    /// The prompt, then the answer so far.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Tokens whose keys and values are in the pages.
    pub computed: usize,
    /// Tokens whose keys and values are in the draft model's pages, which have the same numbers.
    pub drafted: usize,
    pub table: BlockTable,
    /// Another sequence with the same prompt, which computes it.
    pub leader: Option<Id>,
    /// Drafts that it would like to have verified in a step.
    pub drafts_wished: usize,
}

impl Track {
    /// The class of the token at `position`.
    pub fn class(&self, position: usize) -> RowClass {
        if position < self.prompt_len { RowClass::Prompt } else { RowClass::Generated }
    }

    /// Whether all but its last token are computed, and that one is the answer's: what is missing is the next token.
    pub fn awaits_next(&self) -> bool {
        self.computed >= self.prompt_len && self.computed + 1 == self.tokens.len()
    }

    /// The first `len` tokens with their classes, as pages are known by.
    pub fn words(&self, len: usize) -> Vec<u32> {
        let mark = |position| match self.class(position) {
            RowClass::Generated => GENERATED_BIT,
            RowClass::Prompt => 0,
        };
        self.tokens.iter().take(len).enumerate().map(|(position, &token)| token | mark(position)).collect()
    }
}
