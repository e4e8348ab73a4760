//! Pages, prefixes and block tables: who may write where.

use super::pages::PagePool;
use super::prefix::{EntryId, PrefixCache, ROOT};

/// A sequence's pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BlockTable {
    /// In the order of its tokens.
    pub pages: Vec<u32>,
    /// How many of them, from the first, are known to the prefix cache.
    published: usize,
    /// The last of those.
    entry: EntryId,
}

impl BlockTable {
    /// How many pages, from the first, are known to the prefix cache.
    pub fn published(&self) -> usize {
        self.published
    }
}

/// The pages of one cache.
#[derive(Debug)]
pub(crate) struct Memory {
    pool: PagePool,
    prefixes: Option<PrefixCache>,
    page_size: usize,
}

impl Memory {
    /// `pages` free pages of `page_size` tokens; with a prefix cache, or without.
    pub fn new(pages: usize, page_size: usize, prefixes: bool) -> Memory {
        Memory { pool: PagePool::new(pages), prefixes: prefixes.then(PrefixCache::default), page_size }
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.pool.total()
    }

    /// Pages that can be had: free ones, and those that the prefix cache alone holds.
    pub fn available(&self) -> usize {
        self.pool.free() + self.prefixes.as_ref().map_or(0, PrefixCache::idle)
    }

    /// Pages that hold `tokens` tokens.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// Time goes on, for the order of eviction.
    pub fn tick(&mut self) {
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.tick();
        }
    }

    /// Gives an empty table the cached pages that the sequence begins with; returns their tokens. `words` are the tokens that it may
    /// take over, classes included.
    pub fn adopt(&mut self, table: &mut BlockTable, words: &[u32]) -> usize {
        debug_assert!(table.pages.is_empty());
        let Some(prefixes) = &mut self.prefixes else { return 0 };
        let mut entry = ROOT;
        for page_words in words.chunks_exact(self.page_size) {
            let Some((id, page)) = prefixes.find(entry, page_words) else { break };
            if self.pool.holders(page) == 1 {
                prefixes.set_busy(page);
            }
            self.pool.hold(page);
            table.pages.push(page);
            entry = id;
        }
        table.published = table.pages.len();
        table.entry = entry;
        table.pages.len() * self.page_size
    }

    /// Gives a table the pages for `tokens` tokens, all or none; tells whether it has them.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.pages_for(tokens).saturating_sub(table.pages.len());
        if missing > self.available() {
            return false;
        }
        for _ in 0..missing {
            // There are as many.
            let Some(page) = self.take() else { return false };
            table.pages.push(page);
        }
        true
    }

    /// Gives an empty table the pages that hold the first `tokens` of another's.
    pub fn fork(&mut self, from: &BlockTable, tokens: usize, table: &mut BlockTable) {
        debug_assert!(table.pages.is_empty());
        let pages = &from.pages[..self.pages_for(tokens).min(from.pages.len())];
        for &page in pages {
            self.pool.hold(page);
        }
        table.pages = pages.to_vec();
        // What of them is published is found again when this table's turn comes; its tokens are the same.
        table.published = 0;
        table.entry = ROOT;
    }

    /// Whether writing to the page of token `position` takes a copy first: others hold it too.
    pub fn is_shared(&self, table: &BlockTable, position: usize) -> bool {
        let page = table.pages.get(position / self.page_size);
        page.is_some_and(|&page| self.pool.holders(page) > 1)
    }

    /// Gives a table a page of its own in place of the shared one of token `position`. Returns what is to be copied, from where to
    /// where; the source is held until [`Memory::release_source`]. None where there's no page.
    pub fn unshare(&mut self, table: &mut BlockTable, position: usize) -> Option<(u32, u32)> {
        let index = position / self.page_size;
        let source = *table.pages.get(index)?;
        let copy = self.take()?;
        // The table's hold on the source becomes the copy's.
        table.pages[index] = copy;
        if table.published > index {
            table.published = 0;
            table.entry = ROOT;
        }
        Some((source, copy))
    }

    /// A source of a copy has been read.
    pub fn release_source(&mut self, page: u32) {
        self.release_page(page);
    }

    /// Makes known to the prefix cache what of the table's pages is full: `words` are the tokens whose keys and values are there. A
    /// page whose tokens are known already is given back for the known one, which has the same bits.
    pub fn publish(&mut self, table: &mut BlockTable, words: &[u32]) {
        let Some(prefixes) = &mut self.prefixes else { return };
        let full = (words.len() / self.page_size).min(table.pages.len());
        for index in table.published..full {
            let page_words = &words[index * self.page_size..(index + 1) * self.page_size];
            let page = table.pages[index];
            match prefixes.find(table.entry, page_words) {
                Some((id, known)) if known == page => table.entry = id,
                Some((id, known)) => {
                    if self.pool.holders(known) == 1 {
                        prefixes.set_busy(known);
                    }
                    self.pool.hold(known);
                    table.pages[index] = known;
                    table.entry = id;
                    let left = self.pool.release(page);
                    if left == 1 && prefixes.has(page) {
                        prefixes.set_idle(page);
                    }
                }
                // A page that others know by other predecessors stays theirs.
                None if prefixes.has(page) => break,
                None => {
                    table.entry = prefixes.insert(table.entry, page_words, page);
                    self.pool.hold(page);
                }
            }
            table.published = index + 1;
        }
    }

    /// Takes a table's pages back.
    pub fn release(&mut self, table: &mut BlockTable) {
        for page in std::mem::take(&mut table.pages) {
            self.release_page(page);
        }
        *table = BlockTable::default();
    }

    /// Takes a table's pages back and has nobody find them any more: what they hold can't be trusted.
    pub fn discard(&mut self, table: &mut BlockTable) {
        if let Some(prefixes) = &mut self.prefixes {
            for &page in &table.pages {
                if prefixes.forget(page) {
                    self.pool.release(page);
                }
            }
        }
        self.release(table);
    }

    fn take(&mut self) -> Option<u32> {
        if let Some(page) = self.pool.take() {
            return Some(page);
        }
        let page = self.prefixes.as_mut()?.evict()?;
        // The prefix cache was its one holder.
        self.pool.release(page);
        self.pool.take()
    }

    fn release_page(&mut self, page: u32) {
        let left = self.pool.release(page);
        if let Some(prefixes) = &mut self.prefixes
            && left == 1
            && prefixes.has(page)
        {
            prefixes.set_idle(page);
        }
    }

    /// How many hold a page.
    #[cfg(test)]
    pub fn holders(&self, page: u32) -> u32 {
        self.pool.holders(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_adopted_and_outlives_its_sequence_until_room_is_needed() {
        let mut memory = Memory::new(4, 2, true);
        let mut first = BlockTable::default();
        assert!(memory.grow(&mut first, 5));
        memory.publish(&mut first, &[1, 2, 3, 4, 5]);
        let mut second = BlockTable::default();
        assert_eq!(memory.adopt(&mut second, &[1, 2, 3, 4, 9]), 4);
        assert_eq!((&second.pages[..], memory.available()), (&first.pages[..2], 1));
        memory.release(&mut first);
        memory.release(&mut second);
        assert_eq!(memory.available(), 4);
        assert_eq!(memory.adopt(&mut second, &[1, 2, 7, 7]), 2);
        // Three pages are left, one of them the prefix cache's, which gives way.
        assert!(!memory.grow(&mut second, 9) && memory.grow(&mut second, 8));
        assert_eq!(memory.available(), 0);
        memory.release(&mut second);
        assert_eq!((memory.available(), memory.adopt(&mut first, &[1, 2, 3, 4])), (4, 2));
    }

    #[test]
    fn a_fork_shares_until_it_writes() {
        let mut memory = Memory::new(3, 2, true);
        let (mut first, mut second) = (BlockTable::default(), BlockTable::default());
        assert!(memory.grow(&mut first, 3));
        memory.fork(&first, 3, &mut second);
        assert!(memory.is_shared(&second, 2) && second.pages == first.pages);
        let (source, copy) = memory.unshare(&mut second, 2).expect("a page");
        assert_eq!((source, copy), (first.pages[1], second.pages[1]));
        // The source stays until it has been read, though its first holder goes.
        memory.release(&mut first);
        assert_eq!(memory.available(), 0);
        memory.release_source(source);
        assert_eq!((memory.available(), memory.is_shared(&second, 2)), (1, false));
        memory.release(&mut second);
        assert_eq!(memory.available(), 3);
    }

    #[test]
    fn equal_pages_become_one() {
        let mut memory = Memory::new(4, 2, true);
        let (mut first, mut second) = (BlockTable::default(), BlockTable::default());
        assert!(memory.grow(&mut first, 2) && memory.grow(&mut second, 2));
        memory.publish(&mut first, &[1, 2]);
        memory.publish(&mut second, &[1, 2]);
        assert_eq!((&first.pages, memory.available()), (&second.pages, 3));
        memory.discard(&mut first);
        assert_eq!((memory.available(), memory.holders(second.pages[0])), (3, 1));
        memory.release(&mut second);
        assert_eq!((memory.available(), memory.adopt(&mut first, &[1, 2])), (4, 0));
    }
}
