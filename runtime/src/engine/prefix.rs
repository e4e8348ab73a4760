use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

/// A page in the prefix cache.
pub(crate) type EntryId = u64;
/// What the first page of a sequence goes on from.
pub(crate) const ROOT: EntryId = 0;

/// One full page of tokens behind another, each token with its class: keys and values of one class aren't those of another, bit
/// for bit.
type Link = (EntryId, Box<[u32]>);

#[derive(Debug)]
struct Entry {
    link: Link,
    page: u32,
    /// Pages before it and itself.
    depth: u32,
    last_use: u64,
}

/// Full pages by the tokens in and before them: a chain from [`ROOT`], each entry known by its predecessor and its own tokens, so
/// that equal means equal and no hash can deceive.
///
/// Entries whose page no sequence holds wait in order of their last use, the end of a chain before its beginning; whoever
/// needs a page takes the first.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    entries: HashMap<EntryId, Entry>,
    links: HashMap<Link, EntryId>,
    by_page: HashMap<u32, EntryId>,
    idle: BTreeSet<(u64, Reverse<u32>, EntryId)>,
    clock: u64,
    last_id: EntryId,
}

impl PrefixCache {
    /// The entry of `tokens` behind `parent`, and its page.
    pub fn find(&self, parent: EntryId, tokens: &[u32]) -> Option<(EntryId, u32)> {
        let id = *self.links.get(&(parent, tokens.into()))?;
        Some((id, self.entries.get(&id)?.page))
    }

    /// Makes an entry of a page that a sequence holds; there is none for these tokens.
    pub fn insert(&mut self, parent: EntryId, tokens: &[u32], page: u32) -> EntryId {
        debug_assert!(self.find(parent, tokens).is_none() && !self.by_page.contains_key(&page));
        self.last_id += 1;
        let id = self.last_id;
        let link: Link = (parent, tokens.into());
        let depth = self.entries.get(&parent).map_or(0, |entry| entry.depth) + 1;
        self.links.insert(link.clone(), id);
        self.by_page.insert(page, id);
        self.entries.insert(id, Entry { link, page, depth, last_use: self.clock });
        id
    }

    /// Whether a page has an entry.
    pub fn has(&self, page: u32) -> bool {
        self.by_page.contains_key(&page)
    }

    /// A sequence begins to hold an entry's page.
    pub fn set_busy(&mut self, page: u32) {
        if let Some((id, entry)) = self.entry(page) {
            let key = (entry.last_use, Reverse(entry.depth), id);
            self.idle.remove(&key);
        }
    }

    /// No sequence holds an entry's page any longer.
    pub fn set_idle(&mut self, page: u32) {
        let clock = self.clock;
        let Some(&id) = self.by_page.get(&page) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.last_use = clock;
        self.idle.insert((clock, Reverse(entry.depth), id));
    }

    /// Time goes on: what is used from here on was used later than what was before.
    pub fn tick(&mut self) {
        self.clock += 1;
    }

    /// Pages that no sequence holds.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Entries.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Drops the idle entry that wasn't used for longest; its page is the caller's.
    pub fn evict(&mut self) -> Option<u32> {
        let (_, _, id) = self.idle.pop_first()?;
        let entry = self.entries.remove(&id)?;
        self.links.remove(&entry.link);
        self.by_page.remove(&entry.page);
        Some(entry.page)
    }

    /// Drops a page's entry, so that nobody finds it any more; tells whether there was one. Entries behind it aren't found either,
    /// and go when their turn comes.
    pub fn forget(&mut self, page: u32) -> bool {
        self.set_busy(page);
        let Some(id) = self.by_page.remove(&page) else { return false };
        if let Some(entry) = self.entries.remove(&id) {
            self.links.remove(&entry.link);
        }
        true
    }

    fn entry(&self, page: u32) -> Option<(EntryId, &Entry)> {
        let id = *self.by_page.get(&page)?;
        Some((id, self.entries.get(&id)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_found_by_all_their_tokens() {
        let mut cache = PrefixCache::default();
        let a = cache.insert(ROOT, &[1, 2], 7);
        let b = cache.insert(a, &[3, 4], 5);
        assert_eq!(cache.find(ROOT, &[1, 2]), Some((a, 7)));
        assert_eq!(cache.find(a, &[3, 4]), Some((b, 5)));
        assert_eq!([cache.find(ROOT, &[3, 4]), cache.find(b, &[3, 4]), cache.find(ROOT, &[1])], [None; 3]);
    }

    #[test]
    fn the_end_of_what_was_used_first_goes_first() {
        let mut cache = PrefixCache::default();
        let a = cache.insert(ROOT, &[1], 10);
        cache.insert(a, &[2], 11);
        cache.insert(ROOT, &[3], 12);
        assert_eq!((cache.idle(), cache.evict()), (0, None));
        for page in [10, 11] {
            cache.set_idle(page);
        }
        cache.tick();
        cache.set_idle(12);
        cache.tick();
        // Used again, page 10 is the last one used.
        cache.set_busy(10);
        cache.set_idle(10);
        assert_eq!(
            [cache.evict(), cache.evict(), cache.evict(), cache.evict()],
            [Some(11), Some(12), Some(10), None]
        );
        assert_eq!((cache.len(), cache.find(ROOT, &[1])), (0, None));
    }

    #[test]
    fn a_forgotten_page_is_neither_found_nor_evicted() {
        let mut cache = PrefixCache::default();
        cache.insert(ROOT, &[1], 4);
        cache.set_idle(4);
        assert!(cache.has(4) && cache.forget(4) && !cache.forget(4));
        assert_eq!((cache.has(4), cache.find(ROOT, &[1]), cache.evict()), (false, None, None));
    }
}
