/// Which pages of a cache are in use, and by how many holders: sequences that share a prefix, the prefix cache, copies that are yet
/// to be read. A page nobody holds is free.
#[derive(Debug)]
pub(crate) struct PagePool {
    /// Of each page.
    holders: Vec<u32>,
    /// The last one is taken first: the pages that were used last are the likeliest to be in a cache of the machine.
    free: Vec<u32>,
}

impl PagePool {
    /// `pages` free pages.
    pub fn new(pages: usize) -> PagePool {
        PagePool { holders: vec![0; pages], free: (0..pages as u32).rev().collect() }
    }

    /// Pages, free or not.
    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Free pages.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A free page, with one holder.
    pub fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// One holder more.
    pub fn hold(&mut self, page: u32) {
        debug_assert!(self.holders[page as usize] > 0, "page {page} is free");
        self.holders[page as usize] += 1;
    }

    /// One holder less; tells how many are left.
    pub fn release(&mut self, page: u32) -> u32 {
        let holders = &mut self.holders[page as usize];
        debug_assert!(*holders > 0, "page {page} was given back twice");
        *holders = holders.saturating_sub(1);
        if *holders == 0 {
            self.free.push(page);
        }
        *holders
    }

    /// How many hold it.
    pub fn holders(&self, page: u32) -> u32 {
        self.holders[page as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_free_once_its_last_holder_is_gone() {
        let mut pool = PagePool::new(2);
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(0), Some(1), None]);
        pool.hold(0);
        assert_eq!((pool.release(0), pool.free(), pool.take()), (1, 0, None));
        assert_eq!((pool.release(0), pool.free()), (0, 1));
        assert_eq!((pool.take(), pool.holders(0), pool.holders(1), pool.total()), (Some(0), 1, 1, 2));
    }
}
